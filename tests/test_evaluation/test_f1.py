"""Macro F1, against plain counting."""

import random

import numpy as np
import pytest

from mmcfmask.evaluation import macro_f1


def plain_f1(labels, predicted):
    scores = []
    for label in set(labels):
        right = sum(a == b == label for a, b in zip(labels, predicted))
        precision = right / max(1, sum(b == label for b in predicted))
        recall = right / sum(a == label for a in labels)
        scores.append(2 * precision * recall / (precision + recall) if right else 0.0)
    return 100 * sum(scores) / len(scores)


@pytest.mark.parametrize('seed', range(5))
def test_equals_loop(seed):
    """Also with classes that are only predicted, which do not count, and classes that are never predicted."""
    rng = random.Random(seed)
    labels = [rng.choice((0, 1, 1, 1, 4)) for _ in range(30)]
    predicted = [label if rng.random() < 0.5 else rng.choice((1, 2, 6)) for label in labels]
    assert macro_f1(np.array(labels), np.array(predicted)) == pytest.approx(plain_f1(labels, predicted))


def test_ends():
    assert macro_f1(np.array([0, 3]), np.array([0, 3])) == 100 and macro_f1(np.array([0, 1]), np.array([1, 0])) == 0
