"""ShiftAccuracy and CorruptionError, fed as a loop feeds them."""

import math
import pickle
from itertools import zip_longest
from statistics import mean

import numpy as np
import pytest
import torch
from mmengine.dataset import DefaultSampler
from mmpretrain.registry import METRICS
from mmpretrain.structures import DataSample

import mmcfmask  # noqa: F401
from mmcfmask.evaluation import ALEXNET_ERROR, preference
from mmcfmask.evaluation.metrics import interleave

GROUPS = ((2,), (7, 0, 5), (4, 9), (1,), (3,), (6,))  # of ten outputs; 8 takes no part
NAMES = ('a', 'b', 'b', 'c', 'd', 'e')


def samples(logits, labels, **fields):
    made = []
    for i, (row, label) in enumerate(zip(logits, labels)):
        sample = DataSample(
            metainfo=dict(sample_idx=i, img_path=f'{i}.png', **{key: value[i] for key, value in fields.items()})
        )
        sample.set_gt_label(label)
        sample.pred_logits = row
        made.append(sample.to_dict())
    return made


def evaluate(items, batch_size=7, groups=GROUPS, classes=NAMES, kind='ShiftAccuracy', size=None, **settings):
    metric = METRICS.build(dict(type=kind, prefix='set', **settings))
    metric.dataset_meta = dict(classes=classes, label_groups=groups)
    for start in range(0, len(items), batch_size):
        metric.process(None, items[start : start + batch_size])
    return metric.evaluate(len(items) if size is None else size), metric


def data(num=50):
    return torch.randn(num, 10) * 2, [i % 6 for i in range(num)]


def test_models_are_mixed_on_the_classes_of_the_set():
    """Two models, of which one is sure of an output in no group: among the classes of the set it still has its say."""
    logits, labels = data(30)
    other, weights = torch.randn(30, 10), torch.rand(30)
    logits[:, 8] = 60.0
    items = samples(logits, labels)
    for item, *parts, weight in zip(items, logits, other, weights):
        item.update(mixed_logits=torch.stack(parts), mixed_weights=torch.stack([weight, 1 - weight]))
    outputs = sorted({index for group in GROUPS for index in group})
    hits, nll = [], []
    for *parts, weight, label in zip(logits.tolist(), other.tolist(), weights.tolist(), labels):
        sums = [sum(math.exp(row[index]) for index in outputs) for row in parts]
        p = {
            index: weight * math.exp(parts[0][index]) / sums[0] + (1 - weight) * math.exp(parts[1][index]) / sums[1]
            for index in outputs
        }
        hits.append(max(range(6), key=lambda k, p=p: max(p[index] for index in GROUPS[k])) == label)
        nll.append(-math.log(sum(p[index] for index in GROUPS[label])))
    metrics, _ = evaluate(items)
    assert metrics['set/top1'] == pytest.approx(100 * sum(hits) / 30)
    assert metrics['set/nll'] == pytest.approx(sum(nll) / 30, rel=1e-4)


def test_metrics_of_random_logits():
    logits, labels = data()
    metrics, metric = evaluate(samples(logits, labels))
    hits, top5, nll, by_class, sure = [], [], [], {}, []
    for row, label in zip(logits.tolist(), labels):
        scores = [max(row[index] for index in group) for group in GROUPS]
        order = sorted(range(6), key=lambda k: -scores[k])
        exps = {index: math.exp(row[index]) for group in GROUPS for index in group}
        hits.append(order[0] == label)
        top5.append(label in order[:5])
        nll.append(-math.log(sum(exps[index] for index in GROUPS[label]) / sum(exps.values())))
        by_class.setdefault(label, []).append(hits[-1])
        sure.append(max(exps.values()) / sum(exps.values()))
    assert set(metrics) == {f'set/{name}' for name in ('top1', 'top5', 'mean_per_class', 'nll', 'ece')}
    assert metrics['set/top1'] == pytest.approx(100 * mean(hits)) and metrics['set/top5'] == pytest.approx(
        100 * mean(top5)
    )
    assert metrics['set/nll'] == pytest.approx(mean(nll), rel=1e-9)
    assert metrics['set/mean_per_class'] == pytest.approx(
        100 * mean(mean(map(float, values)) for values in by_class.values())
    )
    # Two classes of one name stay two.
    assert metric.details['per_class'] == {
        name: pytest.approx(100 * mean(by_class[label]))
        for label, name in enumerate(['a', 'b (1)', 'b (2)', 'c', 'd', 'e'])
    }
    assert (
        sum(metric.details['per_class_count'].values())
        == sum(part['count'] for part in metric.details['reliability'])
        == 50
    )
    error = sum(
        abs(mean(hits[i] for i in members) - mean(sure[i] for i in members)) * len(members) / 50
        for members in ([i for i in range(50) if m < 15 * sure[i] <= m + 1] for m in range(15))
        if members
    )
    assert metrics['set/ece'] == pytest.approx(100 * error)


