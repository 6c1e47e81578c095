"""Trials of a grid: what is planned, what is chosen, and what the runs make of it. No training."""

import json
import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from rich.console import Console

from mmcfmask.errors import ConfigError
from mmcfmask.experiments.commands import DIVERGED
from mmcfmask.experiments.jobs import JobError
from mmcfmask.experiments.listing import describe_state
from mmcfmask.experiments.local import LocalExecutor
from mmcfmask.experiments.scheduler import find_pending, run_jobs
from mmcfmask.experiments.tuning import is_at_edge, list_settings

LR, DECAY = 'optim_wrapper.optimizer.lr', 'optim_wrapper.optimizer.weight_decay'
TUNE = dict(grid={LR: [1e-5, 1e-4]}, seed=5, cfg_options={'train_dataloader.dataset.size': 64})


def finish(job, accuracy, nll=1.0, rule='greater'):
    """Write what a trial would, with the accuracy of its best validation; None: it diverged."""
    job.prepare()
    metrics = None if accuracy is None else {'accuracy/top1': accuracy, 'accuracy/nll': nll}
    result = dict(metric='accuracy/top1', rule=rule, metrics=metrics, diverged=None, key=job.full_key)
    job.product.write_text(json.dumps(result))


def go_through(job, write=lambda command: None):
    job.prepare()
    seen = []
    for command in job.commands(job):
        seen.append(command)
        write(command)
    return seen


def write_test(command):
    """What the tools write."""
    arguments = command.arguments
    if arguments[0].endswith('train.py'):
        (Path(arguments[arguments.index('--work-dir') + 1]) / 'best.pth').touch()
    else:
        Path(arguments[arguments.index('--out') + 1]).write_text('{}')


def test_every_trained_method_has_a_trial_per_setting_before_its_runs(study, labels, tmp_path):
    methods = {
        'Zero-shot': 'zeroshot',
        'LP': dict(config='lp', grid={LR: [0.1, 0.01], DECAY: [0.0, 0.1]}),
        'FT': 'ft',
        'FD': dict(config='fd', grid={}),
        '{mask}': dict(
            config='cfmask', tuned_as='context', sweep={'model.data_preprocessor.mask': ['object', 'context']}
        ),
        'FT + WiSE-FT': dict(wise_ft='FT'),
    }
    planned = study(methods, tune=TUNE)
    trials = [f'shapes LP (tuning, lr={lr}_weight_decay={decay})' for lr in ('0.1', '0.01') for decay in ('0.0', '0.1')]
    assert labels(planned) == [
        'shapes Zero-shot',
        *trials,
        'shapes LP (seed 0)',
        'shapes FT (tuning, lr=1e-05)',
        'shapes FT (tuning, lr=0.0001)',
        'shapes FT (seed 0)',
        'shapes FD (seed 0)',
        'shapes context (tuning, lr=1e-05)',
        'shapes context (tuning, lr=0.0001)',
        'shapes object (seed 0)',
        'shapes context (seed 0)',
        'shapes FT + WiSE-FT (seed 0)',
    ]
    jobs = {job.label: job for job in planned.jobs}
    trial = jobs['shapes FT (tuning, lr=1e-05)']
    assert trial.product == tmp_path / 'shapes' / 'tune' / 'ft' / 'lr=1e-05' / 'trial.json'
    assert trial in jobs['shapes FT (seed 0)'].depends_on
    assert jobs['shapes FT + WiSE-FT (seed 0)'].depends_on[0] == jobs['shapes FT (seed 0)']
    (command,) = [next(trial.commands(trial))]
    cfg = Config.fromfile(command.arguments[1])
    assert (cfg.optim_wrapper.optimizer.lr, cfg.train_dataloader.dataset.size) == (1e-5, 64)
    assert command.arguments[command.arguments.index('--seed') + 1] == '5' and '--resume' in command.arguments
    assert labels(study(methods, tune=TUNE, only=['object']))[0] == 'shapes context (tuning, lr=1e-05)'


