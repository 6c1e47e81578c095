"""Mean probabilities of coarse classes and shape bias, against plain loops."""

import math
import random

import pytest
import torch
from mmpretrain.registry import METRICS
from mmpretrain.structures import DataSample

import mmcfmask  # noqa: F401
from mmcfmask.errors import ConfigError
from mmcfmask.evaluation import mean_probability_scores, shape_bias

GROUPS = ((0,), (1, 2, 3), (5, 7))  # 4 and 6 are outside
NAMES = ('airplane', 'dog', 'cat')


def plain_decision(logits):
    """The class with the highest mean probability, and the probabilities divided by their sum."""
    total = sum(math.exp(value) for value in logits)
    means = [sum(math.exp(logits[index]) / total for index in group) / len(group) for group in GROUPS]
    return max(range(len(means)), key=means.__getitem__), [mean / sum(means) for mean in means]


def evaluate(rows, kind, groups=GROUPS, **info):
    """Rows of (label, logits, texture or None)."""
    metric = METRICS.build(dict(type=kind))
    metric.dataset_meta = dict(classes=NAMES, label_groups=groups)
    samples = []
    for number, (label, logits, texture) in enumerate(rows):
        meta = dict(sample_idx=number, img_path=f'{number}.png', **({} if texture is None else dict(texture=texture)))
        sample = DataSample(metainfo=meta).set_gt_label(label)
        sample.pred_logits = torch.tensor(logits)
        samples.append(sample.to_dict())
    for start in range(0, len(samples), 7):
        metric.process(None, samples[start : start + 7])
    return {name.partition('/')[2]: value for name, value in metric.evaluate(len(samples)).items()}, metric


def draw(count, seed=0):
    rng = random.Random(seed)
    return [(rng.randrange(3), [rng.gauss(0, 2) for _ in range(8)], rng.randrange(3)) for _ in range(count)]


def test_scores_equal_loop():
    rows = draw(40)
    scores = mean_probability_scores(torch.tensor([logits for _, logits, _ in rows]), GROUPS)
    for (_, logits, _), row in zip(rows, scores):
        decision, shares = plain_decision(logits)
        assert row.argmax() == decision
        torch.testing.assert_close(row.softmax(0), torch.tensor(shares, dtype=torch.float64), rtol=1e-5, atol=1e-9)
    certain = torch.zeros(1, 8)
    certain[0, 4] = 1e4  # every class of the set underflows
    assert mean_probability_scores(certain, GROUPS).isfinite().all()


def test_the_mean_is_not_the_maximum():
    """One of three outputs is the highest of all, but the mean of the single output is higher."""
    logits = [1.0, 1.5, -9.0, -9.0, 0.0, -9.0, 0.0, -9.0]
    (found, _), (plain, _) = (evaluate([(0, logits, None)], kind) for kind in ('CoarseAccuracy', 'ShiftAccuracy'))
    assert plain_decision(logits)[0] == 0 and found['top1'] == 100 and plain['top1'] == 0


def test_accuracy_equals_loop():
    rows = draw(50)
    found, metric = evaluate(rows, 'CoarseAccuracy')
    decided = [(label, *plain_decision(logits)) for label, logits, _ in rows]
    assert found['top1'] == pytest.approx(100 * sum(label == choice for label, choice, _ in decided) / 50)
    nll = [-math.log(shares[label]) for label, _, shares in decided]
    assert found['nll'] == pytest.approx(sum(nll) / 50, rel=1e-5)
    assert set(metric.details['per_class']) == set(NAMES)


def test_shape_bias_equals_loop():
    rows = draw(60, seed=1)
    found, _ = evaluate(rows, 'ShapeBias')
    decided = [(shape, texture, plain_decision(logits)[0]) for shape, logits, texture in rows]
    conflicts = [row for row in decided if row[0] != row[1]]
    shapes = sum(answer == shape for shape, _, answer in conflicts)
    textures = sum(answer == texture for _, texture, answer in conflicts)
    assert 0 < len(conflicts) < 60 and shapes and textures
    expected = dict(
        shape_bias=100 * shapes / (shapes + textures),
        shape_answers=100 * shapes / 60,
        texture_answers=100 * textures / 60,
    )
    assert found == pytest.approx(expected) and shape_bias(shapes, textures) == pytest.approx(expected['shape_bias'])


def test_no_answer_by_a_cue_has_no_bias():
    assert shape_bias(0, 0) is None
    logits = [0.0] * 8
    logits[5] = 9.0  # a cat, which is neither
    found, metric = evaluate([(0, logits, 1)], 'ShapeBias')
    assert 'shape_bias' not in found and 'no shape bias' in metric.details['notes'][0]


def test_errors():
    with pytest.raises(ConfigError, match='3.png has no texture: ShapeBias needs the cue-conflict images') as error:
        evaluate([(0, [0.0] * 8, None if number == 3 else 1) for number in range(5)], 'ShapeBias')
    assert "meta_keys=('sample_idx', 'img_path', 'texture')" in str(error.value)
    with pytest.raises(ConfigError, match='CoarseAccuracy needs a set whose classes are groups'):
        evaluate([(0, [0.0] * 3, None)], 'CoarseAccuracy', groups=None)
