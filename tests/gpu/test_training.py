"""Whole runs on the built-in benchmark."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from oracle import RUNS

from mmcfmask.engine.build import build_runner, set_gradient_accumulation
from mmcfmask.engine.checkpoints import check_checkpoint
from mmcfmask.engine.run_test import run_test
from mmcfmask.engine.run_training import run_training

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / 'configs' / 'shapes' / 'cfmask.py')
SMALL = ['train_dataloader.dataset.size=128', 'val_dataloader.dataset.size=50', 'train_cfg.max_epochs=1']


def run(work_dir, load_from=None, deterministic=True):
    """Two epochs of 4 steps, or the second alone; the weights at the end."""
    cfg = Config.fromfile(CONFIG)
    cfg.merge_from_dict(
        {
            'work_dir': str(work_dir),
            'launcher': 'none',
            'experiment_name': f'gpu{next(RUNS)}',
            'train_cfg.max_epochs': 2,
            'train_dataloader.dataset.size': 128,
            'train_dataloader.batch_size': 32,
            'total_batch_size': 32,
            'val_dataloader.dataset.size': 50,
            'optim_wrapper.type': 'AutocastOptimWrapper',
            'randomness.deterministic': deterministic,
            'load_from': load_from,
            'resume': load_from is not None,
        }
    )
    cfg.test_dataloader = cfg.test_evaluator = cfg.test_cfg = None
    set_gradient_accumulation(cfg, 1)
    try:
        build_runner(cfg).train()
    finally:
        torch.use_deterministic_algorithms(False)
    return check_checkpoint(f'{work_dir}/epoch_2.pth')['state_dict']


@pytest.mark.parametrize('deterministic', [True, False])
def test_resumed_run_is_the_whole_run(tmp_path, record_property, deterministic):
    """To the last bit with ``randomness.deterministic=True``; without, the kernels of attention add up in any order."""
    whole = run(tmp_path / 'whole', deterministic=deterministic)
    resumed = run(tmp_path / 'resumed', str(tmp_path / 'whole' / 'epoch_1.pth'), deterministic)
    away = max(float((whole[name] - resumed[name]).abs().max()) for name in whole)
    record_property('weights differ by', away)
    assert away == 0 if deterministic else away < 1e-2


def test_train_and_test_commands(tmp_path):
    work_dir = tmp_path / 'run'
    run_training(CONFIG, SMALL, amp=True, work_dir=work_dir)
    sets = [f'test_dataloader.{name}.dataset.size=50' for name in ('test', 'v2', 'r', 'sketch', 'a', 'groups')]
    run_test(
        CONFIG,
        work_dir / 'epoch_1.pth',
        [*SMALL, *sets],
        amp=True,
        knn_gate=True,
        crop_scale=0.9,
        work_dir=tmp_path / 'test',
        out=tmp_path / 'metrics.json',
    )
    metrics = json.loads((tmp_path / 'metrics.json').read_text())['metrics']
    assert metrics['test/top1'] > 80 and metrics['ood_average/top1'] > 60


def test_launched_run_ends_without_complaints(tmp_path):
    """One process with NCCL."""
    command = [
        sys.executable,
        '-m',
        'torch.distributed.run',
        '--standalone',
        '--nproc_per_node=1',
        str(ROOT / 'tools' / 'train.py'),
        CONFIG,
        '--launcher',
        'pytorch',
        '--amp',
        '--work-dir',
        str(tmp_path),
        '--cfg-options',
        *SMALL,
    ]
    path = os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, 'PYTHONPATH': path}, timeout=80
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert 'destroy_process_group' not in done.stderr and 'device_ids' not in done.stderr
