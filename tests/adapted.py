"""Towers with adapters, for tests of every kind of them."""

import torch
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample

import mmcfmask  # noqa: F401
from mmcfmask.models.towers.adapters.base import UP

TOWERS = [
    ('open_clip', 'tiny-vit'),
    ('open_clip', 'tiny-vit-quickgelu'),
    *[('open_clip', name) for name in ('tiny-coca', 'tiny-mean', 'tiny-map-pool', 'tiny-swin', 'tiny-convnext')],
    *[('mmpretrain', name) for name in ('VisionTransformer', 'BEiTViT')],
]


def draw_adapters(tower, size=0.3):
    """Adapters as after a training."""
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, weight in tower.named_parameters():
            if name.endswith(UP):
                weight.copy_(size * torch.randn(weight.shape, generator=generator, dtype=torch.double))
    return tower


def features(tower, images):
    return tower(images)[-1]


def classifier(tower):
    """Classes by single features."""
    model = MODELS.build(
        dict(type='mmpretrain.ImageClassifier', backbone=dict(type='mmpretrain.LeNet5'), head=dict(type='ClsHead'))
    )
    model.backbone = tower
    model.forward = lambda images: features(tower, images)[:, :4]
    return model.eval()


def model(pretrained, name='tiny-vit', teacher=True, **backbone):
    torch.manual_seed(2)
    return MODELS.build(
        dict(
            type='CounterfactualClassifier',
            backbone=dict(type='OpenCLIPBackbone', model_name=name, pretrained=pretrained, **backbone),
            head=dict(type='CLIPDistillHead', num_classes=5),
            teacher=dict(type='OpenCLIPTeacher') if teacher else None,
            losses=[dict(type='CounterfactualDistillation')] if teacher else [],
        )
    ).train()


def step(student):
    torch.manual_seed(6)
    samples = [DataSample().set_gt_label(label) for label in (0, 3, 3, 1)]
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(3)).to(student.head.fc.weight.dtype)
    return student(images, samples, mode='loss')
