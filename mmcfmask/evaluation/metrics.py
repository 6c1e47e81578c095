"""Metrics of a test set whose classes may be a subset of the head's classes, or groups of them."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_gather_object, broadcast_object_list, is_main_process
from mmengine.evaluator import BaseMetric
from mmpretrain.registry import METRICS
from torch import Tensor

from ..datasets.layouts import SEVERITIES
from ..errors import ConfigError, NumericalError
from .accuracy import (
    class_scores,
    confidence,
    label_rank,
    mixture_scores,
    negative_log_likelihood,
    per_class_accuracy,
)
from .calibration import expected_calibration_error, reliability_bins
from .corruption import ALEXNET_ERROR, corruption_error, mean_corruption_error, mean_error


def nll_key(key: str) -> str:
    """The metric that breaks ties of ``key``: ``'accuracy/nll'`` for ``'accuracy/top1'``."""
    return f'{key.rpartition("/")[0]}/nll'.lstrip('/')


def preference(metrics: Mapping[str, float], key: str, rule: str | None = 'greater') -> tuple[float, float]:
    """Sort key to compare models on held-out images: the larger, the better.

    Accuracies on a few hundred images are often equal. The likelihood of the labels breaks such ties.

    Args:
        metrics (Mapping[str, float]): Metrics of a validation.
        key (str): The metric to compare.
        rule (str, optional): 'greater' or 'less': which is better.

    Returns:
        tuple[float, float]: The metric or its negative, and the negative cross-entropy, 0 if not measured.
    """
    return (-metrics[key] if rule == 'less' else metrics[key]), -metrics.get(nll_key(key), 0.0)


@METRICS.register_module()
class ShiftAccuracy(BaseMetric):
    """Accuracy, likelihood and calibration on the classes of the set.

    ``metainfo['label_groups']`` of the set maps its classes to outputs of the head
    (:mod:`mmcfmask.evaluation.accuracy`); without it, the set has the head's classes. Only a few numbers are kept per
    image.

    ======================  =========================================================================================
    ``top1``, ``top5``      Percent of images. Top-5 where the set has more than five classes.
    ``mean_per_class``      Percent: mean over the classes that have images.
    ``nll``                 Mean negative log-likelihood of the label, in nats.
    ``ece``                 Expected calibration error in percent, 15 bins of equal width.
    ``zero_shot_percent``   Percent of images that the zero-shot model answered, for a model with a k-NN gate.
    ======================  =========================================================================================

    Data samples hold ``gt_label`` (the class within the set; of several, any is correct) and ``pred_logits`` (float,
    (C,)). Of several models together they hold ``mixed_logits`` (M, C) and ``mixed_weights`` (M,), whose softmaxes over
    the classes of the set are mixed (:func:`mmcfmask.evaluation.accuracy.mixture_scores`). If a head gives no logits,
    the logarithm of ``pred_score`` replaces them; scores that underflowed to 0 count as the smallest float32 number.

    Args:
        keep_predictions (bool): Keep path, label, prediction and confidence of every image in ``details``. Defaults to
            False.
        apart (bool): The set is no shift: ``top1`` is called ``accuracy``, and does not count in the OOD average.
            Defaults to False.
        prefix (str, optional): Defaults to ``'accuracy'``.

    Attributes:
        details (dict): After ``evaluate``, on the main process: ``per_class`` {class name: percent},
            ``per_class_count``, ``reliability`` (:func:`mmcfmask.evaluation.reliability_bins`), ``predictions`` (None,
            or a list of dicts with ``img_path``, ``gt``, ``pred``, ``correct``, ``confidence``), ``notes`` (list of
            str). A name that two classes share gets the class index appended.

    Raises:
        ConfigError: No logits or label; an image counted twice or left out; label_groups that do not fit the head.
        NumericalError: Logits that are not finite; the message names the image.
    """

    default_prefix = 'accuracy'
    NAMES: tuple[str, ...] = ('top1', 'top5', 'mean_per_class', 'nll', 'ece')

    def __init__(self, keep_predictions: bool = False, apart: bool = False, prefix: str | None = None) -> None:
        super().__init__(prefix=prefix)
        self.keep_predictions = keep_predictions
        self.apart = apart
        self.details: dict = {}

    @property
    def groups(self) -> tuple | None:
        groups = (self.dataset_meta or {}).get('label_groups')
        return None if groups is None else tuple(map(tuple, groups))

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Reduce a batch to a few numbers per image: ``self.results`` holds a dict of columns for every batch."""
        logits, groups = self._scored(data_samples)
        self.num_classes = logits.shape[1] if groups is None else len(groups)
        labels = self._labels(data_samples)
        mask = torch.zeros(len(labels), self.num_classes + 1, dtype=torch.bool)
        mask = mask.scatter_(1, torch.from_numpy(labels).long() % (self.num_classes + 1), True)[:, :-1].to(
            logits.device
        )  # −1: the last
        scores = class_scores(logits, groups)
        certainty, hit = confidence(logits, mask, groups)
        columns = (
            scores.argmax(dim=1),
            label_rank(scores, mask),
            negative_log_likelihood(logits, mask, groups),
            certainty,
            hit,
        )
        predicted, rank, nll, certainty, hit = (
            torch.stack([column.double() for column in columns]).cpu().numpy()
        )  # one transfer
        self.results.append(
            dict(
                index=np.array([sample.get('sample_idx', -1) for sample in data_samples]),
                labels=labels,
                predicted=predicted.astype(np.int32),
                rank=rank.astype(np.int32),
                nll=nll,
                confidence=certainty,
                hit=hit.astype(bool),
                **(dict(path=_objects(map(image_name, data_samples))) if self.keep_predictions else {}),
                **(
                    dict(answered_by_zero_shot=np.array([sample['answered_by_zero_shot'] for sample in data_samples]))
                    if 'answered_by_zero_shot' in data_samples[0]
                    else {}
                ),
                **self._extra(data_samples),
            )
        )

    def _extra(self, data_samples: Sequence[dict]) -> dict[str, np.ndarray]:
        """More columns, for child classes."""
        return {}

    def _scored(self, data_samples: Sequence[dict]) -> tuple[Tensor, tuple | None]:
        """Logits, and the groups of them that are the classes of the set."""
        return self._logits(data_samples, self.groups), self.groups

    def _labels(self, data_samples: Sequence[dict]) -> np.ndarray:
        """(B, L) int32, L the largest number of labels of an image, the rest −1."""
        if 'gt_label' not in data_samples[0]:
            raise ConfigError(f'{self.prefix}: the items of the set have no gt_label')
        flat = iter(torch.cat([sample['gt_label'] for sample in data_samples]).tolist())
        labels = [list(islice(flat, sample['gt_label'].numel())) for sample in data_samples]
        for members, sample in zip(labels, data_samples):
            if not members or not 0 <= min(members) <= max(members) < self.num_classes:
                raise ConfigError(
                    f'{self.prefix}: {image_name(sample)} has the labels {members}, but there are '
                    f'{self.num_classes} classes'
                )
        return as_rows(labels)

    def _logits(self, data_samples: Sequence[dict], groups: tuple | None) -> Tensor:
        """(B, C) float32, finite; of several models, mixed over the outputs in ``groups``."""
        first = data_samples[0]
        if 'mixed_logits' in first:
            parts, weights = (
                torch.stack([sample[name] for sample in data_samples]).float()
                for name in ('mixed_logits', 'mixed_weights')
            )
            logits = mixture_scores(parts, weights, groups)
        elif 'pred_logits' in first:
            logits = torch.stack([sample['pred_logits'] for sample in data_samples]).float()
        elif 'pred_score' in first:
            scores = torch.stack([sample['pred_score'] for sample in data_samples]).float()
            taking_part = scores if groups is None else class_scores(scores, groups)
            for sample, highest in zip(data_samples, taking_part.amax(dim=1).tolist()):
                if highest == 0:
                    raise ConfigError(
                        f'{self.prefix}: of {image_name(sample)} every class of the set has score 0: the softmax over '
                        'all classes has underflowed, and the head gives no pred_logits to decide by. Use '
                        "CLIPDistillHead, or set pred_logits in the head's predict"
                    )
            logits = scores.clamp(min=2.0**-149).log()
        else:
            raise ConfigError(f'{self.prefix}: the head gives neither pred_logits nor pred_score')
        if (
            self.groups is None
            and (classes := (self.dataset_meta or {}).get('classes'))
            and len(classes) != logits.shape[1]
        ):
            raise ConfigError(
                f'{self.prefix}: the set has {len(classes)} classes, but the head has {logits.shape[1]}: a set of '
                'other '
                "classes than the head's needs metainfo=dict(label_groups=…)"
            )
        finite = logits.isfinite().all(dim=1)
        if not finite.all():
            broken = data_samples[int((~finite).nonzero()[0])]
            raise NumericalError(
                f'{self.prefix}: the logits of {image_name(broken)} are not finite; there is nothing to decide by'
            )
        return logits

    def evaluate(self, size: int) -> dict[str, float]:
        """Metrics of the whole set of ``size`` images, the same on every process, with the prefix.

        mmengine collects a list with an item per image, which takes gigabytes for the 3.75 million images of ImageNet-C
        and files in the working directory. Order and cut-off here are the same (:func:`interleave`).
        """
        parts = all_gather_object(merge(self.results))
        metrics: list[dict[str, float]] = [{}]
        if is_main_process():
            columns = interleave(parts, size)
            self._check_complete(columns['index'], size)
            found = self.compute_metrics(columns)
            if self.apart:
                found = {'accuracy' if name == 'top1' else name: value for name, value in found.items()}
            metrics = [{f'{self.prefix}/{name}': float(value) for name, value in found.items()}]
        broadcast_object_list(metrics)
        self.results.clear()
        return metrics[0]

    def compute_metrics(self, results: dict[str, np.ndarray]) -> dict[str, float]:
        """Metrics of all images, without the prefix, from their columns."""
        names = unique_names((self.dataset_meta or {}).get('classes'), self.num_classes)
        correct = results['rank'] == 0
        per_class = per_class_accuracy(correct, results['labels'])
        bins = reliability_bins(results['confidence'], results['hit'])
        predictions = None
        if self.keep_predictions:
            rows = zip(results['path'], results['labels'], results['predicted'], correct, results['confidence'])
            predictions = [
                dict(
                    img_path=path,
                    gt='|'.join(names[label] for label in labels if label >= 0),
                    pred=names[choice],
                    correct=bool(right),
                    confidence=float(sure),
                )
                for path, labels, choice, right, sure in rows
            ]
        self.details = dict(
            per_class={names[label]: accuracy for label, (accuracy, _) in per_class.items()},
            per_class_count={names[label]: count for label, (_, count) in per_class.items()},
            reliability=bins,
            predictions=predictions,
            notes=[],
        )
        metrics = dict(top1=100 * correct.mean())
        if len(names) > 5:
            metrics['top5'] = 100 * (results['rank'] < 5).mean()
        metrics['mean_per_class'] = sum(accuracy for accuracy, _ in per_class.values()) / len(per_class)
        metrics['nll'] = results['nll'].mean()
        metrics['ece'] = expected_calibration_error(bins)
        if 'answered_by_zero_shot' in results:
            metrics['zero_shot_percent'] = 100 * results['answered_by_zero_shot'].mean()
        return metrics

    def _check_complete(self, index: np.ndarray, size: int) -> None:
        if len(index) != size:
            raise ConfigError(
                f'{self.prefix}: {len(index)} results for {size} images: every image of the set must be evaluated '
                '(no drop_last, no sampler that leaves some out)'
            )
        seen, counts = np.unique(index[index >= 0], return_counts=True)
        if (counts > 1).any():
            twice = counts.argmax()
            raise ConfigError(
                f'{self.prefix}: item {seen[twice]} was counted {counts[twice]} times: the order of the sampler is not '
                'the '
                "one in which results are collected; use sampler=dict(type='DefaultSampler', shuffle=False)"
            )


