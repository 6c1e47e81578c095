"""The configs of configs/towers: the right weights, images as these weights need them, and a short file."""

from pathlib import Path

import open_clip
import pytest
import torch
from mmengine.config import Config
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from open_clip.transform import PreprocessCfg, merge_preprocess_dict

from mmcfmask.engine.config import load_config

FOLDER = Path(__file__).parents[1] / 'configs' / 'towers'
NAMES = sorted(path.stem.removeprefix('cfmask_') for path in FOLDER.glob('cfmask_*.py'))
DINO = 'dinov2_b14'


def test_towers_are_those_that_people_start_from():
    assert NAMES == [
        'convnext_b', DINO, 'eva02_b16', 'mobileclip2_s0', 'pe_core_b16', 'rn50', 'siglip2_b16', 'vitbigg14',
        'vith14', 'vitl14_336',
    ]  # fmt: skip


@pytest.mark.parametrize('name', [name for name in NAMES if name != DINO])
@pytest.mark.parametrize('method', ['cfmask', 'ft'])
def test_weights_and_images_are_those_of_open_clip(method, name):
    cfg = load_config(str(FOLDER / f'{method}_{name}.py'))
    backbone = cfg.model.backbone
    assert backbone.pretrained in open_clip.list_pretrained_tags_by_model(backbone.model_name)
    size = open_clip.get_model_config(backbone.model_name)['vision_cfg']['image_size']
    assert backbone.image_size == size
    loaders = [cfg.train_dataloader, cfg.val_dataloader, *cfg.test_dataloader.values()]
    for loader in loaders:
        assert {step.image_size for step in loader.dataset.pipeline if 'image_size' in step} == {backbone.image_size}
    tag = open_clip.get_pretrained_cfg(backbone.model_name, backbone.pretrained)
    wanted = merge_preprocess_dict(PreprocessCfg(), tag)
    model = build(cfg)
    for key in ('mean', 'std'):
        got = getattr(model.data_preprocessor, key).flatten() / 255
        torch.testing.assert_close(got, torch.tensor(wanted[key]), rtol=0, atol=1e-6)


def build(cfg):
    """The model of a config with a tiny tower in place of its own, which still has its name and its tag."""
    tiny = MODELS.build(dict(type='OpenCLIPBackbone', model_name='tiny-vit'))
    tiny.model_name, tiny.pretrained = cfg.model.backbone.model_name, cfg.model.backbone.pretrained
    cfg.model.update(backbone=tiny)
    cfg.model.head.class_weights = None
    return MODELS.build(cfg.model)


@pytest.mark.parametrize('name', NAMES)
def test_both_methods_train_the_same_tower_on_the_same_images(name):
    ours, plain = (load_config(str(FOLDER / f'{method}_{name}.py')) for method in ('cfmask', 'ft'))
    assert ours.model.backbone == plain.model.backbone and ours.model.head == plain.model.head
    assert ours.train_dataloader == plain.train_dataloader
    assert 512 % ours.train_dataloader.batch_size == 0 and ours.total_batch_size == 512
    assert [term.type for term in ours.model.losses] == ['CounterfactualDistillation'] and 'losses' not in plain.model


@pytest.mark.parametrize('path', sorted(FOLDER.glob('*.py')), ids=lambda path: path.stem)
def test_files_are_short(path):
    assert len(path.read_text().splitlines()) < (13 if DINO in path.name else 10)


@pytest.mark.parametrize('name', ['rn50', 'mobileclip2_s0'])
def test_small_towers_train(name):
    cfg = load_config(str(FOLDER / f'cfmask_{name}.py'), {'model.head.num_classes': 3})
    cfg.model.backbone.pretrained = cfg.model.head.class_weights = None
    model = MODELS.build(cfg.model)
    size = cfg.model.backbone.image_size
    data = dict(
        inputs=torch.randint(256, (2, 3, size, size), dtype=torch.uint8),
        data_samples=[DataSample().set_gt_label(label) for label in (0, 2)],
    )
    losses = model(**model.data_preprocessor(data, training=True), mode='loss')
    sum(losses.values()).backward()
    assert losses.keys() == {'loss_cls', 'loss_distill'}
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_dino_starts_from_the_published_layout(tmp_path):
    """Student and teacher take the weights of a checkpoint of mmpretrain, which was trained at 518 pixels."""
    cfg = load_config(str(FOLDER / f'cfmask_{DINO}.py'))
    small = dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=16)
    cfg.model.backbone.update(arch=small)
    own = Config(dict(cfg.model.backbone, init_cfg=None, img_size=518))
    published = MODELS.build(own)
    torch.nn.init.normal_(published.pos_embed)
    path = tmp_path / 'dino.pth'
    torch.save(dict(state_dict={f'backbone.{key}': value for key, value in published.state_dict().items()}), path)
    cfg.model.backbone.init_cfg.checkpoint = str(path)
    cfg.model.head.update(class_weights=None, num_classes=3)
    model = MODELS.build(cfg.model)
    for tower in (model.backbone, model.teacher.backbone):
        state = tower.state_dict()
        assert state.pop('pos_embed').shape == (1, 1 + 16 * 16, 16)
        assert all(torch.equal(value, published.state_dict()[key]) for key, value in state.items())
    assert model.head.fc.in_features == 16
    assert cfg.model.data_preprocessor.mean == [123.675, 116.28, 103.53]
