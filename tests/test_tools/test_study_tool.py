"""A whole study of small runs, in processes of their own, killed and gone on with."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from scripts import load_tool

ROOT = Path(__file__).parents[2]
STUDY = """
seeds: [0]
pictures: false
datasets:
  shapes:
    config: configs/shapes/{config}.py
    cfg_options:
      train_dataloader.dataset.size: 56
      train_dataloader.batch_size: 8
      total_batch_size: 8
      val_dataloader.dataset.size: 50
      train_cfg.max_epochs: 2
      default_hooks.logger.interval: 1
      test_dataloader.test.dataset.size: 20
      test_dataloader.v2.dataset.size: 20
      test_dataloader.r.dataset.size: 20
      test_dataloader.sketch.dataset.size: 20
      test_dataloader.a.dataset.size: 20
methods:
  Broken: {config: ft, cfg_options: {model.backbone.pretrained: nowhere/weights.pt}}
  Broken soup: {soup: Broken}
  FT: {config: ft, seeds: [0, 1]}
  FT soup: {soup: FT}
  FT + WiSE-FT: {wise_ft: FT, seeds: [0]}
  FT + gate: {retest: FT, options: [--knn-gate], seeds: [0]}
"""


@pytest.fixture
def study(tmp_path, monkeypatch, capsys):
    """Runs the tool here; gives what it printed."""
    tool = load_tool('study')
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    monkeypatch.setenv('PYTHONPATH', str(ROOT))
    monkeypatch.setenv('COLUMNS', '150')
    (tmp_path / 'my.yaml').write_text(STUDY)

    def study(*args):
        tool.main([str(tmp_path / 'my.yaml'), '--out', str(tmp_path / 'out'), *args])
        return capsys.readouterr().out

    return study


def wait_for(condition, process, seconds=300):
    for _ in range(10 * seconds):
        if condition():
            return
        assert process.poll() is None, 'the study has ended'
        time.sleep(0.1)
    raise AssertionError('it took too long')


def test_killed_study_goes_on_and_a_failure_does_not_stop_the_rest(tmp_path, study, capsys):
    seed0, seed1 = (tmp_path / 'out' / 'shapes' / 'ft' / f'seed{seed}' for seed in (0, 1))
    command = [
        sys.executable,
        'tools/study.py',
        str(tmp_path / 'my.yaml'),
        '--out',
        str(tmp_path / 'out'),
        '--only',
        'FT',
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for((seed1 / 'last_checkpoint').is_file, process)  # the second training is under way
    process.send_signal(signal.SIGKILL)
    process.wait()
    metrics = (seed0 / 'metrics.json').read_text()
    assert not (seed1 / 'metrics.json').exists()

    assert [line.split()[0] for line in study('--list').splitlines()] == [
        'to',
        'to',
        'finished',
        'begun',
        'to',
        'to',
        'to',
    ]
    with pytest.raises(SystemExit) as stopped:
        study('--jobs', '2')
    shown = capsys.readouterr().out
    assert stopped.value.code == 1
    # The finished run was kept, the killed one resumed, the broken one and what needs it are named, the others are
    # done.
    assert f'FT (seed 0): kept from {seed0}' in shown and (seed0 / 'metrics.json').read_text() == metrics
    assert 'resumed epoch: 1' in (seed1 / 'train.log').read_text()
    assert 'shapes Broken (seed 0): failed: fine-tuning failed, see' in shown and 'there is no such file' in shown
    assert 'shapes Broken soup: it needs shapes Broken (seed 0), which failed' in shown and '2 failed:' in shown
    results = json.loads((tmp_path / 'out' / 'shapes' / 'results.json').read_text())
    assert {name: method['seeds'] for name, method in results['methods'].items()} == {
        'FT': 2,
        'FT soup': 1,
        'FT + WiSE-FT': 1,
        'FT + gate': 1,
    }
    gated, plain = (
        json.loads((seed0.parents[1] / name / 'seed0' / 'metrics.json').read_text()) for name in ('ft_+_gate', 'ft')
    )
    assert (
        0 <= gated['metrics']['test/zero_shot_percent'] < 50 < gated['metrics']['sketch/zero_shot_percent']
        and 'test/zero_shot_percent' not in plain['metrics']
    )
    assert gated['checkpoint'] == plain['checkpoint'] and gated['method'] == 'FT + gate'
    signed = json.loads((seed1 / 'metrics.json').read_text())
    assert (signed['method'], signed['seed']) == ('FT', 1)
    # Of a finished run the tested checkpoint is left, and its config.
    assert [path.name for path in seed1.glob('*.pth')] == ['best.pth'] and (seed0.parent / 'config.py').is_file()

    again = study('--only', 'FT*')
    assert again.count('kept from') == 5 and 'FT soup' in again and 'fine-tuning' not in again


@pytest.mark.parametrize(
    'args, message',
    [
        (['--only', 'LP'], "my.yaml: no method is named 'LP': there are Broken, Broken soup, FT, FT soup"),
        (['--datasets', 'pets'], "no data set is named 'pets': there are shapes"),
        (['--cfg-options', 'model.head.num_classes.x=3'], r"methods['Broken']: configs/shapes/ft.py with"),
    ],
)
def test_mistakes(study, args, message):
    with pytest.raises(SystemExit, match=re.escape(message)):
        study(*args)
