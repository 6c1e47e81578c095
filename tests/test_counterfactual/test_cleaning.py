"""The relevance map without outlier tokens, and smoothed, against plain loops."""

import numpy as np
import pytest
import torch
from mmpretrain.registry import MODELS

import mmcfmask  # noqa: F401
from mmcfmask.counterfactual import compare_relevance, record_attention, relevance_map
from mmcfmask.counterfactual.cleaning import find_outliers, smooth
from mmcfmask.models.towers.conversion import mmpretrain_config, open_clip_to_mmpretrain


def loop_outliers(norms, deviations):
    rows = []
    for row in norms.numpy():
        middle = np.sort(row)[(len(row) - 1) // 2]  # torch's median is the lower one
        spread = np.sort(np.abs(row - middle))[(len(row) - 1) // 2]
        rows.append([norm > middle + deviations * spread for norm in row])
    return torch.tensor(rows)


def loop_smooth(relevance, how):
    result = torch.empty_like(relevance)
    for image, values in enumerate(relevance):
        height, width = values.shape
        for row in range(height):
            for col in range(width):
                around = [
                    values[min(max(row + i, 0), height - 1), min(max(col + j, 0), width - 1)]
                    for i in (-1, 0, 1)
                    for j in (-1, 0, 1)
                ]
                result[image, row, col] = float(np.mean(around) if how == 'mean' else np.median(around))
    return result


@pytest.fixture
def model(tiny_pretrained):
    backbone = dict(type='OpenCLIPBackbone', model_name='tiny-vit', pretrained=tiny_pretrained)
    head = dict(type='CLIPDistillHead', num_classes=5)
    model = MODELS.build(dict(type='CounterfactualClassifier', backbone=backbone, head=head))
    torch.manual_seed(2)
    torch.nn.init.normal_(model.head.fc.weight, std=5)
    return model


@pytest.fixture
def batch():
    torch.manual_seed(3)
    return torch.randn(4, 3, 32, 32), torch.tensor([0, 3, 3, 1])


@pytest.mark.parametrize('deviations', [0.0, 1.0, 6.0])
@pytest.mark.parametrize('patches', [16, 49])
def test_outliers_equal_loop(deviations, patches):
    norms = torch.rand(5, patches, generator=torch.Generator().manual_seed(0)) + 10
    norms[:, ::7] *= 3
    found = find_outliers(norms, deviations)
    assert torch.equal(found, loop_outliers(norms, deviations)) and found.any() and not found.all()


@pytest.mark.parametrize('how', ['mean', 'median'])
@pytest.mark.parametrize('grid', [(4, 4), (3, 7), (1, 5)])
def test_smooth_equals_loop(how, grid):
    relevance = torch.rand(3, *grid, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(smooth(relevance, how), loop_smooth(relevance, how))


@pytest.mark.parametrize('how', [None, 'mean', 'median'])
@pytest.mark.parametrize('deviations', [None, 1.0])
def test_map_is_the_published_one_cleaned(model, batch, deviations, how):
    norms = {}
    after_last_but_one = model.backbone.visual.transformer.resblocks[-2].register_forward_hook(
        lambda module, inputs, tokens: norms.update(patches=tokens[:, 1:].detach().double().norm(dim=2))
    )
    expected = relevance_map(model, *batch)
    after_last_but_one.remove()
    if deviations is not None:
        outliers = loop_outliers(norms['patches'], deviations).view(4, 4, 4)
        assert outliers.any()
        expected = torch.where(outliers, 0, expected)
    if how is not None:
        expected = loop_smooth(expected, how)
    relevance = relevance_map(model, *batch, outliers=deviations, smooth=how)
    torch.testing.assert_close(relevance, expected)


def test_last_layer_alone(model, batch):
    images, labels = batch
    with record_attention(model.backbone, images) as calls:
        score = model(images).gather(1, labels[:, None]).sum()
    call = calls[-1]
    (grad,) = torch.autograd.grad(score, call.output)
    expected = torch.zeros(4, 16)
    for image in range(4):
        for head in range(call.key.shape[1]):
            attention = (call.query[image, head, :1] @ call.key[image, head].T * call.scale).softmax(dim=1)
            expected[image] += (attention * (grad[image, head, :1] @ call.value[image, head].T)).relu()[0, 1:]
    expected = expected.view(4, 4, 4) / call.key.shape[1]
    torch.testing.assert_close(relevance_map(model, images, labels, layers='last'), expected)


def test_mmpretrain_tower_gives_the_same(model, batch):
    other = MODELS.build(
        dict(
            type='CounterfactualClassifier',
            **mmpretrain_config('tiny-vit'),
            head=dict(type='CLIPDistillHead', num_classes=5),
        )
    )
    other.load_state_dict(open_clip_to_mmpretrain(model.backbone.visual.state_dict()), strict=False)
    other.head.load_state_dict(model.head.state_dict())
    cleaned = [relevance_map(each, *batch, outliers=1.0, smooth='mean') for each in (model, other)]
    torch.testing.assert_close(*cleaned, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(outliers=-1.0), 'outliers=-1.0 is the number of median absolute deviations'),
        (dict(outliers=True), 'outliers=True'),
        (dict(outliers=float('nan')), 'outliers=nan'),
        (dict(outliers='6'), "outliers='6'"),
        (dict(smooth='max'), "smooth='max' must be one of 'mean', 'median' or None"),
        (dict(smooth=3), 'smooth=3 must be'),
        (dict(layers=1), "layers=1 must be one of 'all', 'last'"),
    ],
)
def test_wrong_options_are_errors(model, batch, options, message):
    with pytest.raises(ValueError, match=message):
        relevance_map(model, *batch, **options)
    with pytest.raises(ValueError, match=f'model.data_preprocessor.relevance: {message}'):
        MODELS.build(dict(type='CAMRefillDataPreprocessor', relevance=options))


@pytest.mark.parametrize('options, message', [
    (dict(outlier=6.0), "relevance has no 'outlier'. Did you mean 'outliers'"),
    (6.0, 'relevance=6.0 must be a dict'),
])  # fmt: skip
def test_options_of_the_config_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        MODELS.build(dict(type='CAMRefillDataPreprocessor', relevance=options))


def test_a_tower_without_blocks_has_no_outliers(model, batch, monkeypatch):
    monkeypatch.setattr('mmcfmask.counterfactual.attention.last_block', lambda tower: None)
    relevance_map(model, *batch, smooth='mean')
    with pytest.raises(ValueError, match='outliers needs the tokens of the last block'):
        relevance_map(model, *batch, outliers=6.0)


def test_several_maps_equal_each_alone(model, batch):
    options = [{}, dict(layers='last', smooth='median'), dict(outliers=1.0), dict(outliers=1.0, smooth='mean')]
    for found, option in zip(compare_relevance(model, *batch, options), options):
        torch.testing.assert_close(found, relevance_map(model, *batch, **option))
    (last,) = compare_relevance(model, *batch, [dict(layers='last')])
    torch.testing.assert_close(last, relevance_map(model, *batch, layers='last'))
    assert not torch.allclose(last, relevance_map(model, *batch))
