import csv
import io
import json
import math

import numpy as np
import pytest
from rich.console import Console

from mmcfmask.reporting import results_table, summarize, to_json, to_markdown
from mmcfmask.reporting.summary import METRICS, with_column
from mmcfmask.reporting.tables import summaries_csv, summary_dict, summary_markdown, summary_table

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


def test_a_method_alone_is_not_the_best():
    assert '**' not in to_markdown({'FT': ONE_SEED['FT']})
    text = to_markdown({'FT': ONE_SEED['FT'], 'LP': {'test': 80.0}})
    assert cells(text, 'FT') == ['FT', '**90.0**', '72.0', '40.0', '56.0'] and cells(text, 'LP')[1] == '80.0'


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
    results = {
        m: [dict.fromkeys(('test', 'v2', 'r', 'sketch', 'a'), 12.3 + i) for i in range(3)]
        for m in ('Zero-shot', 'CFMask (object, single)')
    }
    text = printed(results_table(results), width=80)
    assert 'CFMask (object, single)' in text and '13.3' in text and '±1.0' in text
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize(
    'results, message',
    [
        ({}, 'empty'),
        ({'FT': []}, "no results for 'FT'"),
        ({'FT': {'test': 101.0}}, "'FT' on 'test'"),
        ({'FT': {'test': float('nan')}}, "'FT' on 'test'"),
        ({'FT': {'test': '80'}}, "'FT' on 'test'"),
        ({'FT': [{'test': 1.0, 'v2': 2.0}, {'test': 1.0}]}, 'v2'),
        ({'FT': {'v2': 1.0}}, 'no method was tested on test'),
    ],
)
def test_bad_results(results, message):
    for function in (results_table, to_markdown, to_json):
        with pytest.raises(ValueError, match=message):
            function(results)


def test_unknown_shift():
    with pytest.raises(ValueError, match='no method was tested on imagenet-r; the results have test, v2, sketch'):
        to_markdown(ONE_SEED, shifts=['v2', 'imagenet-r'])


MARKS = {'FT': {'v2': '9,000 of 10,000 images', 'objectnet': 'not tested'}, 'Zero-shot': {'objectnet': 'not tested'}}


def test_what_is_not_whole_is_marked_and_explained():
    text = to_markdown(THREE_SEEDS, marks=MARKS)
    assert cells(text, 'FT')[2:] == ['**92.0 ± 2.0**', '**72.0 ± 2.0†**', '44.0 ± 5.3', '58.0 ± 3.0†']
    assert cells(text, 'Zero-shot')[2:] == ['80.0', '70.0', '**60.0**', '**65.0†**']  # its average lacks objectnet too
    assert '† v2: 9,000 of 10,000 images (FT).' in text
    assert '† objectnet: not tested.' in text  # of all methods: no names
    assert '†' not in to_markdown(THREE_SEEDS)


def test_the_id_set_does_not_mark_the_average():
    summary = summarize(ONE_SEED, marks={'FT': {'test': 'incomplete'}})
    assert set(summary.marked) == {('FT', 'test')}


def test_a_missing_cell_is_marked_too():
    results = {**ONE_SEED, 'LP': {'test': 99.0, 'v2': 99.0}}
    assert cells(to_markdown(results, marks={'LP': {'sketch': 'not tested, no folder'}}), 'LP')[3:] == ['–†', '–']


def test_terminal_shows_the_marks():
    text = printed(results_table(ONE_SEED, marks=MARKS))
    assert '72.0†' in text and '† v2: 9,000 of 10,000 images (FT).' in text


def test_lower_may_be_better():
    nll = {'a': {'test': 0.51234, 'v2': 0.9}, 'b': {'test': 0.7, 'v2': 0.8}}
    text = summary_markdown(summarize(nll, metric=METRICS['nll']))
    assert cells(text, 'a') == ['a', '**0.512**', '0.900', '0.900'] and cells(text, 'b') == [
        'b',
        '0.700',
        '**0.800**',
        '**0.800**',
    ]
    with pytest.raises(
        ValueError, match="'a' on 'test', run 0: Negative log-likelihood must be a finite number, not below 0, got -1"
    ):
        summarize({'a': {'test': -1.0}}, metric=METRICS['nll'])
    assert summarize({'a': {'c': 130.0}}, None, metric=METRICS['mce']).rows['a']['c'].mean == 130


