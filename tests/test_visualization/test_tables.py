import io
import json
import math

import numpy as np
import pytest
from rich.console import Console

from mmcfmask.visualization import results_table, summarize, to_json, to_markdown

ONE_SEED = {
    'Zero-shot': {'test': 80.0, 'v2': 70.0, 'sketch': 60.0},
    'FT': {'test': 90.0, 'v2': 72.0, 'sketch': 40.0},
}
THREE_SEEDS = {
    'Zero-shot': {'test': 80.0, 'v2': 70.0, 'sketch': 60.0},
    'FT': [
        {'test': 90.0, 'v2': 70.0, 'sketch': 40.0},
        {'test': 92.0, 'v2': 74.0, 'sketch': 42.0},
        {'test': 94.0, 'v2': 72.0, 'sketch': 50.0},
    ],
}


def printed(table, width=200):
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(table)
    return console.file.getvalue()


def cells(markdown, method):
    line = next(line for line in markdown.splitlines() if line.startswith(f'| {method} '))
    return [cell.strip() for cell in line.strip('|').split('|')]


def test_ood_average_is_the_unweighted_mean_over_shifts():
    rows = summarize(ONE_SEED).rows
    assert rows['Zero-shot']['OOD avg'].mean == pytest.approx(65.0)
    assert rows['FT']['OOD avg'].mean == pytest.approx(56.0)
    assert summarize(ONE_SEED, shifts=['sketch']).rows['FT']['OOD avg'].mean == pytest.approx(40.0)


def test_mean_and_deviation_over_seeds():
    row = summarize(THREE_SEEDS).rows['FT']
    assert row['test'] == (pytest.approx(92.0), pytest.approx(2.0), 3)
    # OOD averages of the seeds are 55, 58 and 61: the deviation is theirs, not one made from the shifts'.
    assert row['OOD avg'] == (pytest.approx(58.0), pytest.approx(3.0), 3)
    assert row['sketch'].mean == pytest.approx(44.0)
    assert row['sketch'].std == pytest.approx(math.sqrt((16 + 4 + 36) / 2))


def test_columns_follow_the_given_order():
    header = to_markdown(ONE_SEED, id_set='v2', shifts=['sketch', 'test']).splitlines()[0]
    assert header == '| Method | ID (v2) | sketch | test | OOD avg |'


def test_markdown_marks_the_best_of_each_column():
    text = to_markdown(ONE_SEED)
    assert cells(text, 'Zero-shot') == ['Zero-shot', '80.0', '70.0', '**60.0**', '**65.0**']
    assert cells(text, 'FT') == ['FT', '**90.0**', '**72.0**', '40.0', '56.0']
    assert 'unweighted mean of v2, sketch.' in text


def test_equal_as_shown_is_equally_best():
    text = to_markdown({'a': {'test': 80.01, 'v2': 1.0}, 'b': {'test': 80.02, 'v2': 2.0}})
    assert cells(text, 'a')[1] == cells(text, 'b')[1] == '**80.0**'


def test_seeds_are_counted_and_deviations_shown():
    text = to_markdown(THREE_SEEDS)
    assert text.splitlines()[0] == '| Method | Seeds | ID (test) | v2 | sketch | OOD avg |'
    assert cells(text, 'FT')[1:3] == ['3', '**92.0 ± 2.0**']
    assert cells(text, 'Zero-shot')[1:3] == ['1', '80.0']
    assert 'standard deviation' in text and 'standard deviation' not in to_markdown(ONE_SEED)


def test_a_missing_set_gives_no_average_and_is_named():
    results = {**ONE_SEED, 'LP': {'test': 99.0, 'v2': 99.0}}
    text = to_markdown(results)
    assert cells(text, 'LP') == ['LP', '**99.0**', '**99.0**', '–', '–']
    assert 'LP: no OOD avg, not tested on sketch.' in text
    assert 'OOD avg' not in summarize(results).rows['LP']
    assert json.loads(to_json(results))['methods']['LP']['mean']['OOD avg'] is None


def test_without_shifts_there_is_no_average():
    assert to_markdown({'a': {'test': 50.0}}).splitlines()[0] == '| Method | ID (test) |'


def test_json_holds_runs_and_exact_numbers():
    data = json.loads(to_json(THREE_SEEDS))
    assert data['id_set'] == 'test' and data['shifts'] == ['v2', 'sketch']
    assert data['methods']['FT']['runs'] == THREE_SEEDS['FT']
    assert data['methods']['FT']['mean']['OOD avg'] == pytest.approx(58.0)
    assert data['methods']['FT']['std']['OOD avg'] == pytest.approx(3.0)
    assert data['methods']['Zero-shot']['std']['test'] is None and data['methods']['Zero-shot']['seeds'] == 1


def test_terminal_table_has_the_numbers_of_the_markdown():
    table = results_table(THREE_SEEDS, title='Shapes')
    assert len(table.columns) == 6 and table.row_count == 2
    text = printed(table)
    for number in ('Shapes', '92.0 ±2.0', '58.0 ±3.0', '65.0', 'unweighted mean of v2, sketch'):
        assert number in text
    bold = [[str(cell.style) == 'bold' for cell in column.cells] for column in table.columns]
    assert bold == [[False, False], [False, False], [False, True], [False, True], [True, False], [True, False]]


def test_method_names_are_not_markup():
    name = '[red]x[/red] a|b'
    results = {name: {'test': 1.0, 'v2': 2.0}, 'other [1]': {'test': 1.0}}
    assert name in printed(results_table(results)) and 'other [1]: no OOD avg' in printed(results_table(results))
    assert r'a\|b' in to_markdown(results)


def test_numpy_numbers_are_numbers():
    results = {'a': {'test': np.float32(50), 'v2': np.float64(25)}}
    assert json.loads(to_json(results))['methods']['a']['runs'] == [{'test': 50.0, 'v2': 25.0}]


def test_a_long_path_folds():
    path = 'work_dirs/a/' * 10
    text = printed(results_table({path: {'test': 12.5, 'v2': 37.5}}), width=80)
    assert path in ''.join(line.split()[0] for line in text.splitlines() if 'work_dirs' in line or 'a/' in line)
    assert '12.5' in text and '37.5' in text


def test_fits_an_80_column_terminal_with_names_readable():
    results = {m: [dict.fromkeys(('test', 'v2', 'r', 'sketch', 'a'), 12.3 + i) for i in range(3)]
               for m in ('Zero-shot', 'CFMask (object, single)')}
    text = printed(results_table(results), width=80)
    assert 'CFMask (object, single)' in text and '13.3' in text and '±1.0' in text
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize('results, message', [
    ({}, 'empty'),
    ({'FT': []}, "no results for 'FT'"),
    ({'FT': {'test': 101.0}}, "'FT' on 'test'"),
    ({'FT': {'test': float('nan')}}, "'FT' on 'test'"),
    ({'FT': {'test': '80'}}, "'FT' on 'test'"),
    ({'FT': [{'test': 1.0, 'v2': 2.0}, {'test': 1.0}]}, 'v2'),
    ({'FT': {'v2': 1.0}}, 'no method was tested on test'),
])
def test_bad_results(results, message):
    for function in (results_table, to_markdown, to_json):
        with pytest.raises(ValueError, match=message):
            function(results)


def test_unknown_shift():
    with pytest.raises(ValueError, match='no method was tested on imagenet-r; the results hold test, v2, sketch'):
        to_markdown(ONE_SEED, shifts=['v2', 'imagenet-r'])
