"""Expected calibration error and the reliability diagram behind it (Guo et al., "On Calibration of Modern Neural
Networks", ICML 2017)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


def reliability_bins(confidence: ArrayLike, correct: ArrayLike, num_bins: int = 15) -> list[dict]:
    """Confidence against accuracy in bins of equal width, ((m − 1) / M, m / M] for m = 1..M.

    Args:
        confidence (array-like): (N,) probabilities in [0, 1].
        correct (array-like): (N,) bool.
        num_bins (int): M.

    Returns:
        list[dict]: For every bin ``confidence`` (mean, 0 to 1), ``accuracy`` (0 to 1) and ``count``; the first two are
        None where count is 0.
    """
    confidence, correct = np.asarray(confidence, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    # The edge m / M belongs to bin m; a confidence of 0 to the first.
    index = np.clip(np.searchsorted(np.arange(num_bins + 1) / num_bins, confidence, side='left') - 1, 0, num_bins - 1)
    count = np.bincount(index, minlength=num_bins)
    sums = [np.bincount(index, weights=values, minlength=num_bins) for values in (confidence, correct)]
    return [
        dict(
            confidence=sums[0][m] / count[m] if count[m] else None,
            accuracy=sums[1][m] / count[m] if count[m] else None,
            count=int(count[m]),
        )
        for m in range(num_bins)
    ]


def expected_calibration_error(bins: list[dict]) -> float:
    """Σ_m (n_m / N) · |accuracy_m − confidence_m|, in percent, of :func:`reliability_bins` (Guo et al. 2017, equation
    3)."""
    total = sum(part['count'] for part in bins)
    return 100 * sum(
        part['count'] / total * abs(part['accuracy'] - part['confidence']) for part in bins if part['count']
    )
