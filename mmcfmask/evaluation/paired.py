"""Paired comparison of two models on the same images."""

from __future__ import annotations

import numpy as np


def bootstrap_differences(
    before: np.ndarray, after: np.ndarray, resamples: int = 2000, seed: int = 0
) -> tuple[float, np.ndarray]:
    """Difference of two accuracies on the same images, and its bootstrap over the images.

    Image i has the difference d_i = mean over the runs of ``after`` − mean over the runs of ``before``, of its 0 or 1.
    A resample draws N images with replacement, for both models alike, and averages their d_i (Efron, "Bootstrap
    Methods: Another Look at the Jackknife", 1979). d_i has few values, so a resample is one multinomial draw of how
    often each value occurs.

    Args:
        before, after (np.ndarray): (runs, N) bool, whether each run is right on each image; the numbers of runs may
            differ.
        resamples (int): Number of resamples.
        seed (int): Of the draws.

    Returns:
        The difference in percentage points, and that of every resample, (resamples,) float64.

    Raises:
        ValueError: The two have different numbers of images, or none.
    """
    before, after = np.atleast_2d(before), np.atleast_2d(after)
    if before.shape[1] != after.shape[1] or not before.size or not after.size:
        raise ValueError(f'expected results on the same images, got the shapes {before.shape} and {after.shape}')
    # Integers, so that equal differences are equal.
    scaled = after.sum(axis=0) * len(before) - before.sum(axis=0) * len(after)
    values, counts = np.unique(scaled, return_counts=True)
    percent = 100 * values / (len(before) * len(after))
    num = len(scaled)
    draws = np.random.default_rng(seed).multinomial(num, counts / num, size=resamples)
    return float(percent @ counts / num), draws @ percent / num


def percentile_interval(draws: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """The interval that holds the middle ``level`` of bootstrap draws."""
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
