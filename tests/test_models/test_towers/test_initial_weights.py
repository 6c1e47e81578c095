"""``init_cfg`` acts when the model is built, and weights that do not fit are named."""

import re

import mmengine.runner
import pytest
import timm
import torch
from mmpretrain.registry import MODELS
from towers import MMPRETRAIN, TIMM, enlarge

from mmcfmask.errors import ConfigError, MissingFileError
from mmcfmask.models.towers import initial_weights
from mmcfmask.models.towers.initial_weights import check_file, initialise, load_weights, pretrained_cfgs

VIT = dict(type='VisionTransformer', **MMPRETRAIN)
RESNET = dict(type='ResNet', depth=18, base_channels=8)


def pretrained(path, **options):
    return dict(type='Pretrained', checkpoint=str(path), **options)


def published(name='vit_base_patch16_224', **options):
    """A ViT under the names that DINO, MAE, BEiT and DeiT publish, which are timm's."""
    model = timm.create_model(name, **{**TIMM, 'mlp_ratio': 2, **options})
    return enlarge(model).eval()


def build(backbone, **options):
    torch.manual_seed(4)
    return MODELS.build(
        dict(
            type='CounterfactualClassifier',
            backbone=backbone,
            head=dict(type='CLIPDistillHead', num_classes=3),
            teacher=dict(type='OpenCLIPTeacher'),
            losses=[dict(type='Distillation')],
            **options,
        )
    )


def same(state, other):
    return state.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in state.items())


@pytest.mark.parametrize('options', [{}, dict(prefix='backbone.')])
@pytest.mark.parametrize('in_a_list', [False, True])
def test_student_and_teacher_have_the_weights_of_the_file(options, in_a_list, tmp_path):
    source = MODELS.build(RESNET)
    state = {f'backbone.{name}': value for name, value in source.state_dict().items()}
    torch.save(dict(state_dict={**state, 'head.fc.weight': torch.ones(3, 3)}, meta={}), tmp_path / 'resnet.pth')
    init_cfg = pretrained(tmp_path / 'resnet.pth', **options)
    if in_a_list:
        init_cfg = [dict(type='Kaiming', layer='Conv2d'), init_cfg]
    model = build(dict(RESNET, init_cfg=init_cfg))
    assert same(model.backbone.state_dict(), source.state_dict())
    model.init_weights()  # as a Runner does before the training
    assert same(model.backbone.state_dict(), source.state_dict())
    assert same(model.teacher.backbone.state_dict(), source.state_dict())


@pytest.mark.parametrize('backbone', [VIT, RESNET, dict(type='TIMMBackbone', model_name='resnet18')])
def test_random_weights_are_drawn_once(backbone):
    model = build(backbone)
    model.init_weights()
    assert same(model.backbone.state_dict(), model.teacher.backbone.state_dict())


LAYOUTS = {
    'DINO': (lambda state: state, VIT, {}),
    'DINO, the whole training': (
        lambda state: dict(
            student={f'module.backbone.{name}': value * 0 for name, value in state.items()},
            teacher={f'backbone.{name}': value for name, value in state.items()} | {'head.mlp.0.weight': torch.ones(1)},
            epoch=1,
        ),
        VIT,
        {},
    ),
    'MAE': (
        lambda state: dict(
            model={**state, 'mask_token': torch.zeros(1, 1, 8), 'decoder_blocks.0.norm1.weight': torch.ones(8)}
        ),
        VIT,
        {},
    ),
    'DINOv2': (
        lambda state: {**state, 'mask_token': torch.zeros(1, 32)},
        dict(VIT, layer_scale_init_value=1e-5),
        dict(init_values=1.0),
    ),
    'DeiT': (lambda state: dict(model=state), VIT, {}),
    'DINO in timm': (
        lambda state: state,
        dict(type='TIMMBackbone', model_name='vit_base_patch16_224', mlp_ratio=2),
        {},
    ),
}


