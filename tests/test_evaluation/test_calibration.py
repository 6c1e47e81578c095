import numpy as np
import pytest

from mmcfmask.evaluation import expected_calibration_error, reliability_bins


def naive(confidence, correct, num_bins=15):
    """Guo et al. (2017), equation 3, bin by bin."""
    error = 0.0
    for m in range(1, num_bins + 1):
        members = [i for i, value in enumerate(confidence) if (m - 1) / num_bins < value <= m / num_bins]
        if members:
            accuracy = sum(bool(correct[i]) for i in members) / len(members)
            error += len(members) / len(confidence) * abs(accuracy - sum(confidence[i] for i in members) / len(members))
    return 100 * error


def test_equal_to_the_definition():
    rng = np.random.default_rng(0)
    confidence = rng.beta(3, 1, 500)
    correct = rng.random(500) < confidence**2
    assert expected_calibration_error(reliability_bins(confidence, correct)) == pytest.approx(
        naive(confidence, correct)
    )
    assert expected_calibration_error(reliability_bins(confidence, correct, 7)) == pytest.approx(
        naive(confidence, correct, 7)
    )


def test_bins():
    bins = reliability_bins([1 / 15, 0.2, 1.0, 0.99, 0.0], [True, False, True, False, False])
    assert [part['count'] for part in bins] == [2, 0, 1, *[0] * 11, 2]  # a value on an edge belongs below it
    assert bins[0] == dict(confidence=pytest.approx(1 / 30), accuracy=0.5, count=2)
    assert bins[1] == dict(confidence=None, accuracy=None, count=0)
    assert bins[14]['confidence'] == pytest.approx(0.995) and bins[14]['accuracy'] == 0.5


def test_certain_and_right_is_calibrated():
    assert expected_calibration_error(reliability_bins(np.ones(10), np.ones(10))) == 0
    assert expected_calibration_error(reliability_bins(np.ones(10), np.zeros(10))) == 100
