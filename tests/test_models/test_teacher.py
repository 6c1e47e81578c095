import pytest
import torch
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from torch import nn

from mmcfmask.counterfactual.reference import explicit_features
from mmcfmask.models import OpenCLIPTeacher


def teacher(pretrained, name='tiny-vit', **kwargs):
    teacher = OpenCLIPTeacher(**kwargs)
    teacher.setup(MODELS.build(dict(type='OpenCLIPBackbone', model_name=name, pretrained=pretrained)))
    return teacher


def autocast():
    return torch.autocast('cpu', dtype=torch.bfloat16)


def test_rounded_weights_give_the_features_that_autocast_gives(tiny_pretrained):
    exact, rounding = teacher(tiny_pretrained), teacher(tiny_pretrained)
    exact.exact = True
    images = torch.randn(4, 3, 32, 32)
    before = exact(images)
    assert torch.equal(rounding(images), before)  # nothing is rounded without autocast
    with autocast():
        expected, features = exact(images), rounding(images)
    assert torch.equal(features, expected) and not torch.equal(features, before)
    assert {parameter.dtype for parameter in exact.parameters()} == {torch.float32}
    for module in rounding.backbone.modules():
        for parameter in module.parameters(recurse=False):
            low = isinstance(module, (nn.Linear, nn.Conv2d, nn.MultiheadAttention))
            assert parameter.dtype == (torch.bfloat16 if low else torch.float32)
    assert torch.equal(rounding(images), expected)  # and it stays so where autocast ends


def test_rounding_ends_with_a_change_of_dtype(tiny_pretrained):
    rounding = teacher(tiny_pretrained)
    images = torch.randn(2, 3, 32, 32)
    with autocast():
        rounding(images)
    rounding.double()
    features = rounding(images.double())
    assert features.dtype == torch.float64 and {parameter.dtype for parameter in rounding.parameters()} == {
        torch.float64
    }


def test_moving_keeps_what_was_rounded(tiny_pretrained):
    rounding = teacher(tiny_pretrained)
    with autocast():
        rounding(torch.randn(2, 3, 32, 32))
    rounding.to('cpu')
    assert rounding._rounded == torch.bfloat16


def test_precision_of_its_own(tiny_pretrained):
    """bfloat16 features without autocast around: those that autocast gives, near those of the plain float32 tower."""
    low = teacher(tiny_pretrained, precision='bf16')
    images = torch.randn(4, 3, 32, 32)
    exact = explicit_features(low.backbone.visual, images)
    with autocast():
        expected = teacher(tiny_pretrained)(images)
    features = low(images)
    assert torch.equal(features, expected)
    assert 0 < (features - exact).norm() < 0.03 * exact.norm()
    assert low.backbone.visual.transformer.resblocks[0].mlp.c_fc.weight.dtype == torch.bfloat16


def test_precision_leaves_weights_that_others_read(tiny_pretrained):
    low, exact = teacher(tiny_pretrained, precision='bf16'), teacher(tiny_pretrained, precision='bf16')
    exact.exact = True
    images = torch.randn(4, 3, 32, 32)
    assert torch.equal(low(images), exact(images))
    assert {parameter.dtype for parameter in exact.parameters()} == {torch.float32}


@pytest.mark.parametrize('distill', ['feature', 'logits'])
def test_student_of_a_low_precision_teacher_trains_in_float32(tiny_pretrained, distill):
    model = MODELS.build(
        dict(
            type='CounterfactualClassifier',
            backbone=dict(type='OpenCLIPBackbone', model_name='tiny-vit', pretrained=tiny_pretrained),
            head=dict(type='CLIPDistillHead', num_classes=5, distill=distill),
            teacher=dict(type='OpenCLIPTeacher', precision='bf16'),
            losses=[dict(type='CounterfactualDistillation')],
        )
    ).train()
    losses = model(torch.randn(4, 3, 32, 32), [DataSample().set_gt_label(1) for _ in range(4)], mode='loss')
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    sum(losses.values()).backward()
    assert {parameter.grad.dtype for parameter in model.parameters()} == {torch.float32}


def test_unknown_precision():
    with pytest.raises(ValueError, match="no precision='fp8': choose 'bf16'"):
        OpenCLIPTeacher(precision='fp8')
