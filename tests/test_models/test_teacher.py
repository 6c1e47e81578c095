import torch
from mmpretrain.registry import MODELS
from torch import nn

from mmcfmask.models import OpenCLIPTeacher


def teacher(pretrained, name='tiny-vit'):
    teacher = OpenCLIPTeacher()
    teacher.start_from(MODELS.build(dict(type='OpenCLIPBackbone', model_name=name, pretrained=pretrained)))
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
    assert features.dtype == torch.float64 and {parameter.dtype for parameter in rounding.parameters()} == {torch.float64}


def test_moving_keeps_what_was_rounded(tiny_pretrained):
    rounding = teacher(tiny_pretrained)
    with autocast():
        rounding(torch.randn(2, 3, 32, 32))
    rounding.to('cpu')
    assert rounding._rounded == torch.bfloat16