@pytest.mark.parametrize('layout', LAYOUTS)
def test_published_layouts_give_the_published_features(layout, tmp_path):
    wrap, backbone, options = LAYOUTS[layout]
    model = published(**options)
    torch.save(wrap(model.state_dict()), tmp_path / 'published.pth')
    if backbone['type'] == 'TIMMBackbone':
        backbone = {**TIMM, **backbone}
    ours = build(dict(backbone, init_cfg=pretrained(tmp_path / 'published.pth'))).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(ours.extract_feat(images)[-1], model(images), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(ours.teacher(images), model(images), rtol=1e-4, atol=1e-4)


def test_beit_gives_the_published_features(tmp_path):
    model = published('beit_base_patch16_224', init_values=0.5)
    torch.save(dict(model=model.state_dict()), tmp_path / 'beit.pth')
    backbone = dict(type='BEiTViT', use_rel_pos_bias=True, use_abs_pos_emb=False, layer_scale_init_value=0.1)
    ours = build(dict(backbone, **MMPRETRAIN, init_cfg=pretrained(tmp_path / 'beit.pth'))).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(ours.extract_feat(images)[-1], model(images), rtol=1e-4, atol=1e-4)


def test_position_embeddings_of_another_image_size(tmp_path):
    torch.save(published(img_size=64).state_dict(), tmp_path / 'large.pth')
    model = build(dict(VIT, init_cfg=pretrained(tmp_path / 'large.pth')))
    assert model.backbone.pos_embed.shape == (1, 17, 32)
    assert same(model.backbone.state_dict(), model.teacher.backbone.state_dict())


def test_the_norm_behind_a_mean_is_named(tmp_path, monkeypatch):
    """MAE has no norm behind a mean of tokens."""
    said = []
    monkeypatch.setattr(initial_weights, 'print_log', lambda text, *args, **kwargs: said.append(text))
    torch.save(published().state_dict(), tmp_path / 'mae.pth')
    build(dict(VIT, out_type='avg_featmap', final_norm=False, init_cfg=pretrained(tmp_path / 'mae.pth')))
    assert re.search(r'mae.pth\': ln2.weight, ln2.bias are not in the file and start as they are', said[0])
    assert re.search(r'mae.pth\': ln1.weight, ln1.bias of the file are left out', said[1])


def test_a_neck_takes_its_own_weights(tiny_pretrained, tmp_path):
    from mmcfmask.models.towers.conversion import mmpretrain_config, open_clip_to_mmpretrain

    tower = MODELS.build(dict(type='OpenCLIPBackbone', model_name='tiny-vit', pretrained=tiny_pretrained)).visual.eval()
    torch.save(open_clip_to_mmpretrain(tower.state_dict()), tmp_path / 'clip.pth')
    config = mmpretrain_config('tiny-vit')
    for part in config.values():
        part['init_cfg'] = pretrained(tmp_path / 'clip.pth')
    model = build(**config).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        for features in model.extract_feat(images)[-1], model.teacher(images):
            torch.testing.assert_close(features, tower(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    'change, message',
    [
        (
            lambda state: {name: value for name, value in state.items() if 'layer4' not in name},
            r"backbone.init_cfg.checkpoint='.*' lacks 25 weights of ResNet: layer4.0.conv1.weight, .* It holds conv1",
        ),
        (
            lambda state: {name: value for name, value in state.items() if 'running' not in name},
            r'lacks 42 weights of ResNet: bn1.running_mean',
        ),
        (
            lambda state: {**state, 'conv1.weight': torch.ones(2, 3, 7, 7)},
            r'does not fit ResNet: size mismatch for conv1.weight: .*\[2, 3, 7, 7\]',
        ),
        (lambda state: {**state, 'conv1.weight': state['conv1.weight'] * float('nan')}, 'conv1.weight holds .* finite'),
        (lambda state: dict(epoch=3), 'is not a state dict: it holds the keys epoch'),
        (
            lambda state: {'visual.conv1.bias': torch.ones(1)},
            'lacks 105 weights of ResNet: .* It holds visual.conv1.bias',
        ),
    ],
)
def test_weights_that_do_not_fit(change, message, tmp_path):
    torch.save(change(MODELS.build(RESNET).state_dict()), tmp_path / 'resnet.pth')
    with pytest.raises(ConfigError, match=message):
        build(dict(RESNET, init_cfg=pretrained(tmp_path / 'resnet.pth')))


def test_a_prefix_that_the_file_does_not_have(tmp_path):
    torch.save(MODELS.build(RESNET).state_dict(), tmp_path / 'resnet.pth')
    with pytest.raises(ConfigError, match="It holds nothing below 'tower.'"):
        build(dict(RESNET, init_cfg=pretrained(tmp_path / 'resnet.pth', prefix='tower.')))


def test_files_that_are_not_there(monkeypatch):
    with pytest.raises(
        MissingFileError, match="model.backbone.init_cfg.checkpoint='gone.pth': the file does not exist"
    ):
        build(dict(RESNET, init_cfg=pretrained('gone.pth')))
    check_file('https://host/file.pth', 'key')
    source = MODELS.build(RESNET)
    asked = []

    def load(path, map_location):
        asked.append(path)
        return dict(state_dict=source.state_dict())

    monkeypatch.setattr(mmengine.runner.CheckpointLoader, 'load_checkpoint', load)
    model = build(dict(RESNET, init_cfg=pretrained('torchvision://resnet18')))
    assert asked == ['torchvision://resnet18'] and same(model.backbone.state_dict(), source.state_dict())

    def fail(path, map_location):
        raise OSError('no network')

    monkeypatch.setattr(mmengine.runner.CheckpointLoader, 'load_checkpoint', fail)
    with pytest.raises(MissingFileError, match=r'cannot be loaded \(no network\): download the file and give its path'):
        build(dict(RESNET, init_cfg=pretrained('torchvision://resnet18')))


def test_what_is_not_of_mmengine_is_left_alone():
    layer = torch.nn.Linear(2, 2)
    before = layer.weight.clone()
    initialise(layer, 'model.neck')
    assert torch.equal(layer.weight, before)
    with pytest.raises(ConfigError, match=r"init_cfg=\{'type': 'Pretrained'\} names no file: write dict\(type="):
        pretrained_cfgs([dict(type='Kaiming'), dict(type='Pretrained')])
    assert pretrained_cfgs(None) == [] == pretrained_cfgs(dict(type='Kaiming'))


def test_a_file_may_hold_more(tmp_path):
    layer = torch.nn.Linear(2, 3)
    torch.save(dict(layer.state_dict(), other=torch.ones(1)), tmp_path / 'layer.pth')
    other = torch.nn.Linear(2, 3)
    load_weights(other, str(tmp_path / 'layer.pth'), 'key')
    assert same(other.state_dict(), layer.state_dict())
