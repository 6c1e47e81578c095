"""Configs shown in docs/evaluation.md."""

import re
from pathlib import Path

import pytest
from mmengine.config import Config
from mmpretrain.registry import HOOKS

import mmcfmask  # noqa: F401
from mmcfmask.engine.loops import choose_shifts, metrics_of
from mmcfmask.engine.preflight import check_selection

BLOCKS = re.findall(
    r'```python\n(_base_.*?)```', (Path(__file__).parents[1] / 'docs' / 'evaluation.md').read_text(), re.DOTALL
)


@pytest.fixture
def load(tmp_path):

    def load(index):
        (tmp_path / 'example.py').write_text(BLOCKS[index])
        return Config.fromfile(tmp_path / 'example.py')

    return load


def test_shifts_during_training(load):
    cfg = load(0)
    check_selection(cfg)
    assert choose_shifts(cfg.val_dataloader, cfg.val_cfg.id_set, None) == ['sketch']
    assert (
        cfg.val_dataloader.held_out.dataset.holdout.part == 'held_out'
        and cfg.val_dataloader.sketch.dataset.pipeline[0].type
    )
    assert metrics_of('sketch', cfg.val_evaluator) == [dict(type='ShiftAccuracy')] and cfg.train_cfg.val_interval == 2
    cfg.default_hooks.checkpoint.save_best = 'sketch/top1'
    with pytest.raises(ValueError, match='would choose by a distribution shift'):
        check_selection(cfg)


def test_wise_ft_hook(load):
    assert len(BLOCKS) == 2
    hooks = load(1).default_hooks
    assert {'checkpoint', 'logger', 'wise_ft'} <= set(hooks)
    assert HOOKS.build(hooks.wise_ft).alphas == [0, 0.5, 1]
