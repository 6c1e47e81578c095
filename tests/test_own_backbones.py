"""The backbones of the README and of docs/backbones.md: each is trained for a step, with random weights."""

import numpy as np
import pytest
import torch
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from pages import blocks
from PIL import Image
from towers import MMPRETRAIN

from mmcfmask.datasets import PACSDataset
from mmcfmask.engine.checkpoints import check_checkpoint
from mmcfmask.engine.config import load_config
from mmcfmask.engine.run_training import run_training
from mmcfmask.errors import ConfigError
from mmcfmask.models.maker import PUBLISHED_VALUES
from mmcfmask.models.towers.features import build_tower

SIZES = {'SigLIP2': 32, 'ResNet': 64, 'deit-base': 32}
RAND_AUGMENT = dict(policies='timm_increasing', num_policies=2, magnitude_level=9)
PAGE = {'SigLIP2': 'README.md', 'ResNet': 'README.md', 'deit-base': 'docs/backbones.md'}


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    """A tree of noise in the layout of PACS."""
    root, rng = tmp_path_factory.mktemp('pacs'), np.random.default_rng(0)
    for domain in ('photo', 'art_painting', 'cartoon', 'sketch'):
        for name in PACSDataset.METAINFO['classes']:
            (root / domain / name).mkdir(parents=True)
            for index in range(10):
                noise = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
                Image.fromarray(noise).save(root / domain / name / f'{index}.png')
    return root


def example(name, folder):
    """The config of a page, on small images; weights that must be downloaded are random, or saved by us."""
    (code,) = (code for code in blocks(PAGE[name], 'python') if name in code and '_base_' in code)
    (folder / f'{name}.py').write_text(code)
    cfg = load_config(str(folder / f'{name}.py'), {'image_size': SIZES[name]})
    if name == 'SigLIP2':
        assert cfg.model.head.class_weights.type == 'text'  # of its own text tower
        cfg.model.backbone.pretrained = None
        cfg.model.head.update(num_classes=7, class_weights=None)
        return cfg
    if name == 'deit-base':
        cfg.model.backbone.update(MMPRETRAIN)
    torch.manual_seed(1)
    tower = build_tower(dict(cfg.model.backbone, init_cfg=None))
    torch.save(tower.state_dict(), folder / 'weights.pth')
    cfg.model.backbone.init_cfg.checkpoint = str(folder / 'weights.pth')
    return cfg


def classifier(name, folder):
    cfg = example(name, folder)
    cfg.model.head.class_weights = None
    return MODELS.build(cfg.model).train()


def batch(name):
    images = torch.randn(4, 3, SIZES[name], SIZES[name])
    return images, [DataSample().set_gt_label(label) for label in (0, 1, 2, 0)]


@pytest.mark.parametrize('name', SIZES)
def test_a_step(name, tmp_path):
    model = classifier(name, tmp_path)
    losses = model(*batch(name), mode='loss')
    assert losses['loss_distill'] < 1e-9
    sum(losses.values()).backward()
    assert all(part.grad.isfinite().all() for part in model.parameters() if part.grad is not None)


@pytest.mark.parametrize('name', [pytest.param('SigLIP2', marks=pytest.mark.slow), 'ResNet', 'deit-base'])
def test_all_variants(name, tmp_path):
    model = classifier(name, tmp_path)
    maker = model.data_preprocessor
    for (maker.mask, maker.fill), maker.value in PUBLISHED_VALUES.items():
        if maker.fill == 'none' and name == 'ResNet':
            with pytest.raises(ConfigError, match='fill="none" hides patches, but ResNet is no plain transformer'):
                model(*batch(name), mode='loss')
        else:
            assert model(*batch(name), mode='loss')['loss_distill'] < 1e-9, (maker.mask, maker.fill)


def test_resnet_of_the_readme_trains_as_a_command_does(images, tmp_path, monkeypatch):
    """From ``init_cfg`` and class means to a checkpoint, with augmented and mixed images and rates by layer."""
    monkeypatch.setenv('MMCFMASK_CACHE', str(tmp_path / 'cache'))
    cfg = example('ResNet', tmp_path)
    cfg.model.backbone.update(depth=50, base_channels=4)
    tower = build_tower(dict(cfg.model.backbone, init_cfg=None))
    torch.save(tower.state_dict(), tmp_path / 'weights.pth')
    load, _, pack = cfg.train_dataloader.dataset.pipeline
    augmented = [load, dict(type='RandomResizedCrop', scale=64), dict(type='RandAugment', **RAND_AUGMENT), pack]
    cfg.train_dataloader.dataset.pipeline = augmented
    cfg.model.losses.append(dict(type='MixedCrossEntropy', augments=[dict(type='CutMix', alpha=1.0)]))
    cfg.dump(tmp_path / 'config.py')
    options = {
        'data_root': str(images),
        'image_size': 64,
        'total_batch_size': 4,
        'train_dataloader.batch_size': 4,
        'train_dataloader.dataset.indices': 4,
        'train_cfg.max_epochs': 1,
        'model.head.class_weights.per_class': 2,
        'optim_wrapper.constructor': 'LearningRateDecayOptimWrapperConstructor',
        'optim_wrapper.paramwise_cfg': dict(layer_decay_rate=0.5, flat_decay_mult=0.0),
    }
    run_training(str(tmp_path / 'config.py'), options, work_dir=str(tmp_path / 'run'), validate=False)
    losses = check_checkpoint(str(tmp_path / 'run' / 'epoch_1.pth'), resume=True)['message_hub']['log_scalars']
    assert {'train/loss_cls', 'train/loss_distill', 'train/loss_mixed'} <= losses.keys()
    checkpoint = torch.load(tmp_path / 'run' / 'epoch_1.pth', weights_only=True)
    assert len({group['initial_lr'] for group in checkpoint['optimizer']['param_groups']}) == 8
    trained = checkpoint['state_dict']
    assert not torch.equal(trained['backbone.layer4.0.conv1.weight'], tower.state_dict()['layer4.0.conv1.weight'])
    assert torch.equal(trained['backbone.bn1.running_mean'], tower.state_dict()['bn1.running_mean'])
