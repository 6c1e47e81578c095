import io
from pathlib import Path

import pytest
from rich.console import Console

from mmcfmask.experiments.durations import add_duration, read_durations
from mmcfmask.experiments.listing import describe_state, print_states
from mmcfmask.experiments.spec import StudySpec, parse
from mmcfmask.experiments.study import Study

CONFIG = str(Path(__file__).parents[2] / 'configs' / 'shapes' / '{config}.py')


@pytest.fixture
def study(tmp_path):
    methods = {
        'Zero-shot': dict(config='zeroshot'),
        'FT': dict(config='ft', grid={'optim_wrapper.optimizer.lr': [1e-4, 5e-4]}),
        'FD': dict(config='fd', seeds=[1], grid={'optim_wrapper.optimizer.lr': [1e-4, 2e-4]}),
        'FT soup': dict(soup='FT'),
    }
    values = dict(datasets={'shapes': CONFIG}, methods=methods, seeds=[0, 1], out=str(tmp_path / 'out'), pictures=False)
    return Study(parse(StudySpec, values))


def finish(job):
    job.product.parent.mkdir(parents=True, exist_ok=True)
    job.prepare()
    job.product.write_text('{}')


def show(study, durations=()):
    console = Console(width=100, record=True, file=io.StringIO())
    print_states(console, study.plan, study.jobs, list(durations))
    text = console.export_text()
    rows = [line.split('│')[1:-1] for line in text.splitlines() if line.startswith('│')]
    return {method.strip(): [cell.strip() for cell in cells] for method, *cells in rows}, text.splitlines()[-1]


def test_states_by_method_and_seed(study):
    runs = study.plan.runs
    finish(runs['shapes', 'Zero-shot'][None])
    trials = study.plan.tuned['shapes', 'FT'].tuning.trials
    finish(trials[0])
    states, left = show(study)
    assert states == {
        'Zero-shot': ['', 'finished', ''],
        'FT': ['1 of 2', 'to do', 'to do'],
        'FD': ['0 of 2', '', 'to do'],
        'FT soup': ['', 'to do', ''],
    }
    assert left == '2 of 9 runs, trials and pictures need no work, 7 are left'


def test_time_that_is_left(study):
    """One run took 10 minutes, a trial one: three runs and a soup, of which nothing is known, and four trials."""
    groups = [study.plan.runs['shapes', 'FT'][0].group, study.plan.tuned['shapes', 'FT'].tuning.trials[0].group]
    left = show(study, zip(groups, (600.0, 60.0)))[1]
    # FD is expected to take as long as FT, zero-shot and the soup as long as the mean of all, 330 s.
    assert left.endswith(f', 9 are left: about {round((3 * 600 + 4 * 60 + 2 * 330) / 60)} min, one after the other')


def test_durations_are_kept(tmp_path):
    assert read_durations(tmp_path) == []
    add_duration(tmp_path, ('shapes', 'trained', 'FT'), 61.26)
    add_duration(tmp_path, ('shapes', 'tested', 'Größe'), 2.0)
    with (tmp_path / 'durations.jsonl').open('a') as file:
        file.write('{"group": ["shapes"], "sec')
    assert read_durations(tmp_path) == [(('shapes', 'trained', 'FT'), 61.3), (('shapes', 'tested', 'Größe'), 2.0)]


def test_a_job_without_work(study):
    job = study.plan.runs['shapes', 'Zero-shot'][None]
    finish(job)
    assert describe_state(job, []) == 'finished' and describe_state(job, [job]) == 'to do'
    assert describe_state(study.plan.tuned['shapes', 'FT'].tuning.trials[0], []) == 'unneeded'
