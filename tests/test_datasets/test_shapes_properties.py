"""What the built-in benchmark asks of methods (docs/shapes.md), measured with zero-shot, a linear probe and FT."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
METHODS = {'Zero-shot': 'zeroshot', 'LP': 'lp', 'FT': 'ft'}


@pytest.fixture(scope='module')
def metrics(tmp_path_factory):
    """{method: metrics} of whole trainings with the learning rates of the configs, seed 0."""
    out = tmp_path_factory.mktemp('properties')
    configs = [f'{method}=configs/shapes/{config}.py' for method, config in METHODS.items()]
    done = subprocess.run(
        [sys.executable, 'tools/compare.py', *configs, '--amp', '--out', out],
        cwd=ROOT,
        env={**os.environ, 'OMP_NUM_THREADS': '2'},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    runs = [json.loads(path.read_text()) for path in out.glob('**/metrics.json')]
    assert {run['method'] for run in runs} == set(METHODS)
    return {run['method']: run['metrics'] for run in runs}


@pytest.mark.slow
def test_the_pretrained_model_knows_the_classes_in_every_style(metrics):
    found = metrics['Zero-shot']
    assert found['test/top1'] > 60
    for style in ('r', 'sketch'):
        assert found[f'{style}/top1'] > found['test/top1'] - 5


@pytest.mark.slow
def test_a_linear_probe_is_not_enough(metrics):
    assert metrics['LP']['test/top1'] > metrics['Zero-shot']['test/top1']
    assert metrics['FT']['test/top1'] >= metrics['LP']['test/top1'] + 3


@pytest.mark.slow
def test_fine_tuning_loses_robustness(metrics):
    best = max(metrics[method]['ood_average/top1'] for method in ('Zero-shot', 'LP'))
    assert metrics['FT']['ood_average/top1'] <= best - 8


@pytest.mark.slow
def test_fine_tuning_learns_the_background(metrics):
    found = metrics['FT']
    assert found['groups/worst_group'] <= found['groups/top1'] - 15
    assert found['groups/group_average'] > found['groups/top1']  # as in training, most are on their own background
