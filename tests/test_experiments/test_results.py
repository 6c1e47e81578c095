"""Tables and lines of results."""

import json
import re

import pytest
from PIL import Image
from rich.console import Console

from mmcfmask.experiments.results import describe_run, write_average, write_results
from mmcfmask.reporting.contents import gather_contents
from mmcfmask.reporting.runs import FORMAT, read_run


@pytest.fixture
def run(tmp_path):
    """Writes a metrics.json and reads it."""

    def run(name, notes=(), seed=None, **sets):
        path = tmp_path / f'{name}.json'
        sets = {
            key: dict(metrics=value if isinstance(value, dict) else dict(top1=value), notes=list(notes))
            for key, value in sets.items()
        }
        path.write_text(json.dumps(dict(format=FORMAT, method='x', seed=seed, id_set='test', sets=sets)))
        return read_run(path)

    return run


@pytest.fixture
def show(tmp_path):
    def show(methods, pictures=True):
        console = Console(record=True, width=80)
        write_results(console, tmp_path, methods, 'test', ['test', 'v2', 'sketch'], 'shapes', pictures)
        return console.export_text()

    return show


def test_a_run_in_one_line(run):
    assert describe_run(run('a', test=90.04, v2=80.0, a=70.0).path, 'test') == 'test 90.0, OOD average 75.0'
    assert describe_run(run('a', test=90.0).path, 'test') == 'test 90.0'
    assert describe_run(run('a', v2=80.0).path, 'test') == 'OOD average 80.0'


def test_groups_without_shifts(run, show, tmp_path):
    """There is no scatter of shifts, but one of groups; the table has the chosen values."""
    lr = 'optim_wrapper.optimizer.lr'
    tuned = dict(method='FT', chosen={lr: 1e-5}, grid={lr: [1e-5, 1e-4]}, at_edge=[lr], metric='m', seed=0)
    runs = []
    for name, worst in (('a', 20.0), ('b', 30.0)):
        path = run(name, test=70.0).path
        content = json.loads(path.read_text())
        content['sets']['test']['metrics'].update(worst_group=worst, group_average=90.0)
        path.write_text(json.dumps({**content, 'tuned': {**tuned, 'cfg_options': {}}}))
        runs.append(read_run(path))
    assert describe_run(runs[0].path, 'test') == 'test 70.0, test worst group 20.0'
    shown = ' '.join(show({'FT': runs}).split())
    assert 'worst_group.png' in shown.replace(' ', '') and not (tmp_path / 'id_ood.png').exists()
    assert 'At the edge of the grid' in shown and 'FT (lr 1e-05)' in shown
    text = (tmp_path / 'results.md').read_text()
    assert '| FT | 2 | 70.0 ± 0.0 | 25.0 ± 7.1 | 90.0 ± 0.0 | 1e-05 |' in text
    results = json.loads((tmp_path / 'results.json').read_text())
    assert results['methods']['FT']['mean']['Worst group'] == 25.0


GROUPS = dict(top1=60.0, worst_group=20.0, group_average=85.0)


def test_a_set_with_groups_is_no_shift(run, show, tmp_path):
    found = run('a', test=90.0, groups=GROUPS, v2=80.0, sketch=70.0)
    assert describe_run(found.path, 'test') == 'test 90.0, groups worst group 20.0, OOD average 75.0'
    show({'FT': [found]})
    results = json.loads((tmp_path / 'results.json').read_text())
    assert results['shifts'] == ['v2', 'sketch'] and results['methods']['FT']['mean']['OOD avg'] == 75
    header, _, row = [line for line in (tmp_path / 'results.md').read_text().splitlines() if line.startswith('|')][:3]
    assert [cell.strip() for cell in header.strip('|').split('|')][-4:] == [
        'OOD avg',
        'groups',
        'Worst group',
        'Weighted avg',
    ]
    assert [cell.strip(' *') for cell in row.strip('|').split('|')][-4:] == ['75.0', '60.0', '20.0', '85.0']
    contents = gather_contents([found.path])
    assert contents.accuracy.shifts == ('v2', 'sketch') and contents.accuracy.more[0] == 'groups'
    assert contents.accuracy.rows['x']['OOD avg'].mean == 75


def test_groups_of_the_id_set_stay_with_it(run, show, tmp_path):
    show({'FT': [run('a', test=GROUPS)]})
    assert '| Method | ID (test) | Worst group | Weighted avg |' in (tmp_path / 'results.md').read_text()