@METRICS.register_module()
class CorruptionError(ShiftAccuracy):
    """Corruption errors of ImageNet-C, besides what :class:`ShiftAccuracy` gives over all its images.

    Data samples carry ``corruption`` (str) and ``severity`` (int, 1 to 5): ``PackInputs(meta_keys=(…, 'corruption',
    'severity'))``.

    ==========================  =====================================================================================
    ``mce``                     Mean corruption error in percent (:func:`mmcfmask.evaluation.mean_corruption_error`).
    Only if all
                                fifteen corruptions are there with five severities: the mean over fewer is another
                                    number.
    ``ce_<corruption>``         Error over AlexNet's, in percent; where all five severities are there.
    ``error_<corruption>``      Top-1 error in percent, mean over the severities there are.
    ==========================  =====================================================================================
    """

    def _extra(self, data_samples: Sequence[dict]) -> dict[str, np.ndarray]:
        for sample in data_samples:
            if 'corruption' not in sample or 'severity' not in sample:
                raise ConfigError(
                    f'{self.prefix}: {image_name(sample)} has no corruption or severity: the pipeline must end in '
                    "dict(type='PackInputs', meta_keys=('sample_idx', 'img_path', 'corruption', 'severity'))"
                )
        return dict(
            corruption=_objects(sys.intern(str(sample['corruption'])) for sample in data_samples),
            severity=np.array([sample['severity'] for sample in data_samples], dtype=np.int8),
        )

    def compute_metrics(self, results: dict[str, np.ndarray]) -> dict[str, float]:
        """Metrics of all images, without the prefix, from their columns."""
        metrics = super().compute_metrics(results)
        wrong = results['rank'] > 0
        errors: dict[str, dict[int, float]] = {}
        for corruption in dict.fromkeys(results['corruption'].tolist()):
            members = results['corruption'] == corruption
            severity, failed = results['severity'][members], wrong[members]
            errors[corruption] = {int(level): 100 * failed[severity == level].mean() for level in np.unique(severity)}
        mce = mean_corruption_error(errors)
        if mce is None:
            here = sum(set(errors.get(corruption, ())) == set(SEVERITIES) for corruption in ALEXNET_ERROR)
            self.details['notes'].append(
                f'no mCE: {here} of {len(ALEXNET_ERROR)} corruptions are there with all five severities'
            )
        else:
            metrics['mce'] = mce
        for corruption, parts in errors.items():
            metrics[f'error_{corruption}'] = mean_error(parts)
            if (ce := corruption_error(corruption, parts)) is not None:
                metrics[f'ce_{corruption}'] = ce
        return metrics


