import json
import multiprocessing
import os
import re
import signal
import time
from multiprocessing.context import ForkContext
from pathlib import Path

import pytest
import torch
from rich.console import Console

from mmcfmask.benchmarks import tower_runs, tower_trials
from mmcfmask.benchmarks.tower_runs import (
    NOT_REACHED,
    TOO_LARGE,
    find_groups,
    in_process,
    order,
    read_records,
    run_towers,
)
from mmcfmask.errors import ConfigError

CONFIG = str(Path(__file__).parents[2] / 'configs' / 'cfmask_vitb16.py')
SHAPES = dict(config=CONFIG, name='ShapesCLIP-ViT-8-64', all_variants=False)
GROUPS = [['big', 'big-too'], ['small'], ['giant']]
NEEDS = {'small': 1, 'big': 5, 'giant': 500}


@pytest.fixture
def tried(monkeypatch):
    """The names of towers that were tried, in order; nothing is built."""
    names = []

    def estimate(name, batch):
        return dict(parameters=NEEDS[name] * 10**6, gflop=float(NEEDS[name]), image_size=[8, 8], memory=NEEDS[name])

    def trial(timeout, limit, arguments):
        names.append((arguments['name'], arguments['all_variants']))
        if arguments['name'] == 'big' and len(names) == 2:
            raise KeyboardInterrupt
        return dict(built='failed: for a test')

    monkeypatch.setattr(tower_trials, 'list_towers', lambda: GROUPS)
    monkeypatch.setattr(tower_trials, 'estimate', estimate)
    monkeypatch.setattr(tower_runs, 'in_process', trial)
    return names


def run(tmp_path, *names, **options):
    options = dict(page=str(tmp_path / 'page.md'), max_memory=100.0, variants_below=3.0, **options)
    return run_towers(CONFIG, names, str(tmp_path / 'towers.jsonl'), Console(quiet=True), **options)


def skipped(tmp_path):
    return {name: record.get('skipped') for name, record in read_records(str(tmp_path / 'towers.jsonl')).items()}


def test_a_killed_run_goes_on(tmp_path, tried):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    assert tried == [('small', True), ('big', False)]  # the smallest first
    assert skipped(tmp_path) == {'small': None, 'big': NOT_REACHED, 'giant': NOT_REACHED}
    assert f'- CLIP ViT, {NOT_REACHED}: `big`, `giant`\n' in (tmp_path / 'page.md').read_text()
    tried.append('from here')
    run(tmp_path)
    assert tried[3:] == [('big', False)]
    assert skipped(tmp_path) == {'small': None, 'big': None, 'giant': f'{TOO_LARGE}: 500 GB'}
    page = (tmp_path / 'page.md').read_text()
    assert (
        NOT_REACHED not in page
        and f'{TOO_LARGE}: `giant` (500 GB)' in page
        and '`big`: built: failed: for a test' in page
    )


def test_towers_are_tried_again_by_name_or_with_more_memory(tmp_path, tried):
    tried += ['no', 'interrupt']
    run(tmp_path)
    run(tmp_path)
    assert tried[2:] == [('small', True), ('big', False)]
    run(tmp_path, 'big-too')
    assert tried[4:] == [('big', False)]
    run_towers(CONFIG, [], str(tmp_path / 'towers.jsonl'), Console(quiet=True), max_memory=600.0)
    assert tried[5:] == [('giant', False)] and skipped(tmp_path)['giant'] is None


def test_every_family_comes_early():
    sizes = {'ViT-a': 5, 'ViT-b': 1, 'RN1': 9, 'RN2': 8, 'EVA1': 30, 'EVA2': 3}
    records = {name: dict(gflop=size) for name, size in sizes.items()}
    assert order(sizes, records) == ['ViT-b', 'EVA2', 'RN2', 'ViT-a', 'RN1', 'EVA1']
    records['ViT-b']['built'] = 'ok'
    assert order(set(sizes) - {'ViT-b'}, records) == ['EVA2', 'RN2', 'ViT-a', 'RN1', 'EVA1']


def test_mistakes(tmp_path):
    with pytest.raises(ConfigError, match="open_clip has no model 'ViT-B-61'. Did you mean .*'ViT-B-16'"):
        find_groups(['ViT-B-61'])
    path = tmp_path / 'towers.jsonl'
    for text in ('no json\n', '[1]\n', '{"a": 1}\n'):
        path.write_text(text)
        with pytest.raises(ConfigError, match='has no records of towers'):
            read_records(str(path))


def end(name, **others):
    """In place of a trial, in another process."""
    if name == 'killed':
        os.kill(os.getpid(), signal.SIGKILL)
    if name == 'slow':
        time.sleep(60)
    if name == 'large':
        torch.zeros(30 * 10**9, dtype=torch.uint8)
    return dict(built='ok')


@pytest.mark.parametrize(
    'name, timeout, built',
    [
        ('fine', 60, 'ok'),
        ('killed', 60, r'failed: its process ended with exit code -9 \(-9: perhaps out of memory\)'),
        ('slow', 0.3, 'failed: no result within 0.3 seconds'),
        ('large', 60, "failed: RuntimeError: .*can't allocate memory"),
    ],
)
def test_the_end_of_a_process_is_a_record(name, timeout, built, monkeypatch):
    monkeypatch.setattr(tower_trials, 'try_tower', end)
    monkeypatch.setattr(multiprocessing, 'get_context', _fork)
    assert re.match(built, in_process(timeout, 20.0, dict(name=name))['built'])


def _fork(_):
    """A process that knows the patched trial."""
    context = ForkContext()
    context.set_forkserver_preload = lambda modules: None
    return context


def test_a_trial_ends_with_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(tower_trials, 'try_tower', lambda path: (Path(path).write_text(str(os.getpid())), end('slow')))
    monkeypatch.setattr(multiprocessing, 'get_context', _fork)
    path = tmp_path / 'pid'
    run = ForkContext().Process(target=in_process, args=(60, 20.0, dict(path=str(path))))
    run.start()
    wait_for(lambda: path.exists() and path.read_text())
    run.kill()
    run.join()
    stat = Path('/proc', path.read_text(), 'stat')
    wait_for(lambda: not stat.exists() or stat.read_text().split()[2] == 'Z')


def wait_for(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_one_tower_in_a_process(tmp_path):
    record = in_process(120, 20.0, SHAPES)
    assert record['built'] == 'ok' and record['variants'] == {'object/single': 'ok'}
    assert json.loads(json.dumps(record)) == record
