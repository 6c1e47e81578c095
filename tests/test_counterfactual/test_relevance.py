import gc

import pytest
import torch
import torch.nn.functional as F
from mmpretrain.registry import MODELS

import mmcfmask  # noqa: F401
from mmcfmask.counterfactual import AttentionCall, mask_keys, relevance_map
from mmcfmask.counterfactual import relevance as relevance_module
from mmcfmask.counterfactual.reference import explicit_relevance
from mmcfmask.models.towers.conversion import mmpretrain_config, open_clip_to_mmpretrain


def classifier(pretrained, **kwargs):
    model = MODELS.build(
        dict(
            type='CounterfactualClassifier',
            backbone=dict(type='OpenCLIPBackbone', model_name='tiny-vit', pretrained=pretrained, **kwargs),
            head=dict(type='CLIPDistillHead', num_classes=5),
        )
    )
    torch.manual_seed(2)
    torch.nn.init.normal_(model.head.fc.weight, std=5)
    return model


@pytest.fixture
def batch():
    torch.manual_seed(3)
    return torch.randn(4, 3, 32, 32), torch.tensor([0, 3, 3, 1])


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize(
    'options',
    [{}, dict(frozen=True), dict(grad_checkpointing=True), dict(frozen_stages=1, grad_checkpointing=True)],
)
def test_equals_full_recursion(tiny_pretrained, batch, training, options):
    model = classifier(tiny_pretrained, **options).train(training)
    images, labels = batch
    # In double precision, so that only the rounding of the fast version is seen.
    reference = classifier(tiny_pretrained).double()
    expected = explicit_relevance(
        reference.backbone.visual, lambda z: reference.head.fc(F.normalize(z, dim=-1)), images.double(), labels
    )
    relevance = relevance_map(model, images, labels)
    assert relevance.dtype == torch.float32 and relevance.shape == (4, 4, 4) and not relevance.requires_grad
    assert expected.amax() > 10 * expected.amin()  # not a flat map
    for got, want in zip(
        relevance.double(), expected
    ):  # relative to the image's map, of which small values are differences of large ones
        assert (got - want).norm() < 1e-5 * want.norm()


def test_mmpretrain_tower_gives_the_same(tiny_pretrained, batch):
    model = classifier(tiny_pretrained)
    config = mmpretrain_config('tiny-vit')
    other = MODELS.build(
        dict(type='CounterfactualClassifier', **config, head=dict(type='CLIPDistillHead', num_classes=5))
    )
    state = open_clip_to_mmpretrain(model.backbone.visual.state_dict())
    missing, unexpected = other.load_state_dict(state, strict=False)
    assert not unexpected and all(key.startswith('head.') for key in missing)
    other.head.load_state_dict(model.head.state_dict())
    torch.testing.assert_close(relevance_map(other, *batch), relevance_map(model, *batch), rtol=1e-5, atol=1e-7)


def test_bfloat16_ranks_patches_alike(tiny_pretrained, batch):
    model = classifier(tiny_pretrained)
    exact = relevance_map(model, *batch)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        rounded = relevance_map(model, *batch)
    assert rounded.dtype == torch.float32
    for a, b in zip(exact.flatten(1), rounded.flatten(1)):
        ranks = torch.stack([a.argsort().argsort(), b.argsort().argsort()]).double()
        assert torch.corrcoef(ranks)[0, 1] > 0.95


def test_leaves_nothing_behind(tiny_pretrained, batch):
    model = classifier(tiny_pretrained)
    before = F.scaled_dot_product_attention
    logits = model(batch[0])
    relevance_map(model, *batch)
    assert F.scaled_dot_product_attention is before
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(not module._forward_hooks for module in model.modules())
    assert torch.equal(model(batch[0]), logits)

    def tensors():
        gc.collect()
        return sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects())

    relevance_map(model, *batch)
    count = tensors()
    for _ in range(5):
        relevance_map(model, *batch)
    assert tensors() == count


def test_works_on_inference_tensors_and_under_inference_mode(tiny_pretrained, batch):
    model = classifier(tiny_pretrained)
    expected = relevance_map(model, *batch)
    with torch.inference_mode():
        assert torch.equal(relevance_map(model, batch[0] * 1, batch[1]), expected)