def test_the_files_that_are_written_are_listed(run, show, tmp_path):
    Image.new('RGB', (8, 8)).save(tmp_path / 'counterfactuals_object.png')
    shown = show({'FT': [run('a', test=90.0, v2=80.0)]})
    for name in ('results.md', 'results.json', 'id_ood.png', 'counterfactuals_object.png', 'index.html'):
        assert name in shown.replace('\n', '') and (tmp_path / name).is_file()
    assert 'counterfactuals' not in show({'FT': [run('a', test=90.0, v2=80.0)]}, pictures=False)


def test_the_page_has_the_order_of_the_study(run, show, tmp_path):
    """Of methods and sets, also where tools/report.py reads the folder later."""
    methods = {
        name: [run(name, test=90.0, a=10.0, sketch=70.0, v2=value)] for name, value in (('z', 80.0), ('b', 81.0))
    }
    show(methods)
    text = (tmp_path / 'index.html').read_text()
    data = json.loads(re.search(r'id="data">(.*?)</script>', text)[1])
    assert [method['name'] for method in data['methods']] == ['z', 'b'] and data['shifts'] == ['v2', 'sketch', 'a']
    assert '<title>shapes</title>' in text
    contents = gather_contents([f'{name}={tmp_path}/{name}.json' for name in 'bz'])
    assert list(contents.methods) == ['b', 'z']  # as named
    for name in 'bz':
        content = json.loads((tmp_path / f'{name}.json').read_text())
        path = tmp_path / name / 'metrics.json'
        path.parent.mkdir()
        path.write_text(json.dumps({**content, 'method': name}))
    contents = gather_contents([str(tmp_path)])
    assert list(contents.methods) == ['z', 'b'] and contents.accuracy.shifts == ('v2', 'sketch', 'a')


def test_runs_that_are_not_comparable_have_a_table_but_no_page(run, show, tmp_path):
    runs = [run('a', test=90.0, v2=80.0), run('b', test=90.0, v2=80.0)]
    shown = show({'FT': [one._replace(seed=3) for one in runs]})
    assert "no page: two runs of 'FT' with seed 3" in ' '.join(shown.split())
    assert (tmp_path / 'results.md').is_file() and not (tmp_path / 'index.html').exists()


def test_sets_that_differ_between_seeds(run, show, tmp_path):
    shown = show({'FT': [run('a', test=90.0, v2=80.0), run('b', test=90.0, v2=80.0, a=10.0)]})
    assert 'shapes: no table:' in shown and 'Delete the metrics.json that lacks a set' in shown
    assert not (tmp_path / 'results.md').exists()


def test_incomplete_sets_are_marked(run, show, tmp_path):
    shown = show({'LP': [run('a', notes=['incomplete: 9 of 10 images'], test=90.0, sketch=30.0)]})
    assert 'incomplete: 9 of 10 images' in (tmp_path / 'results.md').read_text() and 'incomplete' in shown


def test_average_over_the_domains_that_were_left_out(run, tmp_path):
    """By hand: the mean over the domains for each seed, then mean and sample deviation over the seeds that all have."""

    def runs(name, *accuracies):
        return [run(f'{name}{seed}', seed=seed, test=99.0, left_out=value) for seed, value in enumerate(accuracies)]

    finished = {
        'A': dict(FT=runs('fa', 60.0, 62.0, 90.0), FD=runs('da', 50.0), Late=runs('la', 1.0)),
        'B': dict(FT=runs('fb', 70.0, 74.0), FD=runs('db', 55.0)),
        'C': dict(FT=runs('fc', 80.0, 83.0), FD=runs('dc', 66.0)),
    }
    console = Console(record=True, width=100)
    write_average(console, tmp_path, 'left_out', finished)
    seeds = [(60 + 70 + 80) / 3, (62 + 74 + 83) / 3]
    row = next(line for line in (tmp_path / 'average.md').read_text().splitlines() if line.startswith('| FT'))
    assert f'{sum(seeds) / 2:.1f} ± {abs(seeds[0] - seeds[1]) / 2**0.5:.1f}' in row and '61.0 ± 1.4' in row
    assert '57.0' in (tmp_path / 'average.md').read_text()  # (50 + 55 + 66) / 3
    shown = console.export_text()
    assert 'Not in the average of left_out, for lack of a seed on every data set: Late' in shown
    assert json.loads((tmp_path / 'average.json').read_text())['methods']['FT']['seeds'] == 2


def test_no_average_without_a_method_on_every_data_set(run, tmp_path):
    write_average(Console(), tmp_path, 'left_out', {'A': dict(FT=[run('a', left_out=60.0)]), 'B': {}})
    assert not (tmp_path / 'average.md').exists()
