"""Groups, tuned values and the metric that chose the checkpoints, in tables and figures of models that do not exist."""

import csv
import json
from statistics import mean, stdev

import pytest
from synthetic_runs import write_run

from mmcfmask.reporting import make_report, page
from mmcfmask.reporting.choices import add_choices
from mmcfmask.reporting.contents import gather_contents
from mmcfmask.reporting.groups import (
    add_group_columns,
    group_points,
    group_tables,
    read_metrics,
    sets_without_top1,
)
from mmcfmask.reporting.runs import find_runs, group_runs
from mmcfmask.reporting.summary import summarize
from mmcfmask.reporting.tables import summaries_csv, summary_dict, summary_markdown

LR = 'optim_wrapper.optimizer.lr'
COUNTS = {'land on land': (50, 900), 'land on water': (50, 40), 'water on land': (20, 10), 'water on water': (20, 50)}


def write_group_run(path, accuracies, seed=0, method='FT', **content):
    """A run on one set with four groups, of these accuracies; the averages are computed here."""
    groups = {
        name: dict(accuracy=accuracy, count=count, train_count=trained)
        for (name, (count, trained)), accuracy in zip(COUNTS.items(), accuracies)
    }
    total, trained = (sum(part[i] for part in COUNTS.values()) for i in (0, 1))
    plain = sum(part['count'] * part['accuracy'] for part in groups.values()) / total
    weighted = sum(part['train_count'] * part['accuracy'] for part in groups.values()) / trained
    write_run(path, {'test': plain}, method=method, seed=seed, sets=dict(test=dict(groups=groups)))
    run = json.loads(path.read_text())
    run.update(content, id_set='test')
    run['sets']['test']['metrics'].update(worst_group=min(accuracies), group_average=weighted)
    path.write_text(json.dumps(run))
    return plain, min(accuracies), weighted


FT = [(99.0, 60.0, 30.0, 90.0), (98.0, 62.0, 36.0, 92.0)]


@pytest.fixture
def runs(tmp_path):
    for seed, accuracies in enumerate(FT):
        write_group_run(tmp_path / f'runs/ft/seed{seed}/metrics.json', accuracies, seed)
    write_group_run(tmp_path / 'runs/zs/metrics.json', (90.0, 40.0, 50.0, 95.0), None, 'Zero-shot')
    return tmp_path / 'runs'


