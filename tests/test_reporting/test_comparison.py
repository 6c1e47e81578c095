"""Predictions for single images, paired comparison, order, WiSE-FT curves and example images."""

import json
from statistics import mean, stdev

import numpy as np
import pytest
from page_runs import ALPHAS, IMAGES, METHODS, write_page_runs
from PIL import Image

from mmcfmask.datasets import ShapesDataset
from mmcfmask.errors import ConfigError
from mmcfmask.evaluation.paired import bootstrap_differences, percentile_interval
from mmcfmask.reporting.comparison import difference_over_seeds
from mmcfmask.reporting.contents import gather_contents
from mmcfmask.reporting.examples import choose_images, collect_examples, load_picture
from mmcfmask.reporting.predictions import read_predictions

ODD = list(METHODS)[2]


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    return write_page_runs(tmp_path_factory.mktemp('runs'))


@pytest.fixture
def own_runs(tmp_path):
    """Runs that a test may change."""
    return write_page_runs(tmp_path / 'runs')


@pytest.fixture(scope='module')
def contents(runs):
    return gather_contents([str(runs)], compare=('FT', ODD))


def read(runs, number, seed, name):
    lines = (runs / str(number) / f'seed{seed}' / 'predictions' / f'{name}.csv').read_text().splitlines()[1:]
    return np.array([line.split(',')[3] == '1' for line in lines])


def test_comparison_of_two_methods(runs, contents):
    rows = {row.column: row for row in contents.comparison}
    assert list(rows) == ['imagenet', 'imagenet-r', 'imagenet-a', 'groups', 'OOD avg']
    row = rows['imagenet']
    changes = [b - a for a, b in zip(METHODS['FT']['imagenet'], METHODS[ODD]['imagenet'])]
    assert row.difference[:2] == (pytest.approx(mean(changes)), pytest.approx(stdev(changes))) and row.images == IMAGES
    right = [np.stack([read(runs, number, seed, 'imagenet') for seed in (0, 1)]) for number in (1, 2)]
    low, high = row.interval
    assert low < row.difference.mean < high
    # By the central limit theorem: ± 1.96 standard errors of the differences of single images.
    error = 100 * (right[1].mean(axis=0) - right[0].mean(axis=0)).std() / IMAGES**0.5
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.1)
    assert rows['groups'].interval is None  # tested without predictions
    back = contents.compare_pair(ODD, 'FT')[0]
    assert back.interval == pytest.approx((-high, -low)) and back.difference.mean == -row.difference.mean


def test_interval_of_the_average_resamples_each_set(runs, contents):
    row = {row.column: row for row in contents.comparison}['OOD avg']
    draws = []
    for seed, name in enumerate(('imagenet-r', 'imagenet-a')):
        right = [np.stack([read(runs, number, s, name) for s in (0, 1)]) for number in (1, 2)]
        draws.append(bootstrap_differences(*right, seed=100 + seed)[1])
    expected = percentile_interval((draws[0] + draws[1]) / 2)
    assert row.interval == pytest.approx(expected, abs=0.4) and row.images == 2 * IMAGES
    averages = [mean([METHODS[m][s][i] for s in ('imagenet-r', 'imagenet-a')]) for m in ('FT', ODD) for i in (0, 1)]
    assert row.difference.mean == pytest.approx(mean(averages[2:]) - mean(averages[:2]))


def test_difference_over_seeds():
    assert difference_over_seeds({0: 50.0, 1: 60.0}, {0: 52.0, 1: 60.0})[:2] == (1.0, pytest.approx(2**0.5))
    assert difference_over_seeds({None: 50.0}, {0: 52.0, 1: 54.0})[:2] == (3.0, pytest.approx(2**0.5))
    other = difference_over_seeds({0: 50.0, 1: 52.0}, {2: 60.0, 3: 62.0})  # independent: the variances add up
    assert other[:2] == (10.0, pytest.approx(2.0))
    assert difference_over_seeds({0: 50.0}, {0: 52.0})[:2] == (2.0, None)


def test_predictions_of_another_test_are_left_out(own_runs):
    path = own_runs / '1/seed1/predictions/imagenet-r.csv'
    path.write_text(path.read_text().replace(',1,0.9', ',0,0.9', 1))
    contents = gather_contents([str(own_runs)])
    assert 'FT' not in contents.predictions['imagenet-r'] and 'FT' in contents.predictions['imagenet']
    assert any(str(path) in note and 'not of the test' in note for note in contents.notes)
    assert {row.column: row for row in contents.compare_pair('FT', ODD)}['imagenet-r'].interval is None


