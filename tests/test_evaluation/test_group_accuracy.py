"""Accuracy by group, against plain counting."""

import random
from statistics import mean

import numpy as np
import pytest
import torch
from mmpretrain.registry import METRICS
from mmpretrain.structures import DataSample

import mmcfmask  # noqa: F401
from mmcfmask.errors import ConfigError
from mmcfmask.evaluation import group_accuracies, group_average, worst_group

NAMES = ('landbird on land', 'landbird on water', 'waterbird on land', 'waterbird on water')


def evaluate(rows, kind='GroupAccuracy', options=None, **meta):
    """Rows of (label, answer, group or None)."""
    metric = METRICS.build(dict(type=kind, **(options or {})))
    metric.dataset_meta = dict(classes=('landbird', 'waterbird'), **meta)
    samples = []
    for number, (label, answer, group) in enumerate(rows):
        info = dict(sample_idx=number, img_path=f'{number}.png', **({} if group is None else dict(group=group)))
        sample = DataSample(metainfo=info).set_gt_label(label)
        sample.pred_logits = torch.eye(2)[answer]
        samples.append(sample.to_dict())
    for start in range(0, len(samples), 7):
        metric.process(None, samples[start : start + 7])
    return metric.evaluate(len(samples)), metric


def random_rows(number=200, seed=0):
    rng = random.Random(seed)
    return [(group // 2, rng.randrange(2), group) for group in (rng.randrange(4) for _ in range(number))]


@pytest.mark.parametrize('seed', range(3))
def test_against_plain_counting(seed):
    rows, sizes = random_rows(seed=seed), (3498, 184, 56, 1057)
    metrics, metric = evaluate(rows, group_names=NAMES, group_sizes=sizes)
    by_group = {group: [100.0 * (label == answer) for label, answer, g in rows if g == group] for group in range(4)}
    accuracy = {group: mean(hits) for group, hits in by_group.items()}
    assert metrics['accuracy/worst_group'] == pytest.approx(min(accuracy.values()))
    # As if the test set had as many images of a group as the training set, every one as often right as there.
    drawn = [accuracy[group] for group in range(4) for _ in range(sizes[group])]
    assert metrics['accuracy/group_average'] == pytest.approx(mean(drawn))
    assert metrics['accuracy/top1'] == pytest.approx(mean(100.0 * (label == answer) for label, answer, _ in rows))
    assert metrics['accuracy/group_waterbird_on_land'] == pytest.approx(accuracy[2])
    assert metric.details['groups'] == {
        name: dict(accuracy=pytest.approx(accuracy[group]), count=len(by_group[group]), train_count=sizes[group])
        for group, name in enumerate(NAMES)
    }
    assert metric.details['notes'] == []


def test_all_numbers_of_shift_accuracy_stay():
    rows = random_rows()
    plain, plain_metric = evaluate(rows, 'ShiftAccuracy')
    metrics, metric = evaluate(rows, group_names=NAMES, group_sizes=(1, 1, 1, 1))
    assert plain.items() <= metrics.items() and plain_metric.details['per_class'] == metric.details['per_class']


def test_functions():
    correct, groups = np.array([True, False, True, True]), np.array([2, 2, 0, 2])
    assert group_accuracies(correct, groups) == {0: (100.0, 1), 2: (pytest.approx(200 / 3), 3)}
    assert worst_group({0: 90.0, 2: 40.0}) == 40.0
    assert group_average({0: 90.0, 2: 40.0}, [3, 7, 1]) == pytest.approx((3 * 90 + 40) / 4)
    assert group_average({0: 90.0}, [0, 7]) is None


def test_groups_without_images_or_sizes():
    rows = [(0, 0, 0), (0, 1, 0), (1, 1, 3)]
    metrics, metric = evaluate(rows, group_names=NAMES, group_sizes=(90, 5, 0, 10))
    assert metrics['accuracy/worst_group'] == 50 and metrics['accuracy/group_average'] == pytest.approx(55)
    assert set(metric.details['groups']) == {NAMES[0], NAMES[3]} and 'accuracy/group_landbird_on_water' not in metrics
    assert metric.details['notes'] == ['no images of 1 of 4 groups: landbird on water']
    metrics, metric = evaluate(rows, group_names=NAMES)
    assert 'accuracy/group_average' not in metrics and metrics['accuracy/worst_group'] == 50
    assert metric.details['groups'][NAMES[3]] == dict(accuracy=100.0, count=1, train_count=None)
    assert 'no average weighted by training groups: their sizes are not known' in metric.details['notes']
    metrics, metric = evaluate(rows)  # numbers for names
    assert metrics['accuracy/group_3'] == 100 and list(metric.details['groups']) == ['0', '3']


def test_names_that_look_alike_stay_apart():
    metrics, metric = evaluate([(0, 0, 0), (0, 1, 1)], group_names=('a, b', 'a b'), group_sizes=(1, 1))
    assert metrics['accuracy/group_a_b (0)'] == 100 and metrics['accuracy/group_a_b (1)'] == 0


@pytest.mark.parametrize(
    'group, message',
    [
        (None, "1.png has no group: .*WaterbirdsDataset.*meta_keys=\\('sample_idx', 'img_path', 'group'\\)"),
        (-1, '1.png has the group -1, but there are 4'),
        (4, '1.png has the group 4, but there are 4'),
    ],
)
def test_items_without_a_group(group, message):
    with pytest.raises(ConfigError, match=message):
        evaluate([(0, 0, 0), (0, 0, group)], group_names=NAMES)


def plain_accuracy(rows, group):
    return mean(100.0 * (label == answer) for label, answer, groups in rows if group in groups)


def overlapping_rows(seed=3):
    rng = random.Random(seed)
    return [(rng.randrange(2), rng.randrange(2), rng.sample(range(4), rng.randrange(4))) for _ in range(60)]


def test_an_image_counts_in_each_of_its_groups():
    rows = overlapping_rows()
    metrics, metric = evaluate(rows, 'PartAccuracy', group_names=NAMES)
    for group, key in enumerate(('landbird_on_land', 'landbird_on_water', 'waterbird_on_land', 'waterbird_on_water')):
        assert metrics[f'accuracy/group_{key}'] == pytest.approx(plain_accuracy(rows, group))
        count = sum(group in groups for _, _, groups in rows)
        assert metric.details['groups'][NAMES[group]]['count'] == count
    plain, _ = evaluate([(label, answer, None) for label, answer, _ in rows], 'ShiftAccuracy')
    assert plain.items() <= metrics.items() and 'accuracy/worst_group' not in metrics


def test_gaps():
    rows = [(label, answer, group % 3) for label, answer, group in random_rows()]
    gaps = dict(land_gap=['landbird on land', 'waterbird on land'], no_gap=['landbird on land', 'waterbird on water'])
    metrics, metric = evaluate(rows, 'PartAccuracy', dict(gaps=gaps), group_names=NAMES)
    accuracy = [mean(100.0 * (a == b) for a, b, g in rows if g == group) for group in range(3)]
    assert metrics.pop('accuracy/land_gap') == pytest.approx(accuracy[0] - accuracy[2])
    assert {name.partition('/')[2].partition('_')[0] for name in metrics} == {'group'}  # nothing over all versions
    assert metric.details['notes'] == ['no no_gap: no images of waterbird on water']
    with pytest.raises(ConfigError, match="gaps.gap names 'land'; the set has landbird on land, "):
        evaluate(rows, 'PartAccuracy', dict(gaps=dict(gap=['land', 'landbird on land'])), group_names=NAMES)
    with pytest.raises(ConfigError, match="gap=\\['landbird on land'\\] must be two names"):
        METRICS.build(dict(type='PartAccuracy', gaps=dict(gap=['landbird on land'])))


def test_error_ratio_of_factors():
    rows = overlapping_rows(seed=4)
    metrics, _ = evaluate(rows, 'FactorAccuracy', dict(apart=True), group_names=('pose', 'color', 'shape', 'style'))
    whole = mean(100.0 * (label == answer) for label, answer, _ in rows)
    assert metrics['accuracy/accuracy'] == pytest.approx(whole) and 'accuracy/top1' not in metrics
    accuracies = [plain_accuracy(rows, group) for group in range(4)]
    assert metrics['accuracy/worst_factor'] == pytest.approx(min(accuracies))
    assert metrics['accuracy/error_ratio_color'] == pytest.approx((100 - accuracies[1]) / (100 - whole))


def test_ignored_groups_are_not_the_worst():
    rows = [(0, 0, 0), (0, 1, 1), (1, 1, 2), (1, 0, 2)]
    metrics, _ = evaluate(rows, options=dict(ignore=[NAMES[1]]), group_names=NAMES, group_sizes=(1, 1, 1, 1))
    assert metrics['accuracy/worst_group'] == 50 and metrics['accuracy/group_landbird_on_water'] == 0
    assert metrics['accuracy/group_average'] == pytest.approx((100 + 0 + 50) / 3)
    with pytest.raises(ConfigError, match='no images of a group, but for those in ignore'):
        evaluate(rows[1:2], options=dict(ignore=[NAMES[1]]), group_names=NAMES)


def test_a_set_apart_has_no_top1():
    rows = [(0, 0, None), (0, 1, None)]
    metrics, _ = evaluate(rows, 'ShiftAccuracy', dict(apart=True))
    assert metrics['accuracy/accuracy'] == 50 and 'accuracy/top1' not in metrics