def test_without_an_id_set_or_an_average():
    assert to_markdown(ONE_SEED, None, ['v2', 'sketch']).splitlines()[0] == '| Method | v2 | sketch | OOD avg |'
    summary = summarize({**ONE_SEED, 'LP': {'v2': 1.0}}, None, ['v2', 'sketch'], average=False)
    assert summary.columns == ('v2', 'sketch') and not summary.notes


def test_another_column():
    summary = with_column(
        summarize(THREE_SEEDS, marks=MARKS), 'Eff. rob.', {'FT': [10.0, 11.0, 12.0]}, 'Height.', ('test', 'OOD avg')
    )
    text = summary_markdown(summary)
    assert text.splitlines()[0].endswith('| OOD avg | Eff. rob. |')
    assert cells(text, 'FT')[-1] == '+11.0 ± 1.0†' and cells(text, 'Zero-shot')[-1] == '–' and 'Height.' in text
    assert '+11.0' in printed(summary_table(summary))


def test_csv_has_means_deviations_and_notes():
    accuracy = summarize(THREE_SEEDS, marks=MARKS)
    nll = summarize({'FT': {'test': 0.5}}, metric=METRICS['nll'])
    rows = list(csv.DictReader(io.StringIO(summaries_csv([accuracy, nll]))))
    assert [(row['metric'], row['method'], row['seeds']) for row in rows] == [
        ('Top-1 accuracy', 'Zero-shot', '1'),
        ('Top-1 accuracy', 'FT', '3'),
        ('Negative log-likelihood', 'FT', '1'),
    ]
    assert float(rows[1]['sketch']) == pytest.approx(44) and float(rows[1]['sketch sd']) == pytest.approx(
        math.sqrt(28), abs=1e-4
    )
    assert rows[0]['v2 sd'] == '' and rows[2]['v2'] == '' and rows[2]['test'] == '0.5'
    assert rows[1]['notes'] == '† v2: 9,000 of 10,000 images; † objectnet: not tested' and rows[2]['notes'] == ''


def test_dict_of_a_summary_is_json():
    data = json.loads(json.dumps(summary_dict(summarize(THREE_SEEDS, marks=MARKS))))
    assert data['methods']['FT']['marked'] == {
        'v2': '9,000 of 10,000 images',
        'objectnet': 'not tested',
        'OOD avg': 'v2, objectnet',
    }
    assert (
        data['columns'] == ['test', 'v2', 'sketch', 'OOD avg'] and data['methods']['Zero-shot']['std']['test'] is None
    )


def test_notes_highlight_and_first_column():
    options = dict(notes=['[1] mine.'], highlight='Zero-shot', first_column='α')
    text = to_markdown(ONE_SEED, **options)
    assert text.startswith('| α |') and text.rstrip().endswith('[1] mine.')
    assert cells(text, 'Zero-shot')[1:] == ['**80.0**', '**70.0**', '**60.0**', '**65.0**'] and '*' not in ''.join(
        cells(text, 'FT')
    )
    assert 'α' in printed(results_table(ONE_SEED, **options)) and '[1] mine.' in printed(
        results_table(ONE_SEED, **options)
    )


def test_nothing_is_cut_off_in_an_80_column_terminal():
    sets = ('imagenet', 'imagenet-v2', 'imagenet-r', 'imagenet-a', 'imagenet-sketch', 'objectnet')
    results = {m: [dict.fromkeys(sets, 12.3 + i) for i in range(3)] for m in ('Zero-shot', 'R-Adapter')}
    summary = summarize(results, 'imagenet', marks={m: {'imagenet-r': 'incomplete'} for m in results})
    summary = with_column(summary, 'Eff. rob.', {m: [20.0, 21.0, 22.0] for m in results}, 'Height.', ('OOD avg',))
    text = printed(summary_table(summary), width=80)
    assert max(map(len, text.splitlines())) <= 80
    assert text.count('±1.0†') == 6 and text.count('±1.0') == 16 and text.count('+21.0') == 2
    assert text.count('imagenet-sketch') == 1  # columns have short names, the notes whole ones