def test_the_same_in_every_batch_size():
    logits, labels = data()
    results = [evaluate(samples(logits, labels), batch_size)[0] for batch_size in (1, 7, 64)]
    assert results[0] == results[1] == results[2]


def test_knows_the_answers_or_nothing():
    labels = [i % 6 for i in range(30)]
    right = torch.zeros(30, 10)
    for row, label in zip(right, labels):
        row[GROUPS[label][-1]] = 50
        row[8] = 100  # would win over all ten
    metrics, metric = evaluate(samples(right, labels))
    assert metrics['set/top1'] == metrics['set/top5'] == metrics['set/mean_per_class'] == 100
    assert metrics['set/nll'] < 1e-9 and metrics['set/ece'] < 1e-9
    assert evaluate(samples(torch.zeros(30, 10), labels))[0]['set/top1'] == pytest.approx(100 / 6)


def test_five_classes_have_no_top5():
    logits, _ = data()
    assert (
        'set/top5' not in evaluate(samples(logits, [i % 5 for i in range(50)]), groups=GROUPS[:5], classes=NAMES[:5])[0]
    )


def test_several_right_labels():
    logits = torch.zeros(2, 3)
    logits[0, 2] = logits[1, 0] = 5.0
    items = samples(logits, [torch.tensor([1, 2]), torch.tensor([1])])
    metrics, metric = evaluate(items, groups=None, classes=('x', 'y', 'z'), keep_predictions=True)
    assert metrics['set/top1'] == 50 and metric.details['per_class'] == {'y': 50.0, 'z': 100.0}
    assert metric.details['predictions'][0]['gt'] == 'y|z'


def test_scores_stand_in_for_logits():
    logits, labels = data()
    items = samples(logits, labels)
    expected = evaluate(items)[0]
    for item, row in zip(items, logits):
        del item['pred_logits']
        item['pred_score'] = row.softmax(dim=0)
    assert evaluate(items)[0] == pytest.approx(expected, rel=1e-4)
    items[9]['pred_score'] = torch.eye(10)[8]  # underflowed everywhere but outside the set
    with pytest.raises(ValueError, match='9.png every class of the set has score 0.*underflowed.*CLIPDistillHead'):
        evaluate(items)
    del items[9]['pred_score']
    del items[0]['pred_score']
    with pytest.raises(ValueError, match='neither pred_logits nor pred_score'):
        evaluate(items)


@pytest.mark.parametrize('bad', [math.nan, math.inf])
def test_logits_that_are_not_finite_do_not_score(bad):
    """NaN compares as larger than nothing, so that it would count as right."""
    logits, labels = data()
    logits[11] = bad
    with pytest.raises(FloatingPointError, match='set: the logits of 11.png are not finite'):
        evaluate(samples(logits, labels))


def test_no_image_twice_and_none_left_out():
    logits, labels = data(10)
    items = samples(logits, labels)
    with pytest.raises(ValueError, match='9 results for 10 images'):
        evaluate(items[:9], size=10)
    assert evaluate(items + items[:2], size=10)[0] == evaluate(items)[0]  # what the sampler has padded is cut off
    with pytest.raises(ValueError, match='item 0 was counted 2 times.*DefaultSampler'):
        evaluate([items[0], *items[:9]], size=10)


@pytest.mark.parametrize('size', [1, 5, 6, 7, 12])
def test_shares_of_processes_are_put_together_as_mmengine_does(size):
    """Against mmengine's DefaultSampler, which pads, and the order of its collect_results."""
    for world in (1, 2, 3, 5):
        shares = []
        for rank in range(world):
            sampler = DefaultSampler(range(size), shuffle=False)
            sampler.rank, sampler.world_size = rank, world
            sampler.num_samples = math.ceil(size / world)
            sampler.total_size = sampler.num_samples * world
            shares.append(list(sampler))
        assert sum(map(len, shares)) >= size
        parts = [dict(index=np.array(share), labels=np.array(share)[:, None]) for share in shares]
        expected = [item for turn in zip_longest(*shares) for item in turn if item is not None][:size]
        whole = interleave(parts, size)
        assert whole['index'].tolist() == whole['labels'][:, 0].tolist() == expected == list(range(size))
    # A process without images, and one with a label more.
    parts = [
        dict(index=np.array([0, 2]), labels=np.array([[5, 6], [7, -1]])),
        dict(index=np.array([1]), labels=np.array([[8]])),
        {},
    ]
    assert interleave(parts, 3)['labels'].tolist() == [[5, 6], [8, -1], [7, -1]]