def test_a_run_takes_the_best_setting(study):
    """The trials' budget is not the runs'; a method without its own trials takes the same setting."""
    methods = {'FT': 'ft', 'FD': dict(config='fd', tuned_as='FT'), 'W': dict(wise_ft='FT')}
    planned = study(methods, tune=TUNE)
    first, second, ft, fd, derived = planned.jobs
    finish(first, 70.0)
    with pytest.raises(JobError, match='the trials of FT are not finished'):
        next(ft.commands(ft))
    finish(second, 80.0)
    for job in (ft, fd):
        go_through(job, write_test)
        cfg = Config.fromfile(str(job.product.parents[1] / 'config.py'))
        assert (cfg.optim_wrapper.optimizer.lr, cfg.train_dataloader.dataset.size) == (1e-4, 2000)
        tuned = json.loads(job.product.read_text())['tuned']
        assert (tuned['method'], tuned['chosen'], tuned['grid']) == ('FT', {LR: 1e-4}, {LR: [1e-5, 1e-4]})
        assert (tuned['at_edge'], tuned['seed'], tuned['cfg_options']) == ([LR], 5, TUNE['cfg_options'])
        assert [trial['metrics']['accuracy/top1'] for trial in tuned['trials']] == [70.0, 80.0]
    next(derived.commands(derived))
    assert Config.fromfile(str(ft.product.parents[1] / 'config.py')).optim_wrapper.optimizer.lr == 1e-4
    assert all(job.is_finished() for job in (ft, fd)) and '{"optim_wrapper.optimizer.lr": 0.0001}' in ft.full_key


@pytest.mark.parametrize(
    'results, chosen',
    [
        ([dict(accuracy=70.0), dict(accuracy=60.0)], 0),
        ([dict(accuracy=70.0, nll=0.5), dict(accuracy=70.0, nll=0.4)], 1),  # ties: the likelihood
        ([dict(accuracy=70.0), dict(accuracy=70.0)], 0),  # the first
        ([dict(accuracy=None), dict(accuracy=10.0)], 1),  # one diverged
        ([dict(accuracy=70.0, rule='less'), dict(accuracy=60.0, rule='less')], 1),
    ],
)
def test_the_choice(study, results, chosen):
    planned = study({'FT': 'ft'}, tune=TUNE)
    *trials, _ = planned.jobs
    for job, result in zip(trials, results):
        finish(job, **result)
    assert planned.plan.tuned['shapes', 'FT'].tuning.find_best() == chosen


def test_a_method_that_diverges_everywhere_fails(study):
    *trials, ft = study({'FT': 'ft'}, tune=TUNE).jobs
    for job in trials:
        finish(job, None)
    assert not ft.is_finished()
    with pytest.raises(JobError, match='FT cannot be tuned: the loss became infinite with every setting'):
        go_through(ft)


def test_a_run_counts_for_the_setting_that_is_chosen(study):
    def make(**changes):
        return study({'FT': 'ft', 'W': dict(wise_ft='FT')}, tune={**TUNE, **changes}).jobs

    planned = [make(**changes) for changes in ({}, dict(seed=6), dict(cfg_options={}))]
    assert len({job.key for jobs in planned for job in jobs if job.serves}) == 6
    assert len({job.full_key for jobs in planned for job in jobs}) == 12  # of runs: what they choose from
    first, second, ft, derived = jobs = make()
    assert find_pending(jobs) == jobs
    for job, accuracy in ((first, 70.0), (second, 80.0)):
        finish(job, accuracy)
    go_through(ft, write_test)
    derived.prepare()
    derived.product.write_text(json.dumps(dict(key=derived.full_key)))
    assert ft.is_finished() and derived.is_finished()

    wider = make(grid={LR: [1e-5, 1e-4, 1e-3]})  # the trials of the first two are kept
    assert find_pending(wider) == wider[2:]
    finish(wider[2], 75.0)
    assert find_pending(wider) == []  # the choice is the same
    content = json.loads(wider[3].product.read_text())
    assert content['tuned']['grid'] == {LR: [1e-5, 1e-4]} and content['tuned']['at_edge'] == [LR]
    for job in wider[3:]:
        job.refresh(job)
        content = json.loads(job.product.read_text())
        assert content['tuned']['grid'] == {LR: [1e-5, 1e-4, 1e-3]} and content['tuned']['at_edge'] == []
        assert content['key'] == job.full_key == job.read_key() and job.is_finished()

    finish(wider[2], 90.0)  # another setting is the best
    assert find_pending(wider) == wider[3:]
    (ft.product.parent / 'epoch_1.pth').touch()
    wider[3].prepare()
    assert not ft.product.exists() and not (ft.product.parent / 'epoch_1.pth').exists()


