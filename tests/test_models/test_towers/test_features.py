"""Any backbone in a classifier: the width of its features, its neck, and a training step."""

import numpy as np
import pytest
import timm
import torch
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from PIL import Image
from towers import MMPRETRAIN, TIMM

from mmcfmask.errors import ConfigError
from mmcfmask.models.maker import PUBLISHED_VALUES
from mmcfmask.models.towers.features import build_tower, known_image_size

SWIN = dict(arch=dict(embed_dims=8, depths=[1] * 4, num_heads=[1] * 4), img_size=64, patch_size=2, window_size=4)
VIT = {key: value for key, value in TIMM.items() if key != 'num_classes'}
HIDES, NOT = True, False
FAMILIES = {  # the backbone, whether it needs a neck, the width of its features, whether patches can be hidden
    'ResNet-50': (dict(type='ResNet', depth=50, base_channels=4), True, 128, NOT),
    'ConvNeXt': (dict(type='ConvNeXt', arch=dict(depths=[1] * 4, channels=[4, 8, 8, 16])), False, 16, NOT),
    'ConvNeXt as a map': (
        dict(type='ConvNeXt', arch=dict(depths=[1] * 4, channels=[4, 8, 8, 16]), gap_before_final_norm=False),
        True,
        16,
        NOT,
    ),
    'Swin': (dict(type='SwinTransformer', **SWIN), True, 64, NOT),
    'ViT': (dict(type='VisionTransformer', **MMPRETRAIN), False, 32, HIDES),
    'ViT as a map': (dict(type='VisionTransformer', out_type='featmap', **MMPRETRAIN), True, 32, HIDES),
    'MAE': (dict(type='VisionTransformer', out_type='avg_featmap', final_norm=False, **MMPRETRAIN), False, 32, HIDES),
    'distilled DeiT': (dict(type='DistilledVisionTransformer', **MMPRETRAIN), False, 32, HIDES),
    'BEiT': (dict(type='BEiTViT', **MMPRETRAIN), False, 32, HIDES),
    'EVA02': (dict(type='ViTEVA02', **MMPRETRAIN), False, 32, HIDES),
    'several maps': (dict(type='ResNet', depth=18, base_channels=8, out_indices=(2, 3)), True, 64, NOT),
    'timm: class token': (dict(type='TIMMBackbone', model_name='vit_base_patch16_224', **VIT), False, 32, HIDES),
    'timm: mean': (dict(type='TIMMBackbone', model_name='vit_medium_patch16_gap_256', **VIT), False, 32, HIDES),
    'timm: attention pool': (
        dict(type='TIMMBackbone', model_name='vit_base_patch16_siglip_224', **VIT),
        False,
        32,
        HIDES,
    ),
    'timm: ResNet': (
        dict(type='TIMMBackbone', model_name='resnet18', channels=(4, 4, 8, 16), stem_width=4),
        False,
        16,
        NOT,
    ),
    'timm: Swin': (
        dict(
            type='TIMMBackbone',
            model_name='swin_tiny_patch4_window7_224',
            img_size=64,
            window_size=4,
            embed_dim=8,
            depths=(1,) * 4,
            num_heads=(1,) * 4,
        ),
        False,
        64,
        NOT,
    ),
}


@pytest.fixture
def images(tmp_path, monkeypatch):
    """A data set of two classes of noise."""
    monkeypatch.setenv('MMCFMASK_CACHE', str(tmp_path / 'cache'))
    rng = np.random.default_rng(0)
    for name in ('cat', 'dog'):
        (tmp_path / 'images' / name).mkdir(parents=True)
        for index in range(3):
            noise = rng.integers(0, 256, (70, 70, 3), dtype=np.uint8)
            Image.fromarray(noise).save(tmp_path / 'images' / name / f'{index}.png')
    return tmp_path / 'images'


def dataset(root, size):
    pipeline = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=size), dict(type='PackInputs')]
    return dict(type='FolderDataset', data_root=str(root), pipeline=pipeline)


def classifier(backbone, head=None, losses=('CounterfactualDistillation',), **options):
    torch.manual_seed(1)
    return MODELS.build(
        dict(
            type='CounterfactualClassifier',
            backbone=backbone,
            head=dict(type='CLIPDistillHead', num_classes=2, **(head or {})),
            teacher=dict(type='OpenCLIPTeacher') if losses else None,
            losses=[dict(type=loss) for loss in losses],
            data_preprocessor=dict(mean=[120.0] * 3, std=[60.0] * 3),
            **options,
        )
    ).train()


