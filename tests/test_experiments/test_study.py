"""What a study keeps, refuses and shows; no run."""

import json
import subprocess
import sys

import pytest
from rich.console import Console

from mmcfmask.errors import ConfigError, StorageError
from mmcfmask.experiments import study as module
from mmcfmask.experiments.spec import read_study
from mmcfmask.experiments.study import Study, run_study, run_with_messages
from mmcfmask.reporting.runs import FORMAT


def write(path, notes=(), **sets):
    path.parent.mkdir(parents=True, exist_ok=True)
    sets = {name: dict(metrics=dict(top1=value), notes=list(notes)) for name, value in sets.items()}
    path.write_text(json.dumps(dict(format=FORMAT, method='x', seed=None, id_set='test', sets=sets)))


def finish(job, **sets):
    job.prepare()
    write(job.product, **sets)


def test_a_table_of_the_finished_runs(study, tmp_path):
    planned = study({'FT': 'ft', 'LP': 'lp', 'FD': 'fd'}, seeds=[0, 1])
    for job in planned.jobs[:3]:
        finish(job, test=90.0, a=10.0 + len(job.label) % 2, sketch=30.0)
    console = Console(record=True, width=60)
    planned.write_results(console)
    results = json.loads((tmp_path / 'shapes' / 'results.json').read_text())
    assert {name: method['seeds'] for name, method in results['methods'].items()} == {'FT': 2, 'LP': 1}
    assert results['shifts'] == ['sketch', 'a'] and results['id_set'] == 'test'  # in the order of the config
    assert 'OOD avg' in console.export_text() and (tmp_path / 'shapes' / 'id_ood.png').stat().st_size > 1000
    assert '| FT | 2 |' in (tmp_path / 'shapes' / 'results.md').read_text()


def test_a_partial_run_keeps_the_results_of_the_rest(study, labels, tmp_path):
    methods = {'FT': 'ft', 'FD': 'fd'}
    for job in study(methods).jobs:
        finish(job, test=90.0, v2=80.0)
    partial = study(methods, only=['FD'])
    assert labels(partial) == ['shapes FD (seed 0)']
    partial.write_results(Console(quiet=True))
    assert '| FT |' in (tmp_path / 'shapes' / 'results.md').read_text()


def test_runs_of_another_version_are_neither_continued_nor_deleted(study):
    planned = study({'FT': 'ft', 'FD': 'fd'})
    job = planned.jobs[1]
    finish(job, test=90.0)
    checkpoint = job.product.with_name('best.pth')
    checkpoint.touch()
    job.key_file.write_text('0' * 64)  # as version 0.1.0 wrote it
    with pytest.raises(
        ConfigError, match=r'fd/seed0 holds a run of mmcfmask 0\.1\.0, .*: choose another folder with'
    ) as e:
        planned.run(Console(quiet=True))
    assert '\n' not in str(e.value) and checkpoint.exists() and job.product.exists()


def test_a_second_study_in_one_folder_is_refused(study, tmp_path):
    """The message names the first one. A lock of this process would not stop it, so another process holds it."""
    code = 'from mmcfmask.files import locked\n'
    code += f"with locked({str(tmp_path)!r}, 'a study'):\n    print(flush=True)\n    input()"
    with subprocess.Popen([sys.executable, '-c', code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        first.stdout.readline()
        with pytest.raises(StorageError, match=rf'is in use by a study \(process {first.pid} on '):
            study({'FT': 'ft'}).run(Console(quiet=True))
        first.communicate(b'\n')


@pytest.mark.parametrize('amp, fast', [(True, True), (True, False), (False, False)])
def test_slow_bfloat16_is_named_once(study, monkeypatch, capsys, amp, fast):
    monkeypatch.setattr(module, 'multiplies_bfloat16', lambda device: fast)
    monkeypatch.setattr(Study, 'run', lambda *args: {})
    assert run_with_messages(study({'FT': 'ft'}, amp=amp)) == 0
    shown = ' '.join(capsys.readouterr().out.split())
    assert shown.count('--amp: this CPU has no instructions for bfloat16') == (amp and not fast)


def test_the_exit_code_tells_of_a_failure(study, monkeypatch):
    monkeypatch.setattr(Study, 'run', lambda *args: {'FT': 'a reason'})
    assert run_with_messages(study({'FT': 'ft'})) == 1

    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(Study, 'run', stop)
    with pytest.raises(SystemExit, match='stopped; the same command resumes the study'):
        run_with_messages(study({'FT': 'ft'}))


@pytest.fixture
def path(tmp_path):
    config = module.__file__.replace('mmcfmask/experiments/study.py', 'configs/shapes/{config}.py')
    text = (
        f'datasets: {{one: "{config}", two: "{config}"}}\nmethods: {{FT: ft, FT soup: {{soup: FT}}}}\npictures: false\n'
    )
    (tmp_path / 'my.yaml').write_text(text)
    return str(tmp_path / 'my.yaml')


def test_a_list_makes_no_folders(path, tmp_path, capsys):
    assert run_study(path, out=str(tmp_path / 'out'), seeds=[3, 4], datasets=['two'], list_only=True) == 0
    shown = capsys.readouterr().out
    assert 'two' in shown and 'one' not in shown.split('\n')[0] and 'seed 4' in shown
    assert '0 of 3 runs, trials and pictures need no work, 3 are left\n' in shown
    assert not (tmp_path / 'out' / 'two').exists()


def test_a_list_tells_of_runs_of_another_version(path, tmp_path, capsys):
    folder = tmp_path / 'out/two/ft/seed3'
    options = dict(out=str(tmp_path / 'out'), seeds=[3], datasets=['two'], list_only=True)
    spec = read_study(path).model_copy(update=dict(out=options['out'], seeds=[3]))
    job = next(job for job in Study(spec).jobs if job.product.parent == folder)
    finish(job, test=90.0)
    job.key_file.write_text('0' * 64)  # as version 0.1.0 wrote it
    with pytest.raises(ConfigError, match=r'ft/seed3 holds a run of mmcfmask 0\.1\.0'):
        run_study(path, **options)
    assert 'of 0.1.0' in capsys.readouterr().out


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(only=['LP']), "my.yaml: no method is named 'LP'. There are FT, FT soup"),
        (dict(datasets=['pets']), "my.yaml: no data set is named 'pets'. There are one, two"),
        (dict(cfg_options=['model.head.num_classes.x=3']), r"my.yaml: methods\['FT'\]: .*configs/shapes/ft.py with"),
        (dict(cfg_options=['lr']), "my.yaml: --cfg-options: 'lr' is not key=value"),
        (dict(out='/proc/nowhere'), "cannot write to the folder '/proc/nowhere'"),
    ],
)
def test_mistakes_name_the_file(path, tmp_path, options, message):
    with pytest.raises((ConfigError, StorageError), match=message):
        run_study(path, **{'out': str(tmp_path / 'out'), **options})
