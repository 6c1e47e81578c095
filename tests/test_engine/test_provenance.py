"""Two trainings are the same but for the seed, or are told apart by what differs."""

import pytest
from mmengine.config import Config

from mmcfmask.datasets.holdout import follow_run
from mmcfmask.engine.build import cache_images
from mmcfmask.engine.config import load_config
from mmcfmask.engine.provenance import hide_machine, read_command, read_training_settings


def training(config, seed=0, **options):
    cfg = load_config(f'configs/{config}.py', {key.replace('__', '.'): value for key, value in options.items()})
    cfg.randomness.seed = seed
    follow_run(cfg, seed)
    return read_training_settings(dict(cfg=cfg.pretty_text))


def test_seeds_of_one_method_are_the_same():
    run = dict.fromkeys(
        [
            'train_dataloader__dataset__holdout__seed',
            'val_dataloader__dataset__holdout__seed',
            'model__head__class_weights__dataset__holdout__seed',
            'train_dataloader__dataset__subset_seed',
        ],
        'run',
    )
    first = training('pacs/cfmask_plus_vitb16', **run)
    assert training('pacs/cfmask_plus_vitb16', 1, **run) == first
    moved = dict(
        data_root='/other/pacs/',
        model__backbone__pretrained='openai',
        work_dir='elsewhere',
        cache_dir='/fast',
        optim_wrapper__accumulative_counts=4,
        train_dataloader__num_workers=0,
        optim_wrapper__optimizer__fused=False,
        default_hooks__logger__interval=1,
        train_dataloader__batch_size=8,
    )
    assert training('pacs/cfmask_plus_vitb16', 2, **moved) == first


def test_cached_images_are_the_same_images():
    """The config in a checkpoint is that of the Runner, whose data sets are cached."""
    plain = load_config('configs/pacs/ft_vitb16.py')
    kept = load_config('configs/pacs/ft_vitb16.py', dict(cache_dir='/fast'))
    cache_images(kept)
    assert kept.train_dataloader.dataset.type == 'CachedDataset'
    first, second = (read_training_settings(dict(cfg=cfg.pretty_text)) for cfg in (plain, kept))
    assert first == second and first['train_dataloader.dataset.type'] == 'PACSDataset'
    assert first['train_dataloader.dataset.holdout.part'] == 'train' and first['optim_wrapper.optimizer.lr'] == '3e-05'


@pytest.mark.parametrize(
    'option, value, key',
    [
        ('optim_wrapper__optimizer__lr', 1e-5, 'optim_wrapper.optimizer.lr'),
        ('model__head__distill_weight', 3.0, 'model.head.distill_weight'),
        ('train_cfg__max_epochs', 3, 'train_cfg.max_epochs'),
        ('model__backbone__pretrained', 'other.pt', 'model.backbone.pretrained'),
        ('total_batch_size', 64, 'total_batch_size'),
        ('train_dataloader__dataset__domain', 'sketch', 'train_dataloader.dataset.domain'),
        ('custom_hooks', [dict(type='RelativeEMAHook', horizon=0.5)], 'custom_hooks'),
        ('custom_hooks', [dict(type='EarlyStoppingHook', monitor='accuracy/top1')], 'custom_hooks'),
        ('train_dataloader__sampler__shuffle', False, 'train_dataloader.sampler.shuffle'),
        ('train_dataloader__collate_fn__type', 'pseudo_collate', 'train_dataloader.collate_fn.type'),
        ('load_from', 'other.pth', 'load_from'),
        ('model__losses', [dict(type='Distillation')], 'model.losses'),
        ('param_scheduler__pct_start', 0.1, 'param_scheduler.pct_start'),
        ('train_dataloader__dataset__holdout__fraction', 0.2, 'train_dataloader.dataset.holdout.fraction'),
        ('optim_wrapper__type', 'AutocastOptimWrapper', 'optim_wrapper.type'),
        ('data_root', 'mine', 'train_dataloader.dataset.data_root'),
    ],
)
def test_what_tells_methods_apart(option, value, key):
    first, second = training('pacs/cfmask_plus_vitb16'), training('pacs/cfmask_plus_vitb16', 1, **{option: value})
    different = {name for name in {*first, *second} if first.get(name) != second.get(name)}
    assert key in different


def test_checkpoints_of_one_training_are_told_apart():
    text = load_config('configs/shapes/ft.py', {}).pretty_text
    found = [
        read_training_settings(dict(cfg=text, epoch=epoch, **best))
        for epoch, best in ((3, dict(best=dict(value=90.0))), (7, dict(best=dict(value=91.0))), (3, {}), (7, {}))
    ]
    assert found[0] == found[1] and [settings['checkpoint'] for settings in found] == [
        'the best',
        'the best',
        'epoch 3',
        'epoch 7',
    ]


def test_what_no_training_wrote():
    for meta in ({}, dict(cfg=None), dict(cfg='def f(:')):
        assert read_training_settings(meta) is None
    names = [f'class {index}' for index in range(1000)]
    text = Config(dict(model=dict(head=dict(class_weights=dict(classnames=names))))).pretty_text
    assert len(read_training_settings(dict(cfg=text))['model.head.class_weights.classnames']) < 230


def test_the_command_can_be_typed_again(monkeypatch):
    monkeypatch.setattr('sys.argv', ['mmcfmask test', 'my config.py', 'a.pth', '--amp'])
    assert read_command() == "mmcfmask test 'my config.py' a.pth --amp"
    monkeypatch.setattr('sys.argv', ['tools/test.py'])
    assert read_command() == 'tools/test.py'


@pytest.mark.parametrize(
    'text, key, hidden',
    [
        ('/data/sets/pacs/', 'root', 'pacs'),
        ('../../mine/pacs', 'root', 'pacs'),
        ('data/pacs', 'root', 'data/pacs'),
        (r'C:\Users\me\pacs', 'root', 'pacs'),
        ('~/x/best.pth', 'path', 'best.pth'),
        ('OUT/a/config.py', 'config', 'a/config.py'),
        ('see /a/b.log, and (/c/d/e): 1/2', 'notes', 'see b.log, and (e): 1/2'),
        ('CFMask object/single', 'method', 'CFMask object/single'),
        (5, 'seed', 5),
    ],
)
def test_paths_of_the_machine_are_hidden(tmp_path, text, key, hidden):
    text = text.replace('OUT', str(tmp_path)) if isinstance(text, str) else text
    assert hide_machine({key: [text]}, tmp_path) == {key: [hidden]}
