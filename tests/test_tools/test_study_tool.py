"""A whole study of small runs in processes of their own: killed, then resumed."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmcfmask.experiments.study import run_study

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
  FT + k-NN gate: {evaluate: FT, options: [--knn-gate], seeds: [0]}
"""


@pytest.fixture
def study(tmp_path, monkeypatch, capsys):
    """Runs the study here; returns the exit code and the output."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    monkeypatch.setenv('PYTHONPATH', str(ROOT))
    monkeypatch.setenv('COLUMNS', '150')
    (tmp_path / 'my.yaml').write_text(STUDY)

    def study(**options):
        code = run_study(str(tmp_path / 'my.yaml'), out=str(tmp_path / 'out'), **options)
        return code, capsys.readouterr().out

    return study


def wait_for(condition, process, seconds=300):
    for _ in range(10 * seconds):
        if condition():
            return
        assert process.poll() is None, 'the study has ended'
        time.sleep(0.1)
    raise AssertionError('it took too long')


@pytest.mark.slow
def test_a_killed_study_resumes_and_a_failure_does_not_stop_the_rest(tmp_path, study):
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

    rows = [line.split('│')[1:-1] for line in study(list_only=True)[1].splitlines() if line.startswith('│')]
    states = {method.strip(): [cell.strip() for cell in cells] for method, *cells in rows}
    assert states.pop('FT') == ['finished', 'started']
    assert set(map(tuple, states.values())) == {('to do', '')} and len(states) == 5
    code, shown = study(jobs=2)
    assert code == 1
    # The finished run was kept, the killed one resumed, the broken one and its dependent failed, the others finished.
    assert f'FT (seed 0): kept from {seed0}' in shown and (seed0 / 'metrics.json').read_text() == metrics
    assert 'resumed epoch: 1' in (seed1 / 'train.log').read_text()
    assert 'shapes Broken (seed 0): failed: fine-tuning failed, see' in shown and 'the file does not exist' in shown
    assert 'shapes Broken soup: it depends on shapes Broken (seed 0), which failed' in shown and '2 failed:' in shown
    results = json.loads((tmp_path / 'out' / 'shapes' / 'results.json').read_text())
    assert {name: method['seeds'] for name, method in results['methods'].items()} == {
        'FT': 2,
        'FT soup': 1,
        'FT + WiSE-FT': 1,
        'FT + k-NN gate': 1,
    }
    gated, plain = (
        json.loads((seed0.parents[1] / name / 'seed0' / 'metrics.json').read_text())
        for name in ('ft_+_k-nn_gate', 'ft')
    )
    assert (
        0 <= gated['metrics']['test/zero_shot_percent'] <= gated['metrics']['sketch/zero_shot_percent'] <= 100
        and 'test/zero_shot_percent' not in plain['metrics']
    )
    assert gated['checkpoint'] == plain['checkpoint'] and gated['method'] == 'FT + k-NN gate'
    signed = json.loads((seed1 / 'metrics.json').read_text())
    assert (signed['method'], signed['seed']) == ('FT', 1)
    # The tested checkpoint of a finished run is kept, and its config.
    assert [path.name for path in seed1.glob('*.pth')] == ['best.pth'] and (seed0.parent / 'config.py').is_file()

    code, again = study(only=['FT*'])
    assert code == 0 and again.count('kept from') == 5 and 'FT soup' in again and 'fine-tuning' not in again


def test_the_script_names_file_and_mistake(tmp_path):
    (tmp_path / 'my.yaml').write_text(STUDY)
    command = [sys.executable, 'tools/study.py', str(tmp_path / 'my.yaml'), '--only', 'LP', '--out', str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count('\n') == 1
    assert "my.yaml: no method is named 'LP'. There are Broken, Broken soup, FT, FT soup" in done.stderr


@pytest.mark.parametrize('script', ['study.py', 'compare.py'])
def test_help_imports_no_torch(script):
    code = f"""
import runpy, sys
sys.argv = ['x', '--help']
try:
    runpy.run_path('tools/{script}', run_name='__main__')
except SystemExit as stop:
    assert stop.code in (0, None)
assert not {{'torch', 'mmengine', 'mmcfmask', 'rich'}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and '--cfg-options' in done.stdout, done.stderr