def test_labels_and_groups_that_do_not_fit():
    logits, labels = data(8)
    with pytest.raises(ValueError, match=r'3.png has the labels \[6\], but there are 6 classes'):
        evaluate(samples(logits, [0, 1, 2, 6, 4, 5, 0, 1]))
    with pytest.raises(ValueError, match='class 1 names the outputs 10, but the head has 10'):
        evaluate(samples(logits, [0, 1] * 4), groups=((0,), (10,)))
    with pytest.raises(ValueError, match='the set has 6 classes, but the head has 10.*label_groups'):
        evaluate(samples(logits, labels), groups=None)


def test_predictions():
    logits, labels = data(9)
    kept = evaluate(samples(logits, labels), keep_predictions=True)[1].details['predictions']
    assert [item['img_path'] for item in kept] == [f'{i}.png' for i in range(9)]
    assert [item['gt'] for item in kept] == [['a', 'b (1)', 'b (2)', 'c', 'd', 'e'][label] for label in labels]
    assert all(item['correct'] == (item['gt'] == item['pred']) and 0 < item['confidence'] <= 1 for item in kept)
    assert evaluate(samples(logits, labels))[1].details['predictions'] is None


def test_a_few_numbers_are_kept_of_an_image():
    """Not its 1000 logits: 50,000 images would take 200 MB on every process."""
    metric = METRICS.build(dict(type='ShiftAccuracy', prefix='set'))
    metric.dataset_meta = dict(classes=[str(i) for i in range(1000)])
    for _ in range(4):
        metric.process(None, samples(torch.randn(64, 1000), list(range(64))))
    assert len(pickle.dumps(metric.results)) < 256 * 60


def corrupted(corruptions, severities, wrong):
    """One image per corruption, severity and number; ``wrong(corruption, severity)`` of ten are wrong."""
    logits, labels, names, levels = [], [], [], []
    for corruption in corruptions:
        for severity in severities:
            for number in range(10):
                label = number % 3
                says = (label + (number < wrong(corruption, severity))) % 3
                logits.append(torch.eye(3)[says] * 9)
                labels.append(label)
                names.append(corruption)
                levels.append(severity)
    return samples(torch.stack(logits), labels, corruption=names, severity=levels)


def test_corruption_error():
    items = corrupted(ALEXNET_ERROR, range(1, 6), lambda corruption, severity: severity + (corruption == 'fog'))
    metrics, metric = evaluate(items, groups=None, classes='xyz', kind='CorruptionError')
    ce = {name: 100 * (40 if name == 'fog' else 30) / value for name, value in ALEXNET_ERROR.items()}
    assert metrics['set/mce'] == pytest.approx(mean(ce.values())) and metrics['set/ce_fog'] == pytest.approx(ce['fog'])
    assert metrics['set/error_fog'] == pytest.approx(40) and metrics['set/error_snow'] == pytest.approx(30)
    assert metrics['set/top1'] == pytest.approx(100 - (30 * 14 + 40) / 15) and metric.details['notes'] == []


def test_mce_needs_everything():
    items = corrupted(['fog', 'snow'], range(1, 4), lambda corruption, severity: severity)
    metrics, metric = evaluate(items, groups=None, classes='xyz', kind='CorruptionError')
    assert 'set/mce' not in metrics and 'set/ce_fog' not in metrics and metrics['set/error_fog'] == pytest.approx(20)
    assert metric.details['notes'] == ['no mCE: 0 of 15 corruptions are there with all five severities']
    for item in items:
        del item['corruption']
    with pytest.raises(ValueError, match='0.png has no corruption or severity.*meta_keys='):
        evaluate(items, groups=None, classes='xyz', kind='CorruptionError')


def test_preference():
    likely, unlikely = {'held_out/top1': 80.0, 'held_out/nll': 0.5}, {'held_out/top1': 80.0, 'held_out/nll': 0.6}
    assert preference(likely, 'held_out/top1') > preference(unlikely, 'held_out/top1')
    assert preference(dict(unlikely, **{'held_out/top1': 80.1}), 'held_out/top1') > preference(likely, 'held_out/top1')
    assert preference(likely, 'held_out/nll', 'less') > preference(unlikely, 'held_out/nll', 'less')
    assert preference({'mine': 1.0}, 'mine') == (1.0, 0.0) and preference({'top1': 1.0, 'nll': 2.0}, 'top1') == (
        1.0,
        -2.0,
    )
