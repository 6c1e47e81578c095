"""Accuracy by group of images, such as land birds on water: worst group, and averages over groups."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
from mmpretrain.registry import METRICS

from ..errors import ConfigError
from ..messages import short_list
from .metrics import ShiftAccuracy, image_name, unique_names


def group_accuracies(correct: np.ndarray, groups: np.ndarray) -> dict[int, tuple[float, int]]:
    """{group: (accuracy in percent, number of images)} of the groups that have images.

    Args:
        correct (np.ndarray): (N,) bool.
        groups (np.ndarray): (N,) int, not negative.
    """
    total, right = np.bincount(groups), np.bincount(groups, weights=correct)
    return {
        int(group): (float(100 * right[group] / total[group]), int(total[group])) for group in np.flatnonzero(total)
    }


def worst_group(accuracies: Mapping[int, float]) -> float:
    """min_g a_g over the accuracies a_g of the groups (Sagawa et al., ICLR 2020)."""
    return min(accuracies.values())


def group_average(accuracies: Mapping[int, float], sizes: Sequence[int]) -> float | None:
    """Σ_g n_g a_g / Σ_g n_g, with the numbers n_g of training images of the groups (Sagawa et al., ICLR 2020, section
    3): the accuracy on test images of the training distribution, where the groups of the test set are balanced.

    Args:
        accuracies (Mapping[int, float]): a_g of the groups with test images; the sums are over these.
        sizes (Sequence[int]): n_g of all groups.

    Returns:
        float, optional: None if none of these groups has training images.
    """
    total = sum(sizes[group] for group in accuracies)
    return sum(sizes[group] * accuracy for group, accuracy in accuracies.items()) / total if total else None


@METRICS.register_module()
class GroupAccuracy(ShiftAccuracy):
    """Accuracy by group, besides what :class:`ShiftAccuracy` gives.

    Data samples carry ``group`` (int): ``PackInputs(meta_keys=(…, 'group'))`` on a set with groups
    (:class:`mmcfmask.datasets.GroupCSVDataset`), whose ``metainfo`` has ``group_names`` and ``group_sizes``, the
    numbers of training images.

    ====================  ===========================================================================================
    ``top1``              Percent of images: the plain average, also over a test set with balanced groups.
    ``worst_group``       Percent: the lowest accuracy of a group that has images.
    ``group_average``     Percent: mean over groups, weighted by their training images (:func:`group_average`). Only
                          with ``group_sizes``.
    ``group_<name>``      Percent of the images of a group.
    ====================  ===========================================================================================

    ``details['groups']`` maps names of groups to ``accuracy``, ``count`` and ``train_count`` (None if not known).

    Raises:
        ConfigError: An item without a group, or with one that has no name; and as :class:`ShiftAccuracy`.
    """

    NAMES = (*ShiftAccuracy.NAMES, 'worst_group', 'group_average')

    def _extra(self, data_samples: Sequence[dict]) -> dict[str, np.ndarray]:
        names = (self.dataset_meta or {}).get('group_names')
        for sample in data_samples:
            if 'group' not in sample:
                raise ConfigError(
                    f'{self.prefix}: {image_name(sample)} has no group: GroupAccuracy needs a data set with groups '
                    "(GroupCSVDataset, WaterbirdsDataset) and a pipeline that ends in dict(type='PackInputs', "
                    "meta_keys=('sample_idx', 'img_path', 'group'))"
                )
            if int(sample['group']) < 0 or names is not None and int(sample['group']) >= len(names):
                raise ConfigError(
                    f'{self.prefix}: {image_name(sample)} has the group {int(sample["group"])}, but there are '
                    f'{"only numbers from 0" if names is None else len(names)}'
                )
        return dict(group=np.array([int(sample['group']) for sample in data_samples], dtype=np.int32))

    def compute_metrics(self, results: dict[str, np.ndarray]) -> dict[str, float]:
        """Metrics of all images, without the prefix, from their columns."""
        metrics = super().compute_metrics(results)
        found = group_accuracies(results['rank'] == 0, results['group'])
        accuracies = {group: accuracy for group, (accuracy, _) in found.items()}
        meta = self.dataset_meta or {}
        names, sizes = unique_names(meta.get('group_names'), max(found) + 1), meta.get('group_sizes')
        self.details['groups'] = {
            names[group]: dict(accuracy=accuracy, count=count, train_count=None if sizes is None else int(sizes[group]))
            for group, (accuracy, count) in found.items()
        }
        metrics['worst_group'] = worst_group(accuracies)
        average = None if sizes is None else group_average(accuracies, sizes)
        if average is not None:
            metrics['group_average'] = average
        else:
            why = 'their sizes are not known' if sizes is None else 'none of these groups has training images'
            self.details['notes'].append(f'no average weighted by training groups: {why}')
        absent = [name for group, name in enumerate(names) if group not in found and sizes is not None and sizes[group]]
        if absent:
            self.details['notes'].append(f'no images of {len(absent)} of {len(names)} groups: {short_list(absent)}')
        keys = unique_names([re.sub(r'\W+', '_', names[group]) for group in found], len(found))
        metrics.update({f'group_{key}': accuracy for key, accuracy in zip(keys, accuracies.values())})
        return metrics
