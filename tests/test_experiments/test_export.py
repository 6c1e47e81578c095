"""Copies of results: what they say of the machine, and what a study makes of them on another one."""

import json
import re
import shutil
from pathlib import Path

import pytest

from mmcfmask.errors import ConfigError
from mmcfmask.experiments.export import export_results
from mmcfmask.experiments.scheduler import find_pending
from mmcfmask.experiments.spec import StudySpec, parse
from mmcfmask.experiments.study import Study, run_study
from mmcfmask.reporting import make_report
from mmcfmask.reporting.runs import FORMAT

CONFIGS = Path(__file__).parents[2] / 'configs'
ABSOLUTE = re.compile(r'(^|[\s"\'(=])([A-Za-z]:)?[/\\]\w')
LR = 'optim_wrapper.optimizer.lr'


def finish(job, method, seed, out):
    """Write what a run or trial on a machine with folders of its own would."""
    job.prepare()
    if job.serves:
        content = dict(metric='accuracy/top1', rule='greater', metrics={'accuracy/top1': 80.0}, diverged=None)
        content['diverged'] = f'a.py: not finite; the last good checkpoint is {job.product.parent}/epoch_1.pth'
    else:
        result = dict(metrics=dict(top1=90.0), root='/home/me/my data/photos', notes=[], speed=dict(forward=3.0))
        content = dict(
            format=FORMAT,
            method=method,
            seed=seed,
            id_set='test',
            sets=dict(test=result),
            config=f'{out}/shapes/ft/config.py',
            checkpoint=dict(path=f'{job.product.parent}/best.pth', sha256='0' * 64),
            missing=dict(v2="there is no folder '/home/me/sets/v2': set its data_root (CFMask object/single)"),
        )
        (job.product.parent / 'best.pth').touch()
        (job.product.parent / 'trained').touch()
    job.product.write_text(json.dumps({**content, 'key': job.full_key}))


@pytest.fixture
def finished(study, tmp_path):
    """A study whose runs are finished."""
    methods = {'FT': 'ft', 'FT + WiSE-FT': dict(wise_ft='FT')}
    planned = study(methods, tune=dict(grid={LR: [1e-5, 1e-4]}), out=str(tmp_path / 'out'))
    for job in planned.jobs:
        finish(job, 'FT' if 'WiSE' not in job.label else 'FT + WiSE-FT', 0, tmp_path / 'out')
    return planned


def test_copies_hold_no_path_and_count_as_finished_elsewhere(finished, study, tmp_path):
    exported = tmp_path / 'runs'
    written = export_results(finished.jobs, tmp_path / 'out', exported)
    names = [str(path.relative_to(exported)) for path in written]
    assert sorted(names) == [
        'shapes/ft/seed0/metrics.json',
        'shapes/ft_+_wise-ft/seed0/metrics.json',
        'shapes/tune/ft/lr=0.0001/trial.json',
        'shapes/tune/ft/lr=1e-05/trial.json',
    ]
    for path in written:
        assert not ABSOLUTE.search(path.read_text()) and 'me/' not in path.read_text()
    content = json.loads((exported / 'shapes/ft/seed0/metrics.json').read_text())
    assert (content['config'], content['checkpoint']['path']) == ('shapes/ft/config.py', 'shapes/ft/seed0/best.pth')
    assert content['sets']['test'] == dict(metrics=dict(top1=90.0), root='photos', notes=[])
    assert content['missing'] == dict(v2="there is no folder 'v2': set its data_root (CFMask object/single)")

    contents = make_report([str(exported / 'shapes')], tmp_path / 'report')
    assert set(contents.accuracy.rows) == {'FT', 'FT + WiSE-FT'}

    shutil.copytree(exported, tmp_path / 'there')
    methods = {'FT': 'ft', 'FT + WiSE-FT': dict(wise_ft='FT')}
    tune = dict(grid={LR: [1e-5, 1e-4]})
    there = study(methods, tune=tune, out=str(tmp_path / 'there'))
    assert all(job.is_finished() for job in there.jobs) and find_pending(there.jobs) == []
    changed = study(methods, tune=tune, out=str(tmp_path / 'there'), cfg_options={'train_cfg.max_epochs': 3})
    assert not any(job.is_finished() for job in changed.jobs)


def test_a_source_is_trained_again_only_for_a_derived_run_that_is_missing(finished, tmp_path):
    jobs = finished.jobs
    *trials, source, derived = jobs
    for name in ('best.pth', 'trained'):
        (source.product.parent / name).unlink()
    assert find_pending(jobs) == []
    derived.product.unlink()
    assert find_pending(jobs) == [source, derived]
    source.prepare()
    assert not source.product.exists() and source.is_started() and not source.is_finished()
    assert [Path(command.arguments[0]).name for command in [next(source.commands(source))]] == ['train.py']
    (source.product.parent / 'trained').touch()  # its checkpoint was deleted later
    assert Path(next(source.commands(source)).arguments[0]).name == 'train.py'
    assert not (source.product.parent / 'trained').exists()


def test_nothing_to_export(study, finished, tmp_path):
    with pytest.raises(ConfigError, match='--export: .*out is the folder of the study itself'):
        export_results(finished.jobs, tmp_path / 'out', tmp_path / 'out')
    planned = study({'LP': 'lp'}, out=str(tmp_path / 'new'))
    with pytest.raises(ConfigError, match='--export: no run of the study is finished in .*new'):
        export_results(planned.jobs, tmp_path / 'new', tmp_path / 'runs')
    assert not (tmp_path / 'runs').exists()


def test_the_command(finished, tmp_path, capsys):
    text = json.dumps(dict(finished.spec.model_dump(exclude_unset=True)))
    (tmp_path / 'my.json').write_text(text)
    assert run_study(str(tmp_path / 'my.json'), export=str(tmp_path / 'runs')) == 0
    assert capsys.readouterr().out.endswith(f'4 files written to {tmp_path}/runs\n')


def make_key(folder, weights, config=CONFIGS / 'pacs' / 'ft_vitb16.py'):
    options = {'data_root': str(folder), 'model.backbone.pretrained': str(weights)}
    spec = dict(out=str(folder / 'out'), pictures=False, methods={'FT': str(config)}, cfg_options=options)
    return Study(parse(StudySpec, spec)).jobs[0].key


def test_the_key_does_not_depend_on_the_machine(tmp_path):
    for name, content in (('a', 'weights'), ('b', 'weights'), ('c', 'others')):
        (tmp_path / name / 'pacs').mkdir(parents=True)
        (tmp_path / name / f'{name}.pt').write_text(content)
    key = make_key(tmp_path / 'a' / 'pacs', tmp_path / 'a' / 'a.pt')
    assert make_key(tmp_path / 'b' / 'pacs', tmp_path / 'b' / 'b.pt') == key
    assert make_key(tmp_path / 'a' / 'pacs', tmp_path / 'c' / 'c.pt') != key
    assert make_key(tmp_path / 'a', tmp_path / 'a' / 'a.pt') != key