def test_restores_attention_after_an_error(tiny_pretrained, batch):
    model = classifier(tiny_pretrained)
    before = F.scaled_dot_product_attention
    with pytest.raises((ValueError, RuntimeError)):
        relevance_map(model, batch[0][:, :1], batch[1])
    assert F.scaled_dot_product_attention is before


def test_non_square_grid(batch):
    model = MODELS.build(
        dict(
            type='CounterfactualClassifier',
            backbone=dict(type='VisionTransformer', arch='deit-tiny', img_size=(32, 48), patch_size=8),
            head=dict(type='CLIPDistillHead', num_classes=5),
        )
    )
    relevance = relevance_map(model, torch.randn(2, 3, 32, 48), torch.tensor([0, 1]))
    assert relevance.shape == (2, 4, 6)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('queries', [1, 7, 20])
@pytest.mark.parametrize('chunk', [1, 2 * 3 * 20 * 20, 2**20])
def test_one_layer_is_its_formula(monkeypatch, dtype, queries, chunk):
    """In bfloat16 as well, products are not rounded: equal to float64 arithmetic on the same numbers."""
    monkeypatch.setattr(relevance_module, '_CHUNK', {True: chunk, False: chunk})
    q, k, v, grad = (torch.randn(5, 20, 3, 8).transpose(1, 2).to(dtype) for _ in range(4))
    row = torch.rand(5, queries)
    result = relevance_module._through_layer(row, AttentionCall(q, k, v, None, 0.3), grad)
    attention = (q.double() @ k.double().transpose(-2, -1) * 0.3).softmax(dim=-1)
    layer = (attention * (grad.double() @ v.double().transpose(-2, -1))).clamp(min=0).mean(dim=1)[:, :queries]
    expected = torch.stack([r @ one for r, one in zip(row.double(), layer)])
    torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('chunk', [1, 2**20])
@pytest.mark.parametrize('shape', [(1, 3, 9, 9), (5, 1, 1, 9), (9, 9)])
@pytest.mark.parametrize('bias', ['bias', 'mask'])
def test_a_bias_or_mask_is_part_of_attention(monkeypatch, bias, shape, chunk):
    """Relative positions (per head), padding (per image and key)."""
    monkeypatch.setattr(relevance_module, '_CHUNK', {True: chunk, False: chunk})
    q, k, v, grad = torch.randn(4, 5, 3, 9, 8)
    values = torch.randn(shape) if bias == 'bias' else torch.rand(shape) < 0.7
    values = values if bias == 'bias' else values.index_fill(-1, torch.tensor([0]), True)  # a key that all see
    row = torch.rand(5, 4)
    result = relevance_module._through_layer(row, AttentionCall(q, k, v, None, 0.3, values), grad)
    added = values.double() if bias == 'bias' else torch.zeros(shape).double().masked_fill(~values, float('-inf'))
    attention = (q.double() @ k.double().mT * 0.3 + added).softmax(dim=-1)
    layer = (attention * (grad.double() @ v.double().mT)).clamp(min=0).mean(dim=1)[:, :4]
    torch.testing.assert_close(result.double(), torch.einsum('bt,btl->bl', row.double(), layer), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('bias', [torch.randn(1, 3, 9, 9), torch.rand(9, 9) < 0.9])
def test_hidden_keys_beside_a_bias_or_mask(bias):
    q, k, v = torch.randn(3, 2, 3, 9, 8)
    bias = bias.index_fill(-1, torch.tensor([0]), True) if bias.dtype == torch.bool else bias
    hidden = torch.rand(2, 7) < 0.5  # of two prefix tokens and seven patches
    with mask_keys(torch.nn.Identity(), hidden):
        found = F.scaled_dot_product_attention(q, k, v, bias)
    added = torch.zeros(9, 9).masked_fill(~bias, float('-inf')) if bias.dtype == torch.bool else bias
    scores = q @ k.mT / 8**0.5 + added
    for image in range(2):
        scores[image, :, :, 2:][:, :, hidden[image]] = float('-inf')
    torch.testing.assert_close(found, scores.softmax(dim=-1) @ v)


def test_model_without_a_backbone():
    with pytest.raises(TypeError, match='a classifier with a backbone, .* but a Linear has none'):
        relevance_map(torch.nn.Linear(2, 2), torch.zeros(1, 3, 4, 4), torch.zeros(1, dtype=torch.int64))