@pytest.mark.parametrize('name', FAMILIES)
def test_every_family_trains_from_class_means(name, images):
    backbone, pooled, width, hides = FAMILIES[name]
    size = (64, 64) if not hides else (32, 32)
    model = classifier(backbone, dict(class_weights=dict(type='prototype', dataset=dataset(images, size), per_class=2)))
    assert (type(model.neck).__name__ == 'GlobalAveragePooling') == pooled
    assert model.head.fc.weight.shape == (2, width)
    torch.testing.assert_close(model.head.fc.weight.norm(dim=1), torch.full((2,), 100.0))
    model.init_weights()  # as a Runner does before the training
    batch = torch.randn(4, 3, *size), [DataSample().set_gt_label(label) for label in (0, 1, 1, 0)]
    maker = model.data_preprocessor
    for (maker.mask, maker.fill), maker.value in PUBLISHED_VALUES.items():
        if maker.fill == 'none' and not hides:
            with pytest.raises(ConfigError, match=r'fill="none" hides patches, but .* is no plain transformer'):
                model(*batch, mode='loss')
            continue
        losses = model(*batch, mode='loss')
        assert losses['loss_distill'] < 1e-9, (maker.mask, maker.fill)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    sum(losses.values()).backward()
    assert all(part.grad.isfinite().all() for part in model.backbone.parameters() if part.grad is not None)
    optimizer.step()
    assert model(*batch, mode='loss')['loss_distill'] > 0


@pytest.mark.parametrize('start', ['linear_probe', 'file', 'random'])
def test_heads_of_a_backbone_without_texts(start, images, tmp_path):
    torch.save(torch.randn(2, 64), tmp_path / 'head.pt')
    parts = {
        part: dict(dataset(images, (64, 64)), holdout=dict(fraction=0.4, part=part)) for part in ('train', 'held_out')
    }
    weights = dict(
        linear_probe=dict(
            type='linear_probe', dataset=parts['train'], held_out=parts['held_out'], strengths=[0.1, 1.0, 10.0]
        ),
        file=dict(type='file', path=str(tmp_path / 'head.pt')),
        random=None,
    )[start]
    model = classifier(dict(type='ResNet', depth=18, base_channels=8), dict(class_weights=weights)).eval()
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 2)
    if start == 'file':
        expected = torch.nn.functional.normalize(torch.load(tmp_path / 'head.pt'), dim=1)
        torch.testing.assert_close(model.head.fc.weight, 100 * expected)


def test_texts_need_the_tower_of_a_clip():
    text = dict(type='text', classnames=['cat', 'dog'], templates=['a {}'])
    with pytest.raises(ConfigError, match='ResNet has no text tower: name one with model_name='):
        classifier(dict(type='ResNet', depth=18, base_channels=8), dict(class_weights=text))


@pytest.mark.parametrize(
    'name, options',
    [
        ('vit_base_patch16_224', VIT),
        ('vit_base_patch16_siglip_224', VIT),
        ('convnext_atto', dict(dims=(4, 4, 8, 8), depths=(1,) * 4)),
    ],
)
def test_features_are_those_of_timm(name, options):
    tower = build_tower(dict(type='TIMMBackbone', model_name=name, **options))
    tower.eval()
    model = timm.create_model(name, num_classes=0, **options).eval()
    model.load_state_dict(tower.timm_model.state_dict())
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(tower(images)[0], model(images), rtol=0, atol=0)


def test_a_neck_of_the_config_is_kept():
    neck = dict(type='LinearNeck', in_channels=64, out_channels=8, gap_dim=2, norm_cfg=None, act_cfg=None)
    model = classifier(dict(type='ResNet', depth=18, base_channels=8), neck=neck)
    assert type(model.neck).__name__ == 'LinearNeck' and model.head.in_channels == 8
    assert model.teacher(torch.randn(2, 3, 64, 64)).shape == (2, 8)


def test_size_of_the_images():
    assert known_image_size(build_tower(dict(type='VisionTransformer', **MMPRETRAIN))) == (32, 32)
    assert known_image_size(build_tower(FAMILIES['timm: Swin'][0])) == (64, 64)
    assert known_image_size(torch.nn.Linear(1, 1)) is None


@pytest.mark.parametrize(
    'backbone, options, message',
    [
        (
            dict(type='VisionTransformer', out_type='raw', **MMPRETRAIN),
            {},
            r"model.backbone: VisionTransformer returns \(1, 17, 32\) for one image, .* 'cls_token' or 'avg_featmap'",
        ),
        (
            dict(type='SwinTransformer', **{**SWIN, 'window_size': 60}),
            {},
            'model.backbone: SwinTransformer cannot take an image of 224x224 pixels: The input shape .* window size',
        ),
        (
            dict(type='VisionTransformer', **MMPRETRAIN),
            dict(neck=dict(type='GlobalAveragePooling')),
            r'model.neck: GlobalAveragePooling cannot take \(1, 32\), which the backbone returns for one image',
        ),
        (
            dict(type='Conformer', arch=dict(embed_dims=32, channel_ratio=1, num_heads=4, depths=12)),
            {},
            r'model.backbone: Conformer returns several features of one image, \(1, 256\) and \(1, 32\)',
        ),
        (
            dict(type='ResNet', depth=18, base_channels=8),
            dict(head=dict(in_channels=512)),
            'model.head.in_channels=512, but the image features have width 64: leave in_channels out',
        ),
    ],
)
def test_what_gives_no_feature(backbone, options, message):
    with pytest.raises(ConfigError, match=message):
        classifier(backbone, **options)