@pytest.mark.parametrize(
    'text, message',
    [
        ('path,gt,pred\na,b,c\n', "the column 'correct' is missing"),
        ('path,gt,pred,correct\na,b,c,yes\n', "line 2: 'correct' must be 0 or 1, got 'yes'"),
    ],
)
def test_bad_predictions(tmp_path, text, message):
    (tmp_path / 'x.csv').write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_predictions(tmp_path / 'x.csv')


def test_order_is_that_of_the_study(own_runs):
    assert list(gather_contents([str(own_runs)]).methods) == list(METHODS)  # by folder
    study = dict(methods={'FT': {}, ODD: {}}, columns=['imagenet', 'imagenet-a', 'imagenet-r', 'OOD avg'])
    (own_runs / 'results.json').write_text(json.dumps(study))
    contents = gather_contents([str(own_runs)])
    assert list(contents.methods) == ['FT', ODD, 'Zero-shot']
    assert contents.accuracy.shifts == ('imagenet-a', 'imagenet-r')
    assert list(contents.looks) == ['FT', ODD, 'Zero-shot'] and contents.looks['FT'].color == '#0072B2'
    contents = gather_contents([str(own_runs)], shifts=['imagenet-r'], methods=[ODD, 'FT'])
    assert list(contents.methods) == [ODD, 'FT'] and contents.accuracy.shifts == ('imagenet-r',)
    with pytest.raises(ConfigError, match="--methods: there is no method 'ft', only FT"):
        gather_contents([str(own_runs)], methods=['ft'])


def test_wise_ft_curves(contents):
    points = contents.curve_points('imagenet-r')
    assert list(points) == ['FT'] and [point[0] for point in points['FT']] == list(ALPHAS)
    id_mean, shift_mean = (mean(METHODS['FT'][name]) for name in ('imagenet', 'imagenet-r'))
    assert points['FT'][1] == pytest.approx((0.25, id_mean - 7.5, shift_mean + 7.5))
    average = contents.curve_points('OOD avg')['FT'][-1]
    assert average[2] == pytest.approx(mean(mean(METHODS['FT'][name]) for name in ('imagenet-r', 'imagenet-a')))


def test_a_broken_curve_is_named(own_runs):
    (own_runs / '1/seed0/wise_ft.json').write_text('{"line": 3}')
    with pytest.raises(ConfigError, match='seed0/wise_ft.json: not a file of tools/wise_ft.py'):
        gather_contents([str(own_runs)])


def test_chosen_images_show_every_pair():
    correct = np.random.default_rng(0).random((4, 400)) < 0.6
    chosen = choose_images(correct, 12)
    assert len(set(chosen)) == 12 and chosen == sorted(chosen)
    for before in range(4):
        for after in range(4):
            shown = sum(correct[before, i] and not correct[after, i] for i in chosen)
            assert before == after or shown >= 2, (before, after)
    assert choose_images(np.ones((2, 5), bool), 3) == []  # nothing differs


def test_example_images(contents):
    examples, notes = collect_examples(contents.predictions, 6)
    assert notes == [] and {len(part) for part in examples.values()} == {6}
    first = examples['imagenet'][0]
    assert first['picture'].startswith('data:image/jpeg;base64,') and set(first['predicted']) == set(METHODS)
    assert any(not right for _, right in first['predicted'].values())
    assert collect_examples(contents.predictions, 0) == ({}, [])


def test_pictures(tmp_path):
    dataset = ShapesDataset('r', size=7)
    assert dataset.image_keys()[6] == 'shapes/r/0/6'
    assert (np.asarray(load_picture('shapes/r/0/6')) == dataset[6]['img']).all()
    Image.new('L', (300, 200), 77).save(tmp_path / 'grey.png')
    assert load_picture(str(tmp_path / 'grey.png')).mode == 'RGB'
    for path in (tmp_path / 'gone.jpg', 'item 3', 'shapes/none/0/1'):
        with pytest.raises(OSError):
            load_picture(str(path))


def test_pictures_that_are_gone_are_counted(own_runs):
    for path in own_runs.rglob('predictions/*.csv'):
        path.write_text(path.read_text().replace('shapes/', '/nowhere/'))
    examples, notes = collect_examples(gather_contents([str(own_runs)]).predictions, 4)
    assert examples == {} and notes[0].startswith('imagenet: 4 example images are not there, such as /nowhere/test/0/')
