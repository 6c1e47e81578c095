"""The commands of a run, with tools that write nothing: this test does."""

import json
import os
from pathlib import Path

import pytest
from mmengine.config import Config

from mmcfmask.experiments.commands import TOOLS, find_checkpoint, keeps_predictions, sign_metrics
from mmcfmask.experiments.jobs import JobError

TEST = ['--out', '--predictions', '--work-dir']


def run(job, write):
    """Go through the commands of a job; ``write`` stands for the tools. Returns their names and options."""
    job.prepare()
    seen = []
    for command in job.commands(job):
        script, *arguments = command.arguments
        assert Path(script).parent == TOOLS and Path(script).is_file()
        options = [part for part in arguments if part.startswith('--')]
        seen.append((Path(script).name, options))
        write(Path(script).name, job.product.parent, arguments)
    return seen


def write_outputs(name, folder, arguments):
    if name == 'train.py':
        for file in ('epoch_1.pth', 'last_checkpoint', 'best.pth'):
            (folder / file).touch()
    elif name == 'wise_ft.py':
        (folder / 'wise_ft').mkdir()
        if arguments[arguments.index('--alphas') + 1] == '0.5':  # as tools/wise_ft.py does
            (folder / 'wise_ft' / 'metrics.json').write_text('{}')
    elif name == 'test.py':
        Path(arguments[arguments.index('--out') + 1]).write_text('{"format": 1}')


def test_a_training_is_tested_and_its_last_epochs_are_deleted(study):
    job = study({'FT': 'ft'}, amp=True).jobs[0]
    assert run(job, write_outputs) == [
        ('train.py', ['--seed', '--resume', '--work-dir', '--amp']),
        ('test.py', ['--out', '--predictions', '--work-dir', '--amp']),
    ]
    folder = job.product.parent
    expected = {'format': 1, 'method': 'FT', 'seed': 0, 'key': job.key}
    assert job.is_finished() and json.loads(job.product.read_text()) == expected
    names = {path.name for path in folder.iterdir()}
    assert names == {'best.pth', 'key', 'metrics.json', 'trained'} and (folder.parent / 'config.py').is_file()
    assert [name for name, _ in run(job, write_outputs)] == ['test.py']  # the training is not repeated
    job = study({'FT': 'ft'}, keep='all', seeds=[1]).jobs[0]
    run(job, write_outputs)
    assert (job.product.parent / 'epoch_1.pth').exists()


def test_derived_runs_use_the_tested_checkpoint(study):
    methods = {
        'FT': 'ft',
        'W': dict(wise_ft='FT'),
        'W2': dict(wise_ft='FT', alpha=0.3),
        'S': dict(soup='FT', greedy=True),
        'M': dict(soup='FT', stock=True),
        'G': dict(evaluate='FT', options=['--knn-gate', '--relevance-crop']),
    }
    jobs = {job.label: job for job in study(methods).jobs}
    seen = {}
    for label, job in jobs.items():
        seen[label.split()[1]] = run(job, write_outputs)
    interpolation = ['--alphas', '--save', '--out', '--work-dir']
    assert seen['W'] == [('wise_ft.py', [*interpolation, '--predictions'])]
    assert seen['W2'] == [('wise_ft.py', interpolation), ('test.py', TEST)]
    assert seen['S'] == [('soup.py', ['--out', '--greedy']), ('test.py', TEST)]
    assert seen['M'] == [('soup.py', ['--out', '--stock']), ('test.py', TEST)]
    assert seen['G'] == [('test.py', ['--knn-gate', '--relevance-crop', *TEST])]
    assert all(job.is_finished() for job in jobs.values())
    command = next(jobs['shapes G (seed 0)'].commands(jobs['shapes G (seed 0)']))
    assert str(jobs['shapes FT (seed 0)'].product.with_name('best.pth')) in command.arguments


def test_metrics_that_keep_no_predictions():
    """mmpretrain's own metric, for all sets or for one."""
    ours, theirs = dict(type='ShiftAccuracy'), dict(type='Accuracy')
    for evaluator, expected in ((ours, True), (theirs, False), (dict(ours, evaluators=dict(b=[theirs])), False)):
        cfg = Config(dict(test_dataloader=dict(a={}, b={}), test_evaluator=evaluator))
        assert keeps_predictions(cfg) is expected


def test_metrics_are_signed(tmp_path):
    (tmp_path / 'a.json').write_text('{"sets": {}}')
    sign_metrics(tmp_path / 'a.json', tmp_path / 'metrics.json', 'FT', 3, 'the key', tuned=5)
    signed = {'sets': {}, 'method': 'FT', 'seed': 3, 'tuned': 5, 'key': 'the key'}
    assert json.loads((tmp_path / 'metrics.json').read_text()) == signed
    assert not (tmp_path / 'a.json').exists()


def test_the_checkpoint_to_test(tmp_path):
    with pytest.raises(JobError, match='there is no checkpoint in'):
        find_checkpoint(tmp_path)
    for epoch in (9, 10):
        (tmp_path / f'epoch_{epoch}.pth').touch()
        os.utime(tmp_path / f'epoch_{epoch}.pth', (epoch, epoch))
    assert find_checkpoint(tmp_path).name == 'epoch_10.pth'
    (tmp_path / 'best_accuracy_top1_epoch_9.pth').touch()
    assert find_checkpoint(tmp_path).name == 'best_accuracy_top1_epoch_9.pth'