def test_the_metric_of_the_choice(study):
    first, second, ft = study({'FT': 'ft'}, tune=TUNE).jobs
    for job, accuracy, nll in ((first, 70.0, 0.3), (second, 80.0, 0.4)):
        finish(job, accuracy, nll)
    for metric, chosen in (('accuracy/top1', 1), ('accuracy/nll', 0)):
        tuning = study({'FT': 'ft'}, tune={**TUNE, 'metric': metric}).plan.tuned['shapes', 'FT'].tuning
        assert tuning.find_best() == chosen and tuning.describe()['metric'] == metric
    with pytest.raises(
        ConfigError, match=r"\['FT'\]: tune.metric: .*'accuracy/worst': the validation has no such metric"
    ):
        study({'FT': 'ft'}, tune={**TUNE, 'metric': 'accuracy/worst'})
    tuning = study({'FT': 'ft'}, tune={**TUNE, 'metric': 'accuracy/ece'}).plan.tuned['shapes', 'FT'].tuning
    with pytest.raises(JobError, match="tune.metric: the validation has no 'accuracy/ece', but accuracy/top1, acc"):
        tuning.find_best()


def test_a_run_whose_setting_is_chosen_again_is_kept(study):
    """The wider grid makes it unfinished until its trials are; then it is not trained again."""
    first, second, ft = study({'FT': 'ft'}, tune=TUNE).jobs
    for job, accuracy in ((first, 70.0), (second, 80.0)):
        finish(job, accuracy)
    go_through(ft, write_test)
    *_, third, ft = wider = study({'FT': 'ft'}, tune={**TUNE, 'grid': {LR: [1e-5, 1e-4, 1e-3]}}).jobs

    def train(job):
        finish(job, 10.0)
        yield from ()

    def refuse(job):
        raise AssertionError('it would be trained')

    third.commands, ft.commands = train, refuse
    console = Console(record=True, width=200)
    assert run_jobs(wider, console, LocalExecutor(), refresh=0.01) == {}
    assert 'shapes FT (seed 0): kept' in console.export_text()


def test_wise_ft_waits_for_the_trials_that_it_reads(study):
    planned = study({'FT': 'ft', 'FT + WiSE-FT': dict(wise_ft='FT')}, tune=TUNE)
    (wise_ft,) = (job for job in planned.jobs if 'WiSE-FT' in job.label)
    source, *trials = wise_ft.depends_on
    assert 'FT (seed 0)' in source.label and [job.serves for job in trials] == [True, True]


def test_test_sets_are_no_part_of_a_trial(study):
    """A run counts with its test sets, a trial without."""
    before, after = (
        {job.label: job.key for job in study({'FT': dict(config='ft', cfg_options=options)}, tune=TUNE).jobs}
        for options in ({}, {'test_dataloader.r.dataset.size': 50})
    )
    changed = [label for label in before if before[label] != after[label]]
    assert changed == ['shapes FT (seed 0)'] and len(before) == 3


def test_trials_run_only_for_runs_that_are_not_finished(study):
    """As in a folder that holds nothing but copies of metrics.json."""
    jobs = study({'FT': 'ft'}, tune=TUNE, seeds=[0, 1]).jobs
    first, second, one, two = jobs
    assert find_pending(jobs) == jobs
    for job, accuracy in ((first, 70.0), (second, 80.0)):
        finish(job, accuracy)
    for job in (one, two):
        go_through(job, write_test)
        job.key_file.unlink()
    for job in (first, second):
        job.product.unlink()
    assert find_pending(jobs) == []
    assert [describe_state(job, []) for job in jobs] == ['unneeded', 'unneeded', 'finished', 'finished']
    two.product.unlink()
    assert find_pending(jobs) == [first, second, two]


def run_trial(job, program):
    """Run a trial with a program in place of tools/train.py; returns the failures."""
    script = job.product.parent.parent / 'script.py'
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_text(f'FOLDER = {str(job.product.parent)!r}\n{program}')
    commands = job.commands

    def replaced(job):
        for command in commands(job):
            command.arguments = [str(script)]
            yield command

    job.commands, job.serves = replaced, False
    return run_jobs([job], Console(quiet=True), LocalExecutor(), refresh=0.01)