def test_a_report_without_shifts(runs, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(page, 'save_figure', lambda figure, path, pdf: drawn.append(path.name))
    contents = make_report([str(runs)], tmp_path / 'report')
    text = (tmp_path / 'report' / 'report.md').read_text()
    assert '| Method | Seeds | ID (test) | Worst group | Weighted avg |' in text and 'OOD' not in text
    assert 'worst_group_test.png' in drawn and not any(name.startswith('id_ood') for name in drawn)
    weighted = [sum(a * n for a, (_, n) in zip(run, COUNTS.values())) / 1000 for run in FT]
    row = contents.accuracy.rows['FT']
    assert row['Worst group'][:2] == (33.0, stdev([30.0, 36.0]))
    assert row['Weighted avg'][:2] == (pytest.approx(mean(weighted)), pytest.approx(stdev(weighted)))
    assert '| Zero-shot | 1 |' in text and '| **40.0** |' in text  # the best worst group
    groups = text.split('## Accuracy in the groups of test (%)')[1].split('##')[0]
    assert '| FT | 98.5 ± 0.7 | 61.0 ± 1.4 | 33.0 ± 4.2 | 91.0 ± 1.4 |' in groups
    assert '| Test images | 50 | 50 | 20 | 20 |' in groups and '| Training images | 900 | 40 | 10 | 50 |' in groups
    (head, first, _) = csv.reader((tmp_path / 'report' / 'accuracy.csv').open())
    assert dict(zip(head, first))['Worst group'] == '33'


def test_the_points_of_the_scatter(runs):
    methods = group_runs(find_runs([str(runs)]))
    points = group_points(read_metrics(methods))
    assert list(points) == ['test'] and [worst for _, worst in points['test']['FT']] == [30.0, 36.0]
    assert points['test']['Zero-shot'][0][0] == pytest.approx(0.9 * 90 + 0.04 * 40 + 0.01 * 50 + 0.05 * 95)


def metrics(**values):
    return dict(top1=50.0, **values)


def test_methods_and_sets_without_groups():
    """Several sets name their columns; a method with numbers for some seeds only has none; marks are kept."""
    table = summarize(
        {'A': [dict(test=50.0, v2=50.0)] * 2, 'B': [dict(test=50.0, v2=50.0)] * 2, 'C': dict(test=50.0)},
        marks={'A': {'v2': 'incomplete'}},
    )
    full = dict(test=metrics(worst_group=10.0, group_average=60.0), v2=metrics(worst_group=5.0))
    runs = {'A': [full, full], 'B': [full, dict(test=metrics(), v2=metrics())], 'C': [dict(test=metrics())]}
    added = add_group_columns(table, runs)
    assert added.more == ('test: worst group', 'test: weighted avg', 'v2: worst group')
    assert added.text('A', 'v2: worst group') == '5.0 ± 0.0†' and added.text('A', 'test: worst group') == '10.0 ± 0.0'
    assert {added.text(method, column) for method in 'BC' for column in added.more} == {'–'}
    assert add_group_columns(table, {m: [dict(test=metrics())] for m in 'ABC'}) == table
    assert group_points({'A': [full], 'B': [dict(test=metrics())]}) == {'test': {'A': [(60.0, 10.0)]}}


def test_a_report_without_groups_has_no_table_of_them(tmp_path):
    write_run(tmp_path / 'metrics.json', {'test': 90.0}, seed=0)
    assert group_tables(gather_contents([str(tmp_path)]).methods) == {}


def tuned(method, lr, grid, at_edge=False, **changes):
    part = dict(method=method, chosen={LR: lr}, grid={LR: grid}, at_edge=[LR] * at_edge, metric='accuracy/top1')
    return {**part, 'seed': 0, 'cfg_options': {'a.fraction': 0.33}, **changes}


def test_tuned_values(tmp_path):
    grid = [3e-6, 1e-5, 3e-5]
    write_group_run(tmp_path / 'zs/metrics.json', FT[0], None, 'Zero-shot')
    write_group_run(tmp_path / 'ft/metrics.json', FT[0], method='FT', tuned=tuned('FT', 1e-5, grid))
    write_group_run(tmp_path / 'w/metrics.json', FT[0], method='W', tuned=tuned('FT', 1e-5, grid))
    write_group_run(tmp_path / 'lp/metrics.json', FT[0], method='LP', tuned=tuned('LP', 0.1, [0.01, 0.1], True))
    contents = gather_contents([str(tmp_path)])
    text = summary_markdown(contents.accuracy)
    assert {
        m: row.split('|')[-2].strip() for m in contents.methods for row in text.split('\n') if f'| {m} ' in row
    } == {
        'Zero-shot': '–',
        'FT': '1e-05',
        'W': '1e-05',
        'LP': '0.1',
    }
    for line in (
        'Chosen by accuracy/top1 on validation images, one training per setting (seed 0, a.fraction=0.33): lr out of '
        '3e-06, 1e-05, 3e-05 (FT); lr out of 0.01, 0.1 (LP).',
        'With the choice of another method: W (of FT).',
        'At the edge of the grid, so that a wider one may hold a better value: LP (lr 0.1).',
    ):
        assert f'\n{line}\n' in text
    assert 'Chosen by |' not in text  # all checkpoints by accuracy
    rows = list(csv.DictReader(summaries_csv([contents.accuracy]).split('\n')))
    assert {row['method']: row['lr'] for row in rows} == {'Zero-shot': '', 'FT': '1e-05', 'W': '1e-05', 'LP': '0.1'}
    assert summary_dict(contents.accuracy)['methods']['LP']['texts'] == {'lr': '0.1'}


def test_keys_that_end_alike_are_written_out(tmp_path):
    part = {**tuned('FT', 1, []), 'chosen': {'a.lr': 1, 'b.lr': 2}, 'grid': {'a.lr': [1], 'b.lr': [2]}}
    write_group_run(tmp_path / 'metrics.json', FT[0], tuned=part)
    contents = gather_contents([str(tmp_path)])
    assert list(contents.accuracy.texts) == ['a.lr', 'b.lr']
    assert any('a.lr out of 1 and b.lr out of 2.' in note for note in contents.accuracy.notes)


@pytest.mark.parametrize('chosen, column', [('accuracy/worst_group', True), ('accuracy/top1', False), (None, False)])
def test_the_metric_that_chose_a_checkpoint_is_named_unless_it_is_accuracy(tmp_path, chosen, column):
    write_group_run(tmp_path / 'a/metrics.json', FT[0], method='A', selected_by='accuracy/top1')
    write_group_run(tmp_path / 'b/metrics.json', FT[0], method='B', selected_by=chosen)
    summary = gather_contents([str(tmp_path)]).accuracy
    assert summary.texts == ({'Chosen by': {'A': 'top1', 'B': 'worst_group'}} if column else {})
    assert any(note.startswith('Chosen by: the metric') for note in summary.notes) == column


def test_nothing_is_added_for_runs_of_earlier_versions(tmp_path):
    write_run(tmp_path / 'metrics.json', {'imagenet': 90.0}, seed=0)
    methods = group_runs(find_runs([str(tmp_path)]))
    table = summarize({'x': dict(imagenet=90.0)}, 'imagenet')
    assert add_choices(table, methods) == table


def test_measures_of_sets_without_top1():
    """They have columns of their own, of a drop the lowest is the best, and no place in the OOD average."""
    table = summarize({'A': dict(test=50.0, v2=40.0), 'B': dict(test=60.0, v2=50.0)})
    found = {
        'A': dict(test=metrics(), v2=metrics(), in9=dict(bg_gap=7.0), cars=dict(accuracy=60.0, zero_shot_drop=5.0)),
        'B': dict(test=metrics(), v2=metrics(), in9=dict(bg_gap=-1.0), cars=dict(accuracy=64.0, zero_shot_drop=1.0)),
    }
    added = add_group_columns(table, {method: [run] for method, run in found.items()})
    assert added.more == ('cars: accuracy', 'cars: zero-shot drop', 'in9: BG-gap') and added.shifts == ('v2',)
    assert added.text('B', 'in9: BG-gap') == '-1.0' and added.is_best('B', 'in9: BG-gap')
    assert added.is_best('B', 'cars: zero-shot drop') and added.is_best('B', 'cars: accuracy')
    assert not added.is_best('A', 'in9: BG-gap')
    assert any(note.startswith('BG-gap: accuracy on Mixed-Same minus Mixed-Rand of in9') for note in added.notes)
    without = sets_without_top1([*found.values()])
    assert without == ['in9', 'cars']
    results = {'A': dict(test=50.0, v2=40.0), 'B': dict(test=60.0, v2=50.0)}
    marks = {'A': {'in9': 'incomplete'}}
    table = summarize(results, marks=marks, uncounted=without)
    marked = add_group_columns(table, {method: [run] for method, run in found.items()})
    assert marked.text('A', 'in9: BG-gap') == '7.0†' and marked.text('A', 'OOD avg') == '40.0'
    assert summarize(results, marks=marks).text('A', 'OOD avg') == '40.0†'
    one = add_group_columns(table, {m: [{k: v for k, v in run.items() if k != 'cars'}] for m, run in found.items()})
    assert one.more == ('BG-gap',)
