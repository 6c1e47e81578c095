import copy

import pytest
import torch
import torch.nn.functional as F
from mmpretrain.registry import DATASETS, MODELS
from mmpretrain.structures import DataSample

from mmcfmask.counterfactual.reference import explicit_relevance
from mmcfmask.models.inference import relevance_crop
from mmcfmask.models.inference.relevance_crop import predict_with_crop


def build(pretrained, **kwargs):
    model = MODELS.build(
        dict(
            type='CounterfactualClassifier',
            backbone=dict(type='OpenCLIPBackbone', model_name='tiny-vit', pretrained=pretrained),
            head=dict(type='CLIPDistillHead', num_classes=5),
            **kwargs,
        )
    )
    torch.manual_seed(2)
    torch.nn.init.normal_(model.head.fc.weight, std=5)
    return model.eval()


def slow_crop(model, image, side):
    """Mean logits of one image and its crop, by cutting pixels out where the zoom falls on whole ones."""
    double = copy.deepcopy(model)
    double._set_frozen(knn_gate=None)  # a copy shares it
    double.double()
    with torch.no_grad():
        first = double(image[None].double())[0]
    relevance = explicit_relevance(
        double.backbone.visual,
        lambda z: double.head.fc(F.normalize(z, dim=-1)),
        image[None].double(),
        first.argmax()[None],
    )[0]
    mass = (relevance**2).sum()
    size = image.shape[-1]
    starts = []
    for axis in (1, 0):  # rows' place, then columns'
        place = (
            sum(float((relevance.select(1 - axis, i) ** 2).sum()) * (i + 0.5) for i in range(4))
            / float(mass)
            / 4
            * size
        )
        starts.append(min(max(place - side * size / 2, 0), size - side * size))
    rows, cols = ((torch.arange(size) + 0.5) * side + start - 0.5 for start in starts)
    zoomed = torch.empty_like(image, dtype=torch.float64)

    def pixel(channel, row, col):
        return float(image[channel, min(max(row, 0), size - 1), min(max(col, 0), size - 1)])

    for i, row in enumerate(rows.tolist()):
        for j, col in enumerate(cols.tolist()):
            top, left = int(row // 1), int(col // 1)
            a, b = row - top, col - left
            for channel in range(3):
                zoomed[channel, i, j] = (1 - a) * (
                    (1 - b) * pixel(channel, top, left) + b * pixel(channel, top, left + 1)
                ) + a * ((1 - b) * pixel(channel, top + 1, left) + b * pixel(channel, top + 1, left + 1))
    with torch.no_grad():
        return (first + double(zoomed[None])[0]) / 2


def test_equals_the_slow_one(tiny_pretrained):
    model = build(tiny_pretrained, crop_scale=0.7)
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        samples = model.predict(images, [DataSample() for _ in images])
    for image, sample in zip(images, samples):
        expected = slow_crop(model, image, 0.7)
        torch.testing.assert_close(sample.pred_logits.double(), expected, rtol=5e-3, atol=5e-3)
        assert (sample.pred_logits.double() - model(image[None])[0]).abs().max() > 0.05  # not the logits without a crop
        assert int(sample.pred_label) == int(expected.argmax())


def test_an_image_is_not_changed_by_others_nor_by_inference_mode(tiny_pretrained, monkeypatch):
    monkeypatch.setattr(relevance_crop, 'IMAGES_AT_ONCE', 2)
    model = build(tiny_pretrained)
    images = torch.randn(3, 3, 32, 32)
    both = predict_with_crop(model.backbone, model, images, 0.9)
    for image, expected in zip(images, both):
        with torch.inference_mode():
            alone = predict_with_crop(model.backbone, model, image[None].clone(), 0.9)
        torch.testing.assert_close(alone[0], expected, rtol=1e-4, atol=1e-4)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_zero_shot_model_behind_a_gate_crops_too(tiny_pretrained, tmp_path, monkeypatch):
    monkeypatch.setenv('MMCFMASK_CACHE', str(tmp_path))
    pipeline = [dict(type='Resize', scale=32), dict(type='PackInputs')]
    sets = {
        name: dict(type='ShapesDataset', split=split, size=50, pipeline=pipeline)
        for name, split in (('dataset', 'train'), ('held_out', 'val'))
    }
    torch.manual_seed(1)
    model = MODELS.build(
        dict(
            type='CounterfactualClassifier',
            backbone=dict(type='OpenCLIPBackbone', model_name='tiny-vit', pretrained=tiny_pretrained),
            head=dict(type='CLIPDistillHead', num_classes=10),
            knn_gate=dict(**sets, k=3, level=0.3),
            crop_scale=0.8,
        )
    ).eval()
    zero_shot = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    noise = torch.randn(6, 3, 32, 32)
    images = torch.cat(
        [
            noise,
            model.data_preprocessor(
                dict(inputs=[item['inputs'] for item in DATASETS.build(sets['dataset'])][:6], data_samples=None)
            )['inputs'],
        ]
    )
    with torch.no_grad():
        samples = model.predict(images, [DataSample() for _ in images])
    assert 0 < sum(sample.answered_by_zero_shot for sample in samples) < 12  # both kinds are there
    for image, sample in zip(images, samples):
        one = zero_shot if sample.answered_by_zero_shot else model
        torch.testing.assert_close(sample.pred_logits.double(), slow_crop(one, image, 0.8), rtol=5e-3, atol=5e-3)

    model.knn_gate.thresholds = dict.fromkeys(model.knn_gate.thresholds, -1.0)  # the zero-shot model answers for none
    with torch.no_grad():
        samples = model.predict(images, [DataSample() for _ in images])
    torch.testing.assert_close(samples[0].pred_logits.double(), slow_crop(model, images[0], 0.8), rtol=5e-3, atol=5e-3)


@pytest.mark.parametrize('side', [0, 1, 1.5, True, '0.9'])
def test_side_out_of_range(tiny_pretrained, side):
    with pytest.raises(
        ValueError, match=r'crop_scale is the side of the crop relative to the image, in \(0, 1\), but it is'
    ):
        build(tiny_pretrained, crop_scale=side)
