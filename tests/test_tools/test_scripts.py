"""The command-line tools, run as a user runs them, on a small share of the built-in benchmark."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from forks import run_script
from mmengine.config import Config
from processes import free_port

from mmcfmask.engine.run_training import apply_training_arguments, run_training
from mmcfmask.errors import UserError

ROOT = Path(__file__).parents[2]
SMALL = [
    'train_dataloader.dataset.size=64',
    'train_dataloader.batch_size=16',
    'val_dataloader.dataset.size=20',
    'total_batch_size=64',
    'train_cfg.max_epochs=2',
    'default_hooks.logger.interval=1',
    *(f'test_dataloader.{name}.dataset.size=30' for name in ('test', 'v2', 'r', 'sketch', 'a', 'groups')),
    *(f'test_dataloader.{name}.batch_size=7' for name in ('test', 'v2', 'r', 'sketch', 'a', 'groups')),
]
TEST_ONLY = [option for option in SMALL if option.startswith('test')]


def run(*command, fails=False):
    if command[0] == 'fork':
        done = run_script(*command[1:])
    else:
        env = {**os.environ, 'OMP_NUM_THREADS': '2', 'PYTHON': sys.executable, 'PORT': free_port()}
        command = [str(part) for part in command]
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)
    assert (done.returncode != 0) == fails, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def test_two_processes_train_and_test_without_a_gpu(tmp_path):
    """Same number of optimizer steps as one process, the same weights everywhere, and the same test results as one
    process."""
    run('tools/dist_train.sh', 'configs/shapes/cfmask.py', 2, '--work-dir', tmp_path, '--cfg-options', *SMALL)
    checkpoint = tmp_path / 'epoch_2.pth'
    saved = torch.load(checkpoint, weights_only=True)
    assert saved['meta']['iter'] == 4  # 2 epochs x 64 images / (2 processes x 16), two of them to an optimizer step
    assert {int(state['step']) for state in saved['optimizer']['state'].values()} == {2}

    run(
        'tools/dist_test.sh',
        'configs/shapes/cfmask.py',
        checkpoint,
        2,
        '--work-dir',
        tmp_path,
        '--out',
        tmp_path / 'two.json',
        '--cfg-options',
        *TEST_ONLY,
    )
    run(
        sys.executable,
        'tools/test.py',
        'configs/shapes/cfmask.py',
        checkpoint,
        '--work-dir',
        tmp_path,
        '--out',
        tmp_path / 'one.json',
        '--cfg-options',
        *TEST_ONLY,
    )
    one, two = (json.loads((tmp_path / name).read_text())['metrics'] for name in ('one.json', 'two.json'))
    accuracies = {name: value for name, value in one.items() if name.endswith('top1')}
    assert len(accuracies) == 7 and accuracies == {name: two[name] for name in accuracies}
    shifts = [accuracies[f'{name}/top1'] for name in ('v2', 'r', 'sketch', 'a')]
    assert accuracies['ood_average/top1'] == pytest.approx(sum(shifts) / 4)


def test_error_of_all_processes_is_no_traceback(tmp_path):
    output = run('tools/dist_train.sh', 'configs/shapes/ft.py', 2, '--work-dir', tmp_path, fails=True).splitlines()
    *errors, last = output
    assert errors and all('total_batch_size=64 is not a multiple of 2 process(es)' in error for error in errors), output
    assert last.startswith('Process ') and last.endswith(' of the job failed first: exit code 1.')


def test_quickstart_shortened(tmp_path):
    out = tmp_path / 'with space'
    command = [sys.executable, 'tools/compare.py', '--out', out, '--cfg-options', *SMALL]
    shown = run(*command)
    for method in ('Zero-shot', 'FT', 'CFMask'):
        assert method in shown
    results = json.loads((out / 'results.json').read_text())
    assert list(results['methods']) == ['Zero-shot', 'FT', 'CFMask'] and results['shifts'] == ['v2', 'r', 'sketch', 'a']
    assert results['methods']['Zero-shot']['mean']['test'] > 50  # the packaged weights know shapes
    for name in ('results.md', 'id_ood.png', 'counterfactuals.png'):
        assert (out / name).stat().st_size > 100 and name in shown
    again = run(*command)
    assert again.count('kept from') == 4  # the picture too
    assert json.loads((out / 'results.json').read_text()) == results


def test_mask_quality(tmp_path):
    shown = run(
        'fork',
        'tools/mask_quality.py',
        'configs/shapes/cfmask.py',
        '--cfg-options',
        *TEST_ONLY,
        'train_dataloader.dataset.size=30',
    )
    assert shown.count('30 images, ') == 7 and shown.count('point') == 7 and '…' not in shown


def test_mistakes_in_arguments():
    for arguments, message in (['no.pth'], 'no.pth'), (['--value', '2'], '--value: the threshold of the object mask'):
        shown = run('fork', 'tools/mask_quality.py', 'configs/shapes/cfmask.py', *arguments, fails=True)
        assert message in shown.splitlines()[-1]
    shown = run('fork', 'tools/compare.py', 'FT=configs/shapes/ft.py', 'FT=configs/shapes/fd.py', fails=True)
    assert "two methods are named 'FT'" in shown.splitlines()[-1]


def test_errors_come_before_anything_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr('mmcfmask.engine.run_training.build_runner', None)
    config = 'configs/shapes/cfmask.py'
    (tmp_path / 'broken.pth').write_text('no checkpoint')
    (tmp_path / 'file').touch()
    for arguments, message in (
        (dict(options=['train_dataloader.batch_size=48']), 'total_batch_size=64 is not a multiple of 1 process'),
        (dict(options=['train_dataloader.batch_size=1']), 'raise it to at least 2'),
        (dict(resume=tmp_path / 'broken.pth'), 'is not a checkpoint that torch can load'),
        (dict(work_dir=tmp_path / 'file'), 'cannot write to the work dir'),
        (dict(config='configs/shapes/zeroshot.py', amp=True, seed=1, validate=False), 'nothing to train'),
    ):
        with pytest.raises(UserError, match=message):
            run_training(**{'config': config, 'work_dir': tmp_path, **arguments})


def test_first_start_with_resume_keeps_the_weights_to_start_from(tmp_path):
    def merged(resume=None):
        cfg = Config(dict(load_from='start.pth', work_dir=str(tmp_path)))
        apply_training_arguments(cfg, resume)
        return cfg.get('resume', False), cfg.load_from

    assert merged() == merged('auto') == (False, 'start.pth')
    assert merged('other.pth') == (True, 'other.pth')
    with pytest.raises(ValueError, match='--resume: the name of the checkpoint is empty'):
        merged('')
    training = dict(meta=dict(epoch=1, iter=5, cfg=''), optimizer=dict(state={}, param_groups=[]), message_hub={})
    torch.save(dict(state_dict=dict(w=torch.ones(1)), **training), tmp_path / 'epoch_1.pth')
    (tmp_path / 'last_checkpoint').write_text('moved/epoch_1.pth')
    assert merged('auto') == (True, str(tmp_path / 'epoch_1.pth')) and merged() == (False, 'start.pth')


def test_an_error_of_the_user_is_one_line(tmp_path):
    torch.save(dict(state_dict={'head.fc.weight': torch.zeros(7, 128)}), tmp_path / 'seven.pth')
    command = ['tools/test.py', 'configs/shapes/cfmask.py', tmp_path / 'seven.pth', '--work-dir', tmp_path]
    shown = run(sys.executable, *command, fails=True)
    last = shown.splitlines()[-1]
    assert last.startswith('configs/shapes/cfmask.py: ') and 'was trained for 7 classes' in last
    assert 'Traceback' not in shown
