"""Corruption errors of ImageNet-C (Hendrycks & Dietterich, "Benchmarking Neural Network Robustness to Common
Corruptions and Perturbations", ICLR 2019)."""

from __future__ import annotations

from collections.abc import Mapping

from ..datasets.layouts import SEVERITIES

ALEXNET_ERROR = dict(
    gaussian_noise=88.6428, shot_noise=89.4468, impulse_noise=92.2640,
    defocus_blur=81.9880, glass_blur=82.6268, motion_blur=78.5948, zoom_blur=79.8360,
    snow=86.6816, frost=82.6572, fog=81.9324, brightness=56.4592,
    contrast=85.3204, elastic_transform=64.6056, pixelate=71.7840, jpeg_compression=60.6500)  # yapf: disable
"""Top-1 error of AlexNet in percent, mean over the five severities: table 1 of the publication, with the digits that
its authors released (https://github.com/hendrycks/robustness, as quoted in ``imagenet.py`` of
https://github.com/google-research/augmix)."""


def mean_error(errors: Mapping[int, float]) -> float:
    """Unweighted mean over severities of {severity: error}."""
    return sum(errors.values()) / len(errors)


def corruption_error(corruption: str, errors: Mapping[int, float]) -> float | None:
    """CE of one corruption in percent: Σ_s error_s / Σ_s error_s of AlexNet, of {severity: error in percent}.

    None if there is no published denominator: another corruption, or not all five severities.
    """
    if corruption not in ALEXNET_ERROR or set(errors) != set(SEVERITIES):
        return None
    return 100 * mean_error(errors) / ALEXNET_ERROR[corruption]


def mean_corruption_error(errors: Mapping[str, Mapping[int, float]]) -> float | None:
    """mCE in percent: mean of CE over the fifteen corruptions, of {corruption: {severity: error in percent}}.

    None unless all fifteen are given with all five severities: the mean over fewer is a different number.
    """
    ces = [corruption_error(corruption, errors.get(corruption, {})) for corruption in ALEXNET_ERROR]
    known = [error for error in ces if error is not None]
    return sum(known) / len(known) if len(known) == len(ces) else None
