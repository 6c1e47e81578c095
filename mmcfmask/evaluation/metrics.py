"""Metrics of a test set whose classes may be some of the head's, or sums of them."""
from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import islice

import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from mmpretrain.registry import METRICS
from torch import Tensor

from .accuracy import class_scores, confidence, label_rank, negative_log_likelihood, per_class_accuracy
from .calibration import expected_calibration_error, reliability_bins
from .corruption import ALEXNET_ERROR, SEVERITIES, corruption_error, mean_corruption_error, mean_error


@METRICS.register_module()
class ShiftAccuracy(BaseMetric):
    """Accuracy, likelihood and calibration on the classes of the set.

    The set says in ``metainfo['label_groups']`` which outputs of the head mean which of its classes
    (:mod:`mmcfmask.evaluation.accuracy`); without it, its classes are the head's. Only a few numbers are kept of every image.

    ======================  =========================================================================================
    ``top1``, ``top5``      Percent of images. Top-5 where the set has more than five classes.
    ``mean_per_class``      Percent: mean over the classes that have images.
    ``nll``                 Mean negative log-likelihood of the label, in nats.
    ``ece``                 Expected calibration error in percent, 15 bins of equal width.
    ======================  =========================================================================================

    Of every data sample it takes ``gt_label`` (the class within the set; several: any of them is right) and ``pred_logits`` (float, (C,)).
    Where a head gives no logits, the logarithm of ``pred_score`` stands in; scores that have underflowed to 0 count as the smallest
    float32 number.

    Args:
        keep_predictions (bool): Keep path, label, prediction and confidence of every image in ``details``. Defaults to False.
        collect_device (str): As in mmengine. 'gpu', the default, exchanges results through the process group, on CPUs too, and needs no
            folder that all machines share.
        prefix (str, optional): Defaults to ``'accuracy'``.

    Attributes:
        details (dict): After ``evaluate``, on the main process: ``per_class`` {class name: percent}, ``per_class_count``, ``reliability``
            (:func:`mmcfmask.evaluation.reliability_bins`), ``predictions`` (None, or a list of dicts with ``img_path``, ``gt``, ``pred``,
            ``correct``, ``confidence``), ``notes`` (list of str). A name that two classes share has the class index behind it.

    Raises:
        ValueError: No logits or label; an image counted twice or left out; label_groups that do not fit the head.
        FloatingPointError: Logits that are not finite, with the image.
    """
    default_prefix = 'accuracy'

    def __init__(self, keep_predictions: bool = False, collect_device: str = 'gpu', prefix: str | None = None,
                 collect_dir: str | None = None) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix, collect_dir=collect_dir)
        self.keep_predictions = keep_predictions
        self.details: dict = {}

    @property
    def groups(self) -> tuple | None:
        groups = (self.dataset_meta or {}).get('label_groups')
        return None if groups is None else tuple(map(tuple, groups))

    def process(self, data_batch, data_samples: Sequence[dict]) -> None:
        """Reduce a batch to a few numbers per image."""
        logits, groups = self._logits(data_samples), self.groups
        self.num_classes = logits.shape[1] if groups is None else len(groups)
        flat = iter(torch.cat([sample['gt_label'] for sample in data_samples]).tolist())
        labels = [tuple(islice(flat, sample['gt_label'].numel())) for sample in data_samples]
        mask = torch.zeros(len(labels), self.num_classes, dtype=torch.bool)
        for row, members, sample in zip(mask, labels, data_samples):
            if not members or not 0 <= min(members) <= max(members) < self.num_classes:
                raise ValueError(f'{self.prefix}: {_name(sample)} has the labels {members}, but there are {self.num_classes} classes')
            row[list(members)] = True
        mask = mask.to(logits.device)
        scores = class_scores(logits, groups)
        certainty, hit = confidence(logits, mask, groups)
        columns = (scores.argmax(dim=1), label_rank(scores, mask), negative_log_likelihood(logits, mask, groups), certainty, hit)
        numbers = torch.stack([column.double() for column in columns], dim=1).tolist()  # one transfer from the device
        for sample, members, row in zip(data_samples, labels, numbers):
            path = _name(sample) if self.keep_predictions else None
            self.results.append((sample.get('sample_idx'), path, members, *row, *self._extra(sample)))

    def _extra(self, sample: dict) -> tuple:
        """More to keep of an image, for child classes."""
        return ()

    def _logits(self, data_samples: Sequence[dict]) -> Tensor:
        """(B, C) float32, finite."""
        first = data_samples[0]
        if 'gt_label' not in first:
            raise ValueError(f'{self.prefix}: the items of the set have no gt_label')
        if 'pred_logits' in first:
            logits = torch.stack([sample['pred_logits'] for sample in data_samples]).float()
        elif 'pred_score' in first:
            scores = torch.stack([sample['pred_score'] for sample in data_samples]).float()
            taking_part = scores if self.groups is None else class_scores(scores, self.groups)
            for sample, highest in zip(data_samples, taking_part.amax(dim=1).tolist()):
                if highest == 0:
                    raise ValueError(
                        f'{self.prefix}: of {_name(sample)} every class of the set has score 0: the softmax over all classes has '
                        'underflowed, and the head gives no pred_logits to decide by. Use CLIPDistillHead, or set pred_logits in '
                        "the head's predict")
            logits = scores.clamp(min=2.**-149).log()
        else:
            raise ValueError(f'{self.prefix}: the head gives neither pred_logits nor pred_score')
        if self.groups is None and (classes := (self.dataset_meta or {}).get('classes')) and len(classes) != logits.shape[1]:
            raise ValueError(f'{self.prefix}: the set has {len(classes)} classes, but the head has {logits.shape[1]}: a set of other '
                             "classes than the head's needs metainfo=dict(label_groups=…)")
        finite = logits.isfinite().all(dim=1)
        if not finite.all():
            broken = data_samples[int((~finite).nonzero()[0])]
            raise FloatingPointError(f'{self.prefix}: the logits of {_name(broken)} are not finite; there is nothing to decide by')
        return logits

    def evaluate(self, size: int) -> dict[str, float]:
        """Metrics of the whole set of ``size`` images, the same on every process."""
        self.size = size
        return super().evaluate(size)

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Metrics of all images, without the prefix."""
        self._check_complete(results)
        index, paths, labels, predicted, rank, nll, certainty, hit, *_ = zip(*results)
        names = unique_names((self.dataset_meta or {}).get('classes'), self.num_classes)
        correct = np.asarray(rank) == 0
        per_class = per_class_accuracy(correct, labels)
        bins = reliability_bins(certainty, hit)
        predictions = None
        if self.keep_predictions:
            predictions = [
                dict(img_path=path, gt='|'.join(names[label] for label in members), pred=names[int(pred)], correct=bool(right),
                     confidence=sure) for path, members, pred, right, sure in zip(paths, labels, predicted, correct, certainty)
            ]
        self.details = dict(
            per_class={names[label]: accuracy for label, (accuracy, _) in per_class.items()},
            per_class_count={names[label]: count for label, (_, count) in per_class.items()},
            reliability=bins,
            predictions=predictions,
            notes=[])
        metrics = dict(top1=100 * correct.mean())
        if len(names) > 5:
            metrics['top5'] = 100 * (np.asarray(rank) < 5).mean()
        metrics['mean_per_class'] = sum(accuracy for accuracy, _ in per_class.values()) / len(per_class)
        metrics['nll'] = np.mean(nll)
        metrics['ece'] = expected_calibration_error(bins)
        return {name: float(value) for name, value in metrics.items()}

    def _check_complete(self, results: list) -> None:
        if len(results) != self.size:
            raise ValueError(f'{self.prefix}: {len(results)} results for {self.size} images: every image of the set must be evaluated '
                             '(no drop_last, no sampler that leaves some out)')
        seen = Counter(result[0] for result in results if result[0] is not None)
        if len(seen) != sum(seen.values()):
            twice = next(index for index, count in seen.items() if count > 1)
            raise ValueError(f'{self.prefix}: item {twice} was counted {seen[twice]} times: the order of the sampler is not the one in '
                             "which results are collected; use sampler=dict(type='DefaultSampler', shuffle=False)")


@METRICS.register_module()
class CorruptionError(ShiftAccuracy):
    """Corruption errors of ImageNet-C, besides what :class:`ShiftAccuracy` gives over all its images.

    Data samples carry ``corruption`` (str) and ``severity`` (int, 1 to 5): ``PackInputs(meta_keys=(…, 'corruption', 'severity'))``.

    ==========================  =====================================================================================
    ``mce``                     Mean corruption error in percent (:func:`mmcfmask.evaluation.mean_corruption_error`). Only if all
                                fifteen corruptions are there with five severities: the mean over fewer is another number.
    ``ce_<corruption>``         Error over AlexNet's, in percent; where all five severities are there.
    ``error_<corruption>``      Top-1 error in percent, mean over the severities there are.
    ==========================  =====================================================================================
    """

    def _extra(self, sample: dict) -> tuple:
        if 'corruption' not in sample or 'severity' not in sample:
            raise ValueError(f'{self.prefix}: {_name(sample)} has no corruption or severity: the pipeline must end in '
                             "dict(type='PackInputs', meta_keys=('sample_idx', 'img_path', 'corruption', 'severity'))")
        return str(sample['corruption']), int(sample['severity'])

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Metrics of all images, without the prefix."""
        metrics = super().compute_metrics(results)
        wrong: dict[str, dict[int, list[bool]]] = {}
        for _, _, _, _, rank, *_, corruption, severity in results:
            wrong.setdefault(corruption, {}).setdefault(severity, []).append(rank > 0)
        errors = {
            corruption: {severity: 100 * sum(values) / len(values) for severity, values in sorted(parts.items())}
            for corruption, parts in wrong.items()
        }
        mce = mean_corruption_error(errors)
        if mce is None:
            here = sum(set(errors.get(corruption, ())) == set(SEVERITIES) for corruption in ALEXNET_ERROR)
            self.details['notes'].append(f'no mCE: {here} of {len(ALEXNET_ERROR)} corruptions are there with all five severities')
        else:
            metrics['mce'] = mce
        for corruption, parts in errors.items():
            metrics[f'error_{corruption}'] = mean_error(parts)
            if (ce := corruption_error(corruption, parts)) is not None:
                metrics[f'ce_{corruption}'] = ce
        return metrics


def unique_names(classes: Sequence[str] | None, num_classes: int) -> list[str]:
    """Class names to use as keys: those that occur twice (ImageNet's "missile", "sunglasses") with the class index behind them."""
    if classes is None:
        return [str(index) for index in range(num_classes)]
    count = Counter(classes)
    return [f'{name} ({index})' if count[name] > 1 else str(name) for index, name in enumerate(classes)]


def _name(sample: dict) -> str:
    return str(sample.get('img_path') or f'item {sample.get("sample_idx")}')
