"""Accuracy and likelihood on a set of classes, from the logits of a head that may have more classes than the set.

``groups`` maps every class of the set to outputs of the head: one tuple of output indices per class. ``None``: the set
has the head's classes, in the same order. ImageNet-R and -A have 200 groups of one output, ObjectNet 113 groups of one
or several. Outputs in no group take no part in the decision or in the softmax.

``labels`` are class indices (B,) int64, or (B, K) bool if an image has several correct classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Optional

import numpy as np
import torch
from torch import Tensor

from ..errors import ConfigError

Groups = Optional[tuple[tuple[int, ...], ...]]


def check_groups(groups: Groups, num_logits: int) -> None:
    """Raise a ConfigError that names the class if a group is empty or names an output that the head lacks."""
    for label, group in enumerate(groups or ()):
        if not group:
            raise ConfigError(f'label_groups: class {label} has no output of the head')
        wrong = [index for index in group if not 0 <= index < num_logits]
        if wrong:
            raise ConfigError(
                f'label_groups: class {label} names the outputs {", ".join(map(str, wrong))}, '
                f'but the head has {num_logits} (0 to {num_logits - 1})'
            )


@lru_cache(maxsize=32)
def _membership(
    groups: tuple[tuple[int, ...], ...], num_logits: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Padded indices (K, G) int64; which output belongs to which class (K, C) float32; which outputs take part (C,)
    bool."""
    check_groups(groups, num_logits)
    longest = max(map(len, groups))
    with torch.inference_mode(False):  # cached, and later perhaps used where gradients are needed
        index = torch.tensor([[*group, *[group[0]] * (longest - len(group))] for group in groups], device=device)
        member = torch.zeros(len(groups), num_logits, device=device).scatter_(1, index, 1.0)
        return index, member, member.amax(dim=0) > 0


def head_labels(labels: Sequence[int], groups: Groups) -> list[int]:
    """Outputs of the head for classes of a set: the first output of each class.

    Args:
        labels (Sequence[int]): Classes within the set.
        groups (Groups): ``metainfo['label_groups']`` of the set; None: its classes are the head's.
    """
    return list(labels) if groups is None else [groups[label][0] for label in labels]


def label_mask(labels: Tensor, num_classes: int) -> Tensor:
    """``labels`` as (B, K) bool."""
    if labels.ndim == 2:
        return labels.bool()
    return torch.nn.functional.one_hot(labels, num_classes).bool()


def restrict_logits(logits: Tensor, groups: Groups) -> Tensor:
    """Logits (B, C) with −inf for every output that is in no group."""
    if groups is None:
        return logits
    return logits.masked_fill(~_membership(groups, logits.shape[1], logits.device)[2], -torch.inf)


def class_scores(logits: Tensor, groups: Groups) -> Tensor:
    """Score (B, K) of every class of the set: the highest logit of its group."""
    if groups is None:
        return logits
    return logits[:, _membership(groups, logits.shape[1], logits.device)[0]].amax(dim=2)


def mean_probability_scores(logits: Tensor, groups: Groups) -> Tensor:
    """log of the mean probability of the outputs of every class, with a softmax over all outputs of the head.

    So does the code of Geirhos et al. (https://github.com/bethgelab/model-vs-human) decide between 16 classes.

    Args:
        logits (Tensor): (B, C).
        groups (Groups): As above, not None.

    Returns:
        Tensor: (B, K) float64, finite.
    """
    member = _membership(groups, logits.shape[1], logits.device)[1].double()
    means = logits.double().softmax(dim=1) @ (member / member.sum(dim=1, keepdim=True)).T
    return means.clamp(min=torch.finfo(torch.float64).tiny).log()


def mixture_scores(logits: Tensor, weights: Tensor, groups: Groups = None) -> Tensor:
    """log Σₘ wₘ softmax(lₘ): log-probabilities of several models together. Every softmax is over the outputs that take
    part, so that the weights stay what they are.

    Args:
        logits (Tensor): (B, M, C), lₘ of M models.
        weights (Tensor): (B, M), not negative, with a positive sum per image.
        groups (Groups): As above.

    Returns:
        Tensor: (B, C) of the dtype of ``logits``. Outputs in no group have the log-probability of a softmax over all
        outputs, to stay finite.
    """
    scores = _mix(logits.log_softmax(dim=2), weights)
    if groups is None:
        return scores
    taking_part = _membership(groups, logits.shape[2], logits.device)[2]
    return torch.where(
        taking_part, _mix(logits.masked_fill(~taking_part, -torch.inf).log_softmax(dim=2), weights), scores
    )


def _mix(log_probs: Tensor, weights: Tensor) -> Tensor:
    return (log_probs + weights.log()[..., None]).logsumexp(dim=1)


def label_rank(scores: Tensor, labels: Tensor) -> Tensor:
    """How many classes rank before the label, (B,) int64: 0 means a correct top-1, below 5 a correct top-5.

    Of several labels the best one counts. Equal scores rank in the order of their classes, so that a model with
    constant scores is not correct on every image.
    """
    mask = label_mask(labels, scores.shape[1])
    best = scores.masked_fill(~mask, -torch.inf).argmax(dim=1, keepdim=True)
    score = scores.gather(1, best)
    earlier = torch.arange(scores.shape[1], device=scores.device) < best
    return ((scores > score) | ((scores == score) & earlier)).sum(dim=1)


def negative_log_likelihood(logits: Tensor, labels: Tensor, groups: Groups = None) -> Tensor:
    """−log of the summed softmax probability of the label's outputs, (B,) float64, among the outputs that take part."""
    log_probs = restrict_logits(logits.double(), groups).log_softmax(dim=1)
    return -log_probs.masked_fill(~_right_outputs(logits, labels, groups), -torch.inf).logsumexp(dim=1)


def confidence(logits: Tensor, labels: Tensor, groups: Groups = None) -> tuple[Tensor, Tensor]:
    """Highest softmax probability among the outputs that take part, (B,) float64, and whether that output belongs to
    the label, (B,) bool."""
    probability, output = restrict_logits(logits.double(), groups).softmax(dim=1).max(dim=1)
    return probability, _right_outputs(logits, labels, groups).gather(1, output[:, None])[:, 0]


def _right_outputs(logits: Tensor, labels: Tensor, groups: Groups) -> Tensor:
    """Outputs of the head that belong to a label of the image, (B, C) bool."""
    if groups is None:
        return label_mask(labels, logits.shape[1])
    member = _membership(groups, logits.shape[1], logits.device)[1]
    return label_mask(labels, len(groups)).to(member.dtype) @ member > 0


def per_class_accuracy(correct: np.ndarray, labels: np.ndarray) -> dict[int, tuple[float, int]]:
    """{class: (accuracy in percent, number of images)} of the classes that have images.

    Args:
        correct (np.ndarray): (N,) bool.
        labels (np.ndarray): (N, L) int, padded with −1 if an image has fewer than L labels. An image counts for each of
            its labels.
    """
    image, place = np.nonzero(labels >= 0)
    members = labels[image, place]
    total, right = np.bincount(members), np.bincount(members, weights=correct[image])
    return {
        int(label): (float(100 * right[label] / total[label]), int(total[label])) for label in np.flatnonzero(total)
    }
