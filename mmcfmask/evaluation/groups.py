"""Accuracy by group of images, such as land birds on water: worst group, averages, gaps between groups."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from mmpretrain.registry import METRICS

from ..errors import ConfigError
from ..messages import short_list
from .accuracy import per_class_accuracy
from .metrics import ShiftAccuracy, as_rows, image_name, unique_names


def group_accuracies(correct: np.ndarray, groups: np.ndarray) -> dict[int, tuple[float, int]]:
    """{group: (accuracy in percent, number of images)} of the groups that have images.

    Args:
        correct (np.ndarray): (N,) bool.
        groups (np.ndarray): (N,) int, not negative. Or (N, G), padded with −1: an image counts in each of its groups.
    """
    return per_class_accuracy(correct, groups if groups.ndim == 2 else groups[:, None])


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


def error_ratio(group: float, whole: float) -> float | None:
    """(100 − a_g) / (100 − a) of the accuracies in percent of a group and of all images (Idrissi et al., "ImageNet-X",
    ICLR 2023): above 1, the group is harder than the rest. None if there is no error at all."""
    return None if whole == 100 else (100 - group) / (100 - whole)


@METRICS.register_module()
class PartAccuracy(ShiftAccuracy):
    """Accuracy of every part of a set, such as a kind of background, besides what :class:`ShiftAccuracy` gives.

    Data samples carry ``group`` (int, or a list of ints for an image of several parts, or an empty one):
    ``PackInputs(meta_keys=(…, 'group'))`` on a set whose ``metainfo`` has ``group_names``.

    ====================  ===========================================================================================
    ``group_<name>``      Percent of the images of a part.
    ``<name of a gap>``   Percentage points: accuracy of one part minus that of another.
    ====================  ===========================================================================================

    ``details['groups']`` maps names of parts to ``accuracy``, ``count`` and ``train_count`` (None if not known).

    Args:
        gaps (Mapping[str, Sequence[str]]): Metrics that are differences: ``dict(bg_gap=['mixed_same', 'mixed_rand'])``.
            A set with gaps consists of versions of the same task, over which no accuracy is taken: there is no
            ``top1``, and nothing counts in the OOD average. Defaults to none.
        **kwargs: Arguments of :class:`ShiftAccuracy`.

    Raises:
        ConfigError: A gap without two names of parts; an item without a group, or with one that has no name; and as
            :class:`ShiftAccuracy`.
    """

    def __init__(self, gaps: Mapping[str, Sequence[str]] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.gaps = {name: tuple(parts) for name, parts in (gaps or {}).items()}
        for name, parts in self.gaps.items():
            if len(parts) != 2:
                raise ConfigError(f'gaps: {name}={list(parts)!r} must be two names of parts of the set')

    def _extra(self, data_samples: Sequence[dict]) -> dict[str, np.ndarray]:
        names = (self.dataset_meta or {}).get('group_names')
        rows = []
        for sample in data_samples:
            if 'group' not in sample:
                raise ConfigError(
                    f'{self.prefix}: {image_name(sample)} has no group: {type(self).__name__} needs a data set with '
                    "groups (GroupCSVDataset, WaterbirdsDataset) and a pipeline that ends in dict(type='PackInputs', "
                    "meta_keys=('sample_idx', 'img_path', 'group'))"
                )
            groups = [int(group) for group in np.atleast_1d(sample['group'])]
            for group in groups:
                if group < 0 or names is not None and group >= len(names):
                    raise ConfigError(
                        f'{self.prefix}: {image_name(sample)} has the group {group}, but there are '
                        f'{"only numbers from 0" if names is None else len(names)}'
                    )
            rows.append(groups)
        return dict(group=as_rows(rows))

    def compute_metrics(self, results: dict[str, np.ndarray]) -> dict[str, float]:
        """Metrics of all images, without the prefix, from their columns."""
        metrics = super().compute_metrics(results)
        meta, found = self.dataset_meta or {}, group_accuracies(results['rank'] == 0, results['group'])
        names = unique_names(meta.get('group_names'), max(found, default=-1) + 1)
        sizes = meta.get('group_sizes')
        self.details['groups'] = {
            names[group]: dict(accuracy=accuracy, count=count, train_count=None if sizes is None else int(sizes[group]))
            for group, (accuracy, count) in found.items()
        }
        if self.gaps:
            metrics = {name: value for name, value in metrics.items() if name not in ShiftAccuracy.NAMES}
        metrics.update(self._gaps(names))
        metrics.update(self._measures({group: accuracy for group, (accuracy, _) in found.items()}, names, metrics))
        keys = unique_names([re.sub(r'\W+', '_', names[group]) for group in found], len(found))
        metrics.update({f'group_{key}': accuracy for key, (accuracy, _) in zip(keys, found.values())})
        return metrics

    def _gaps(self, names: Sequence[str]) -> dict[str, float]:
        found, gaps = self.details['groups'], {}
        for gap, parts in self.gaps.items():
            unknown = [part for part in parts if part not in names]
            if unknown:
                raise ConfigError(f'{self.prefix}: gaps.{gap} names {unknown[0]!r}; the set has {short_list(names)}')
            absent = [part for part in parts if part not in found]
            if absent:
                self.details['notes'].append(f'no {gap}: no images of {short_list(absent)}')
            else:
                gaps[gap] = found[parts[0]]['accuracy'] - found[parts[1]]['accuracy']
        return gaps

    def _measures(
        self, accuracies: Mapping[int, float], names: Sequence[str], metrics: Mapping[str, float]
    ) -> dict[str, float]:
        """More metrics of the groups, for child classes."""
        return {}


@METRICS.register_module()
class FactorAccuracy(PartAccuracy):
    """Accuracy by factor of ImageNet-X, and what :class:`PartAccuracy` gives.

    ========================  =======================================================================================
    ``error_ratio_<factor>``  Error on the images of a factor over the error on all (:func:`error_ratio`); published.
    ``worst_factor``          Percent: the lowest accuracy of a factor.
    ========================  =======================================================================================
    """

    def _measures(
        self, accuracies: Mapping[int, float], names: Sequence[str], metrics: Mapping[str, float]
    ) -> dict[str, float]:
        if not accuracies:
            raise ConfigError(f'{self.prefix}: no image has a factor')
        ratios = {names[group]: error_ratio(accuracy, metrics['top1']) for group, accuracy in accuracies.items()}
        return dict(
            worst_factor=min(accuracies.values()),
            **{f'error_ratio_{name}': ratio for name, ratio in ratios.items() if ratio is not None},
        )


@METRICS.register_module()
class GroupAccuracy(PartAccuracy):
    """Worst group and weighted average, besides what :class:`PartAccuracy` gives.

    ``metainfo`` may have ``group_sizes``, the numbers of training images of the groups
    (:class:`mmcfmask.datasets.GroupCSVDataset`).

    ====================  ===========================================================================================
    ``top1``              Percent of images: the plain average, also over a test set with balanced groups.
    ``worst_group``       Percent: the lowest accuracy of a group that has images.
    ``group_average``     Percent: mean over groups, weighted by their training images (:func:`group_average`). Only
                          with ``group_sizes``.
    ====================  ===========================================================================================

    Args:
        ignore (Sequence[str]): Groups that the worst group may not be: FMoW's region 'Other'. Defaults to ().
        **kwargs: Arguments of :class:`PartAccuracy`.

    Raises:
        ConfigError: As :class:`PartAccuracy`; an item without a group.
    """

    NAMES = (*ShiftAccuracy.NAMES, 'worst_group', 'group_average')

    def __init__(self, ignore: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.ignore = tuple(ignore)

    def _measures(
        self, accuracies: Mapping[int, float], names: Sequence[str], metrics: Mapping[str, float]
    ) -> dict[str, float]:
        sizes = (self.dataset_meta or {}).get('group_sizes')
        judged = {group: accuracy for group, accuracy in accuracies.items() if names[group] not in self.ignore}
        if not judged:
            raise ConfigError(f'{self.prefix}: no images of a group, but for those in ignore={list(self.ignore)!r}')
        measures = dict(worst_group=worst_group(judged))
        average = None if sizes is None else group_average(accuracies, sizes)
        if average is not None:
            measures['group_average'] = average
        else:
            why = 'their sizes are not known' if sizes is None else 'none of these groups has training images'
            self.details['notes'].append(f'no average weighted by training groups: {why}')
        absent = [
            name for group, name in enumerate(names) if group not in accuracies and sizes is not None and sizes[group]
        ]
        if absent:
            self.details['notes'].append(f'no images of {len(absent)} of {len(names)} groups: {short_list(absent)}')
        return measures