TRAIN = """
import torch
best = dict(metric='accuracy/top1', value=75.0, rule='greater', metrics={'accuracy/top1': 75.0, 'accuracy/nll': 0.5})
for name in ('best.pth', 'epoch_1.pth'):
    torch.save(dict(state_dict=dict(a=torch.zeros(1)), meta=dict(epoch=3, best=best)), f'{FOLDER}/{name}')
open(f'{FOLDER}/last_checkpoint', 'w')
"""


def test_a_trial_leaves_a_small_file(study):
    job = study({'FT': 'ft'}, tune=TUNE).jobs[0]
    assert run_trial(job, TRAIN) == {} and job.is_finished()
    trial = json.loads(job.product.read_text())
    assert (trial['method'], trial['seed'], trial['setting']) == ('FT', 5, {LR: 1e-5})
    assert (trial['metrics'], trial['epoch']) == ({'accuracy/top1': 75.0, 'accuracy/nll': 0.5}, 3)
    assert {path.name for path in job.product.parent.iterdir()} == {'trial.json', 'key', 'train.log'}
    assert job.report() == 'accuracy/top1 75.00 on validation images'


def test_a_trial_that_was_killed_after_its_training_is_not_trained_again(study):
    job = study({'FT': 'ft'}, tune=TUNE).jobs[0]
    job.prepare()
    (job.product.parent / 'best.json').write_text('{"metrics": 1}')
    (job.product.parent / 'epoch_1.pth').touch()
    assert go_through(job) == [] and job.is_finished()
    assert not (job.product.parent / 'epoch_1.pth').exists() and json.loads(job.product.read_text())['metrics'] == 1


def test_a_run_takes_the_training_of_its_trial(study):
    """If it would train the same: the chosen setting, seed and budget of the trial."""
    methods = {'FT': 'ft', 'CFMask': dict(config='cfmask', tuned_as='FT')}
    first, second, *runs = study(methods, seeds=[5, 6], tune={**TUNE, 'cfg_options': {}}).jobs
    for job in first, second:
        assert run_trial(job, TRAIN.replace('75.0', '80.0') if job is second else TRAIN) == {}
        kept = {path.name for path in job.product.parent.iterdir()}
        assert kept == {'trial.json', 'key', 'train.log', 'best.pth'}
    seen = {job.label: [command.what for command in go_through(job, write_test)] for job in runs[:4]}
    assert seen == {
        'shapes FT (seed 5)': ['testing on'],
        'shapes FT (seed 6)': ['fine-tuning', 'testing on'],
        'shapes CFMask (seed 5)': ['fine-tuning', 'testing on'],
        'shapes CFMask (seed 6)': ['fine-tuning', 'testing on'],
    }
    taken = runs[0].product.parent
    assert torch.load(taken / 'best.pth')['meta']['best']['value'] == 80.0 and runs[0].is_usable()
    assert (taken / 'train.log').is_file() and not (second.product.parent / 'train.log').exists()
    assert not [path for job in (first, second) for path in job.product.parent.glob('*.pth')]
    assert first.is_finished() and second.is_finished()


@pytest.mark.parametrize('change', [dict(seed=4), dict(cfg_options={'train_cfg.max_epochs': 1})])
def test_a_trial_of_another_training_keeps_no_checkpoint(study, change):
    job = study({'FT': 'ft'}, seeds=[5, 6], tune={**TUNE, 'cfg_options': {}, **change}).jobs[0]
    assert run_trial(job, TRAIN) == {}
    assert not list(job.product.parent.glob('*.pth'))


def test_a_diverging_trial_is_a_result_and_another_failure_is_not(study):
    first, second = study({'FT': 'ft'}, tune=TUNE).jobs[:2]
    line = 'the loss or its gradient is not finite at iteration 3'
    assert run_trial(first, f'raise SystemExit("a.py: {line}")') == {} and first.is_finished()
    trial = json.loads(first.product.read_text())
    assert trial['metrics'] is None and line in trial['diverged'] and first.report() == 'diverged'
    failed = run_trial(second, 'raise SystemExit("the disk is full")')
    assert 'tuning failed, see' in failed[second.label] and not second.is_finished()
    failed = run_trial(second, '')
    assert 'wrote no best checkpoint: it needs a validation' in failed[second.label]


