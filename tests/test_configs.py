"""Every shipped config: dumps and loads, builds, trains one iteration on tiny synthetic data, and tests."""

import re
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image

from mmcfmask.datasets import PACSDataset
from mmcfmask.engine.build import build_runner, set_gradient_accumulation
from mmcfmask.engine.checkpoints import check_checkpoint
from mmcfmask.engine.checks.model import makes_counterfactuals
from mmcfmask.engine.config import load_config
from mmcfmask.engine.testing import skip_pretrained_weights

CONFIGS = Path(__file__).parents[1] / 'configs'
AUXILIARY = {'L2SP': 'loss_l2sp', 'CARFT': 'loss_carft', 'FLYP': 'loss_flyp', 'LipsumFT': 'loss_lipsum'}
NAMES = sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.glob('**/*.py') if path.parent.name != '_base_')


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    """Trees of noise: <root>/{train,val}/<3 classes>, and PACS' <root>/<4 domains>/<7 classes>."""
    root = tmp_path_factory.mktemp('images')
    rng = np.random.default_rng(0)
    folders = [f'{split}/{name}' for split in ('train', 'val') for name in ('one', 'two', 'three')]
    folders += [
        f'{domain}/{name}'
        for domain in ('photo', 'art_painting', 'cartoon', 'sketch')
        for name in PACSDataset.METAINFO['classes']
    ]
    for folder in folders:
        (root / folder).mkdir(parents=True)
        for i in range(5):
            Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(root / folder / f'{i}.jpg')
    return root


def shrink(cfg, images, pretrained, work_dir):
    cfg.launcher, cfg.work_dir = 'none', str(work_dir)
    shapes = cfg.model.head.num_classes == 10
    cfg.model.backbone.update(model_name='tiny-vit' if shapes else 'tiny-vit-224', pretrained=pretrained)
    start = cfg.model.head.class_weights
    start.cache_dir = str(work_dir / 'cache')
    if cfg.model.head.num_classes == 1000:
        cfg.model.head.num_classes = 3
    if start.type == 'text':
        names = start.classnames if shapes else ['one', 'three', 'two']
        start.update(classnames=names, templates=['a photo of a {}.', 'a sketch of a {}.'])
    elif start.type == 'prototype':
        start.per_class = 2
    elif start.type == 'linear_probe':
        start.strengths = [1e-3, 1e-1]
    for auxiliary in cfg.model.get('auxiliary') or ():
        if auxiliary.type == 'LipsumFT':
            auxiliary.update(num_texts=3)
    loaders = [cfg.get('train_dataloader'), cfg.get('val_dataloader'), *cfg.test_dataloader.values()]
    for loader in filter(None, loaders):
        loader.update(batch_size=16, num_workers=0, pin_memory=False, persistent_workers=False)
    for dataset in [loader.dataset for loader in loaders if loader] + [
        start[key] for key in ('dataset', 'held_out') if key in start
    ]:
        if shapes:
            dataset.update(size=4, pipeline=[dict(type='Resize', scale=32), dict(type='PackInputs')])
        else:
            dataset.data_root = str(images)
        if dataset.type == 'ImageNetDataset':
            dataset.update(type='FolderDataset')
            if 'holdout' in dataset:
                dataset.holdout.size = 6
    if cfg.get('train_cfg'):
        cfg.train_dataloader.batch_size = 2
        cfg.train_dataloader.dataset.indices = 2  # one batch
        cfg.train_cfg.max_epochs = 1
        cfg.total_batch_size = 2


@pytest.mark.parametrize('name', NAMES)
def test_config(name, tmp_path, images, tiny_pretrained, tiny_pretrained_224, monkeypatch):
    monkeypatch.setattr(
        'mmengine.config.config.FormatCode', lambda text, **_: (text, True)
    )  # most of the time would go into layout
    cfg = load_config(str(CONFIGS / name), {})
    cfg.dump(tmp_path / 'dumped.py')
    assert Config.fromfile(tmp_path / 'dumped.py').to_dict() == cfg.to_dict()

    shrink(cfg, images, tiny_pretrained if 'shapes' in name else tiny_pretrained_224, tmp_path / 'run')
    tests = ['imagenet'] if 'pacs' not in name and 'shapes' not in name else list(cfg.test_dataloader)
    if cfg.get('train_cfg'):
        set_gradient_accumulation(cfg, 1)
        build_runner(cfg.copy()).train()
        (checkpoint,) = (tmp_path / 'run').glob('epoch_1.pth')
        parts = check_checkpoint(str(checkpoint), resume=True)['message_hub']['log_scalars']
        losses = ['loss_cls'] if cfg.model.head.get('cls_weight', 1) else []
        losses += ['loss_distill'] if cfg.model.teacher and cfg.model.head.distill else []
        losses += [AUXILIARY[auxiliary.type] for auxiliary in cfg.model.get('auxiliary') or ()]
        assert {key for key in parts if 'loss_' in key} == {f'train/{name}' for name in losses}
        cfg.load_from = str(checkpoint)
        skip_pretrained_weights(cfg.model)
    metrics = build_runner(cfg).test()
    assert {f'{test}/top1' for test in tests} <= set(metrics)


