"""Validation on several sets during training, on the built-in benchmark."""

import json
from pathlib import Path

import pytest
from mmengine.hooks import Hook
from mmpretrain.registry import HOOKS
from oracle import RUNS

from mmcfmask.datasets import MissingSetError
from mmcfmask.engine.build import build_runner, set_gradient_accumulation
from mmcfmask.engine.checkpoints import check_checkpoint
from mmcfmask.engine.checks.leakage import check_leakage
from mmcfmask.engine.checks.validation import check_validation
from mmcfmask.engine.config import load_config
from mmcfmask.engine.test_loop import refuse_choice_by_shift

ROOT = Path(__file__).parents[2]


def training(work_dir, pretrained, **options):
    """Two epochs on the built-in benchmark, validated on the ID set and two shifts."""
    cfg = load_config(
        str(ROOT / 'configs' / 'shapes' / 'ft.py'),
        {
            'model.backbone.model_name': 'tiny-vit',
            'model.backbone.pretrained': pretrained,
            'model.head.class_weights': None,
            'train_dataloader.batch_size': 8,
            'train_dataloader.dataset.size': 16,
            'total_batch_size': 8,
            'train_cfg.max_epochs': 2,
            'default_hooks.checkpoint.save_best': 'held_out/top1',
            'env_cfg.cudnn_benchmark': False,
            'work_dir': str(work_dir),
        },
    )
    pipeline = [dict(type='Resize', scale=32), dict(type='PackInputs')]
    cfg.train_dataloader.dataset.pipeline = pipeline
    cfg.val_dataloader = {
        name: dict(
            batch_size=4,
            num_workers=0,
            sampler=dict(type='DefaultSampler', shuffle=False),
            collate_fn=dict(type='default_collate'),
            dataset=dict(type='ShapesDataset', split=split, size=10, pipeline=pipeline),
        )
        for name, split in dict(sketch='sketch', held_out='val', r='r').items()
    }
    cfg.val_evaluator = dict(type='ShiftAccuracy')
    cfg.val_cfg = dict(type='MultiSetValLoop', id_set='held_out')
    cfg.launcher, cfg.experiment_name = 'none', f'training{next(RUNS)}'
    cfg.test_dataloader = cfg.test_evaluator = cfg.test_cfg = None
    cfg.merge_from_dict(options)
    return cfg


def train(cfg):
    check_validation(cfg)
    set_gradient_accumulation(cfg, 1)
    runner = build_runner(cfg)
    runner.train()
    return runner


def test_validation_on_shifts_during_training(tmp_path, tiny_pretrained):
    seen = []

    class Listening(Hook):
        def before_val_epoch(self, runner):
            seen.append('before')

        def after_val_epoch(self, runner, metrics=None):
            seen.append(dict(metrics))

    HOOKS.register_module(name='Listening', module=Listening, force=True)
    cfg = training(tmp_path, tiny_pretrained)
    cfg.custom_hooks.append(dict(type='Listening'))
    runner = train(cfg)
    # Hooks such as CheckpointHook and EMAHook see one validation, not three.
    assert len(seen) == 4 and seen[0] == seen[2] == 'before'
    assert list(seen[1])[0] == 'held_out/top1' and {'sketch/top1', 'r/top1', 'r/nll', 'ood_average/top1'} <= set(
        seen[1]
    )
    best = max(seen[1]['held_out/top1'], seen[3]['held_out/top1'])
    assert runner.message_hub.get_info('best_score') == best and (tmp_path / 'best.pth').is_file()
    (scalars,) = tmp_path.glob('*/vis_data/scalars.json')
    assert sum('ood_average/top1' in json.loads(line) for line in scalars.read_text().splitlines()) == 2


def test_validation_every_other_epoch_and_auto(tmp_path, tiny_pretrained):
    runner = train(
        training(
            tmp_path, tiny_pretrained, **{'train_cfg.val_interval': 2, 'default_hooks.checkpoint.save_best': 'auto'}
        )
    )
    saved = check_checkpoint(str(tmp_path / 'best.pth'))['meta']
    assert saved['epoch'] == 2 and saved['best']['metric'] == 'held_out/top1'
    (scalars,) = tmp_path.glob('*/vis_data/scalars.json')
    assert sum('held_out/top1' in json.loads(line) for line in scalars.read_text().splitlines()) == 1
    assert set(runner.val_loop.results) == {'held_out', 'sketch', 'r'}


@pytest.mark.parametrize('key', ['sketch/top1', 'ood_average/top1', ['held_out/top1', 'r/ece']])
def test_choosing_by_a_shift_is_refused(tmp_path, tiny_pretrained, key):
    cfg = training(tmp_path, tiny_pretrained, **{'default_hooks.checkpoint.save_best': key})
    message = (
        "save_best='.*' would choose by a distribution shift.*no longer measures robustness.*save_best='held_out/top1'"
    )
    with pytest.raises(ValueError, match=message):
        check_validation(cfg)  # tools/train.py: before the model is built
    set_gradient_accumulation(cfg, 1)
    with pytest.raises(ValueError, match=message):
        build_runner(cfg).train()  # any other way to a Runner


def test_other_ways_to_choose_by_a_shift(tmp_path, tiny_pretrained):
    cfg = training(tmp_path, tiny_pretrained)
    check_validation(cfg)
    with pytest.raises(
        ValueError, match="save_best='accuracy/top1': there is no such metric.*the sets are sketch, held_out, r"
    ):
        check_validation(training(tmp_path, tiny_pretrained, **{'default_hooks.checkpoint.save_best': 'accuracy/top1'}))
    stop = dict(type='EarlyStoppingHook', monitor='r/top1')
    with pytest.raises(ValueError, match="monitor='r/top1' would choose by a distribution shift"):
        check_validation(training(tmp_path, tiny_pretrained, custom_hooks=[stop]))
    with pytest.raises(ValueError, match="monitor='ood_average/top1' would choose"):
        refuse_choice_by_shift(
            [dict(type='ReduceOnPlateauLR', monitor='ood_average/top1')], 'held_out', ['held_out', 'r']
        )
    refuse_choice_by_shift([None, stop, dict(type='EarlyStoppingHook', monitor='loss')], 'r', ['r', 'held_out'])


def test_one_validation_set_that_is_a_shift_of_the_test(tmp_path, tiny_pretrained):
    cfg = load_config(str(ROOT / 'configs' / 'shapes' / 'ft.py'), {})
    check_leakage(cfg)
    cfg.val_dataloader.dataset = dict(cfg.test_dataloader.sketch.dataset, pipeline=[])
    with pytest.raises(ValueError, match="val_dataloader reads images of the shift 'sketch'"):
        check_leakage(cfg)
    cfg.val_dataloader.dataset = cfg.test_dataloader.test.dataset
    check_leakage(cfg)


def test_id_set_of_a_validation_may_not_be_missing(tmp_path, tiny_pretrained):
    cfg = training(tmp_path, tiny_pretrained, **{'val_cfg.skip_missing': True})
    cfg.custom_imports.imports.append('oracle')
    cfg.val_dataloader.held_out.dataset = dict(type='AvailableFolder', data_root=str(tmp_path / 'gone'))
    with pytest.raises(MissingSetError, match="validation set 'held_out' is missing: there is no .*gone"):
        train(cfg)