def test_the_message_of_a_divergence_is_recognised():
    from mmcfmask.engine.hooks import StopOnInvalidLossHook
    from mmcfmask.errors import NumericalError

    class Runner:
        message_hub = type('hub', (), dict(log_scalars={}, runtime_info={}))
        optim_wrapper, iter, epoch = None, 0, 0

    with pytest.raises(NumericalError) as raised:
        StopOnInvalidLossHook().after_train_iter(Runner(), 0, None, dict(loss=torch.tensor(float('nan'))))
    assert DIVERGED.search(str(raised.value))


def test_settings():
    assert list_settings({'a.lr': [1e-5, 0.1], 'b.on': [True]}, 'x') == {
        'lr=1e-05_on=true': {'a.lr': 1e-5, 'b.on': True},
        'lr=0.1_on=true': {'a.lr': 0.1, 'b.on': True},
    }
    assert list(list_settings({'a.lr': [1], 'b.lr': [2]}, 'x')) == ['a.lr=1_b.lr=2']
    with pytest.raises(ConfigError, match="x: the trials of two values would share the folder 'a=x_y'"):
        list_settings({'m.a': ['x y', 'x_y']}, 'x')
    with pytest.raises(ConfigError, match='x has more than 100 combinations'):
        list_settings({'m.a': list(range(11)), 'm.b': list(range(10))}, 'x')
    cases = [(1, [1, 2, 3]), (3, [1, 3, 2]), (2, [1, 2, 3]), (1, [1]), ('a', ['a', 'b']), (True, [True, False])]
    assert [is_at_edge(*case) for case in cases] == [True, True, False, False, False, False]


@pytest.mark.parametrize(
    'methods, settings, message',
    [
        ({'FT': dict(config='ft', cfg_options={LR: 1.0})}, {}, f"'FT'\\]: {LR} is tuned, but its cfg_options sets"),
        ({'FT': 'ft'}, dict(overrides={LR: 1.0}), f"'FT'\\]: {LR} is tuned, but --cfg-options sets {LR}: leave it out"),
        ({'ZS': dict(config='zeroshot', grid={LR: [1.0]})}, {}, r"methods\['ZS'\] cannot be tuned: its config trains"),
        (
            {'ZS': dict(config='zeroshot', tuned_as='FT'), 'FT': 'ft'},
            {},
            r"\['ZS'\] cannot be tuned: its config trains",
        ),
        ({'FT': dict(config='ft', tuned_as='LP')}, {}, r"\['FT'\].tuned_as: no method is named 'LP'. There are FT"),
        (
            {'FT': dict(config='ft', tuned_as='LP'), 'LP': dict(config='lp', grid={})},
            {},
            r"methods\['FT'\].tuned_as: 'LP' is not tuned on shapes: it needs a grid",
        ),
        (
            {'A': dict(config='ft', tuned_as='B'), 'B': dict(config='ft', tuned_as='C'), 'C': 'ft'},
            {},
            r"methods\['A'\].tuned_as: 'B' is not tuned itself, since it takes the choice of 'C'",
        ),
        ({'FT': 'ft', 'W': dict(wise_ft='FT', grid={LR: [1.0]})}, {}, r"'W'\]: wise_ft uses the runs of 'FT', which"),
        ({'FT': dict(config='ft', grid={'model.tpyo': [1]})}, {}, 'tpyo'),
        ({'FT': dict(config='ft', grid={LR: [1.0, -1.0]})}, {}, r"'FT'\]: .*lr=-1.0: it must be"),
        ({'Tune': 'ft'}, {}, r"methods\['Tune'\]: the folder tune is for trials"),
        ({'FT': 'ft'}, dict(cfg_options={'default_hooks.checkpoint.save_best': None}), 'needs validation images'),
    ],
)
def test_mistakes_are_found_before_anything_runs(study, methods, settings, message):
    with pytest.raises(ConfigError, match=message) as raised:
        study(methods, tune=TUNE, **settings)
    assert '\n' not in str(raised.value)


def test_pictures_do_not_change_the_config_of_the_runs(study):
    planned = study({'CFMask': 'cfmask'}, tune=TUNE, pictures=True)
    picture = planned.jobs[-1]
    command = next(picture.commands(picture))
    assert command.arguments[1] == str(picture.product.with_suffix('.py'))
    assert re.search('lr=0.0005', Path(command.arguments[1]).read_text())
