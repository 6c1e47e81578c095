"""The paired bootstrap."""

import numpy as np
import pytest

from mmcfmask.evaluation.paired import bootstrap_differences, percentile_interval


def slow_bootstrap(before, after, resamples, rng):
    """Image by image: draw images with replacement, and compare both models on them."""
    num = before.shape[1]
    draws = []
    for _ in range(resamples):
        images = rng.integers(num, size=num)
        accuracies = [np.mean([[run[i] for i in images] for run in model]) for model in (before, after)]
        draws.append(100 * (accuracies[1] - accuracies[0]))
    return np.array(draws)


@pytest.mark.parametrize('runs', [(1, 1), (2, 3)])
def test_equals_resampling_images(runs):
    rng = np.random.default_rng(0)
    difficulty = rng.random(60)
    before, after = (rng.random((number, 60)) < difficulty**power for number, power in zip(runs, (1.0, 0.6)))
    difference, draws = bootstrap_differences(before, after, resamples=20000)
    expected = slow_bootstrap(before, after, 1500, rng)
    assert difference == pytest.approx(100 * (after.mean() - before.mean()))
    # The standard error of a bootstrap quantity over 1,500 resamples is about 3 % of the standard deviation.
    assert draws.mean() == pytest.approx(expected.mean(), abs=0.12 * expected.std())
    assert draws.std() == pytest.approx(expected.std(), rel=0.1)
    for ours, theirs in zip(percentile_interval(draws), percentile_interval(expected)):
        assert ours == pytest.approx(theirs, abs=0.25 * expected.std())


def test_pairs_count():
    """Two models that are right on the same images do not differ; unpaired, they would by chance."""
    right = np.random.default_rng(0).random((1, 500)) < 0.7
    difference, draws = bootstrap_differences(right, right)
    assert difference == 0 and (draws == 0).all() and draws.shape == (2000,)


def test_a_difference_on_every_image_is_certain():
    difference, draws = bootstrap_differences(np.zeros((2, 30), bool), np.ones((1, 30), bool))
    assert difference == 100 and percentile_interval(draws) == (100, 100)


def test_other_images_are_an_error():
    with pytest.raises(ValueError, match='the same images'):
        bootstrap_differences(np.zeros((1, 30), bool), np.ones((1, 31), bool))
