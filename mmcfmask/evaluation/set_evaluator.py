"""Let any metric judge a set that has only some of the classes of the head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmengine.evaluator import Evaluator
from mmengine.structures import BaseDataElement

from .accuracy import Groups, class_scores
from .metrics import ShiftAccuracy


class SetEvaluator(Evaluator):
    """mmengine's Evaluator, whose metrics all judge by the classes of the set.

    A label of a set with ``metainfo['label_groups']`` is no output of the head: ImageNet-R has 200 classes, the head
    1000. :class:`ShiftAccuracy` and its children know; the metrics of mmpretrain would compare the two numbers, so they
    get the predictions of :func:`predict_within`.
    """

    def process(self, data_samples: Sequence[BaseDataElement], data_batch: Any | None = None) -> None:
        """Pass a batch to all metrics."""
        samples = [sample.to_dict() for sample in data_samples]
        groups, within = (self.dataset_meta or {}).get('label_groups'), samples
        others = [metric for metric in self.metrics if not isinstance(metric, ShiftAccuracy)]
        if others and groups is not None:
            within = [predict_within(sample, tuple(map(tuple, groups))) for sample in samples]
        for metric in self.metrics:
            metric.process(data_batch, within if metric in others else samples)


def predict_within(sample: dict, groups: Groups) -> dict:
    """A copy of a data sample with its prediction among the K classes of a set.

    Args:
        sample (dict): With ``pred_logits`` or ``pred_score`` (C,), float.
        groups (Groups): The outputs of the head that mean each class.

    Returns:
        dict: ``pred_score`` (K,) is the softmax over the classes, each with the highest logit of its outputs, and
            ``pred_label`` (1,) int64 the highest of them, which is the decision of :class:`ShiftAccuracy`.
    """
    logits = sample['pred_logits'] if 'pred_logits' in sample else sample['pred_score'].log()
    score = class_scores(logits[None].float(), groups).softmax(dim=1)
    return {**sample, 'pred_score': score[0], 'pred_label': score.argmax(dim=1)}