def merge(batches: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Concatenate the columns of several batches. Lists (``labels``, ``group``) are padded with −1 to one width."""
    return {
        name: np.concatenate(pad_alike([batch[name] for batch in batches])) for name in (batches[0] if batches else ())
    }


def pad_alike(columns: Sequence[np.ndarray]) -> list[np.ndarray]:
    """(N, L) arrays padded with −1 to the largest L; others as they are."""
    if columns[0].ndim < 2:
        return list(columns)
    width = max(column.shape[1] for column in columns)
    return [np.pad(column, ((0, 0), (0, width - column.shape[1])), constant_values=-1) for column in columns]


def as_rows(lists: Sequence[Sequence[int]]) -> np.ndarray:
    """Lists of numbers as (N, L) int32, L the longest, the rest −1."""
    longest = max(map(len, lists))
    return np.array([[*members, *[-1] * (longest - len(members))] for members in lists], dtype=np.int32)


def interleave(parts: Sequence[dict[str, np.ndarray]], size: int) -> dict[str, np.ndarray]:
    """Columns of all processes in the order of the set.

    mmengine's ``DefaultSampler`` deals items out in turn and fills the last round from the start of the set: item j of
    process r of R is number j·R + r. Items beyond the first ``size`` are this padding.
    """
    full = [part for part in parts if part]
    place = np.concatenate(
        [np.arange(len(part['index'])) * len(parts) + rank for rank, part in enumerate(parts) if part]
    )
    order = np.argsort(place, kind='stable')[:size]
    columns = merge(full)
    return {name: values[order] for name, values in columns.items()}


def unique_names(classes: Sequence[str] | None, num_classes: int) -> list[str]:
    """Class names as unique keys: duplicates (ImageNet's "missile", "sunglasses") get the class index appended."""
    if classes is None:
        return [str(index) for index in range(num_classes)]
    count = Counter(classes)
    return [f'{name} ({index})' if count[name] > 1 else str(name) for index, name in enumerate(classes)]


def _objects(values: Iterable) -> np.ndarray:
    values = list(values)
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def image_name(sample: dict) -> str:
    """The file of a data sample, or its number, for messages."""
    return str(sample.get('img_path') or f'item {sample.get("sample_idx")}')
