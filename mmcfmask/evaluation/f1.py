"""Macro F1, the measure of iWildCam."""

from __future__ import annotations

import numpy as np
from mmpretrain.registry import METRICS

from .metrics import ShiftAccuracy


def macro_f1(labels: np.ndarray, predicted: np.ndarray) -> float:
    """Mean over the classes that have images of F1 = 2 TP / (2 TP + FP + FN), in percent.

    The measure of iWildCam in WILDS (Koh et al., ICML 2021).

    Args:
        labels, predicted (np.ndarray): (N,) int, not negative.
    """
    size = int(max(labels.max(), predicted.max())) + 1
    right = np.bincount(labels[labels == predicted], minlength=size)
    true, answered = (np.bincount(column, minlength=size) for column in (labels, predicted))
    there = true > 0
    return float(100 * (2 * right[there] / (true + answered)[there]).mean())


@METRICS.register_module()
class MacroF1(ShiftAccuracy):
    """:class:`ShiftAccuracy` and ``macro_f1`` (:func:`macro_f1`), on a set with one label per image."""

    NAMES = (*ShiftAccuracy.NAMES, 'macro_f1')

    def compute_metrics(self, results: dict[str, np.ndarray]) -> dict[str, float]:
        """Metrics of all images, without the prefix, from their columns."""
        return dict(super().compute_metrics(results), macro_f1=macro_f1(results['labels'][:, 0], results['predicted']))