def test_published_variants_are_all_there():
    from mmcfmask.models.preprocessor import PUBLISHED_VALUES

    seen = {}
    for path in (CONFIGS / 'variants').glob('*.py'):
        preprocessor = Config.fromfile(path).model.data_preprocessor
        seen[preprocessor.mask, preprocessor.fill] = preprocessor.value
    assert seen == PUBLISHED_VALUES


def test_baselines_differ_from_the_recipe_in_their_method_alone():
    """Same data, images per step, epochs and learning rate; what the method itself is about excepted."""
    free = {
        'lp': {'lr', 'weight_decay'},
        'l2sp': {'weight_decay'},
        'ema': {'custom_hooks'},
    }
    recipe = Config.fromfile(CONFIGS / 'cfmask_vitb16.py')
    for path in (CONFIGS / 'baselines').glob('*_vitb16.py'):
        name = path.stem.partition('_')[0]
        cfg = Config.fromfile(path)
        if name == 'zeroshot':
            continue
        for key in set(recipe) - {'model', 'optim_wrapper'} - free.get(name, set()):
            assert cfg[key] == recipe[key], f'{name}: {key}'
        changed = {
            key for key, value in recipe.optim_wrapper.optimizer.items() if cfg.optim_wrapper.optimizer[key] != value
        }
        assert changed == free.get(name, set()) - {'custom_hooks'}, name
        assert not makes_counterfactuals(cfg.model), name


def test_recipe_is_the_published_one():
    cfg = Config.fromfile(CONFIGS / 'cfmask_vitb16.py')
    assert cfg.total_batch_size == 512 and cfg.train_dataloader.batch_size == 64 and cfg.train_cfg.max_epochs == 10
    assert cfg.optim_wrapper.optimizer.pop('fused')  # the same numbers, faster
    assert cfg.optim_wrapper.optimizer == dict(type='AdamW', lr=3e-5, betas=(0.9, 0.999), weight_decay=0.1)
    assert cfg.optim_wrapper.clip_grad == dict(max_norm=1.0)
    assert cfg.model.head.distill_weight == 30.0 and cfg.model.head.distill == 'feature'
    held = [loader.dataset.holdout for loader in (cfg.train_dataloader, cfg.val_dataloader)]
    assert (
        [h.size for h in held] == [10240, 10240]
        and [h.part for h in held] == ['train', 'held_out']
        and held[0].seed == held[1].seed
    )


def test_inheritance_from_elsewhere(tmp_path):
    child = tmp_path / 'child.py'
    child.write_text(
        "custom_imports = dict(imports=['mmcfmask'])\n_base_ = 'mmcfmask::cfmask_vitb16.py'\n"
        "model = dict(backbone=dict(model_name='ViT-L-14-336-quickgelu'))\n"
    )
    assert Config.fromfile(child).model.backbone.model_name == 'ViT-L-14-336-quickgelu'
    child.write_text("_base_ = 'mmcfmask::cfmask_vitb61.py'\n")
    with pytest.raises(FileNotFoundError, match='cfmask_vitb61.py.*does not exist; there are: .*cfmask_vitb16.py'):
        Config.fromfile(child)


def readme_configs():
    blocks = re.findall(r'```python\n(_base_.*?)```', (CONFIGS.parent / 'README.md').read_text(), re.DOTALL)
    assert len(blocks) == 2
    return blocks


@pytest.mark.parametrize('index', [0, 1])
def test_examples_of_the_readme_load(index, tmp_path):
    example = tmp_path / 'example.py'
    example.write_text(readme_configs()[index])
    cfg = load_config(str(example), {})
    assert "'_delete_'" not in str(cfg.to_dict())
    if index == 0:
        for dataset in (
            cfg.train_dataloader.dataset,
            cfg.val_dataloader.dataset,
            cfg.model.head.class_weights.dataset,
            *(loader.dataset for loader in cfg.test_dataloader.values()),
        ):
            assert (
                dataset.type == 'FolderDataset'
                and 'domain' not in dataset
                and dataset.pipeline[0]['type'] == 'LoadImageFromFile'
            )
        assert list(cfg.test_dataloader) == ['mine', 'drawings'] and cfg.model.head.class_weights.type == 'prototype'
    else:
        assert cfg.model.teacher.type == 'OpenCLIPTeacher' and cfg.total_batch_size == 512
