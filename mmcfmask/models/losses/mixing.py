"""Mixup and CutMix beside counterfactual images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from mmpretrain.models import RandomBatchAugment
from mmpretrain.registry import MODELS
from torch import Tensor

from ...errors import ConfigError, blame
from ...ranges import NonNegative, Share
from .base import LossTerm, Step
from .distillation import soft_cross_entropy


@MODELS.register_module()
class MixedCrossEntropy(LossTerm):
    """``loss_mixed`` = weight · :func:`soft_cross_entropy` of images that mmpretrain mixes with others of the batch:
    mixup (Zhang et al., ICLR 2018), CutMix (Yun et al., ICCV 2019), …

    The images are mixed for this term alone, in a forward pass of their own: a relevance map, and what the teacher is
    compared on, needs an image of one class. The ordinary cross-entropy stays, with weight ``head.cls_weight``.

    Args:
        weight (float): Factor of the loss.
        augments (list[dict]): Batch augments of mmpretrain, ``[dict(type='Mixup', alpha=0.8), dict(type='CutMix',
            alpha=1.0)]``. One is drawn for every batch.
        probs (list[float], optional): Their probabilities; with what is left to 1 a batch stays as it is. Defaults to
            None: equal ones.

    Raises:
        ConfigError: A negative weight, an unknown augment, or probabilities that do not fit.
    """

    needs_teacher = False
    reads_teacher_weights = False

    def __init__(self, augments: list[dict], weight: NonNegative = 1.0, probs: list[Share] | None = None) -> None:
        super().__init__(weight)
        if not augments:
            raise ConfigError('MixedCrossEntropy: augments is empty: name one, such as dict(type="Mixup", alpha=0.8)')
        with blame('MixedCrossEntropy', (ValueError, TypeError, KeyError, AssertionError)):
            self.mix = RandomBatchAugment([*augments], None if probs is None else [*probs])  # it changes its lists

    def forward(self, step: Step) -> dict[str, Tensor]:
        classifier = step.classifier
        with _numpy_follows_torch():
            labels = F.one_hot(step.labels, classifier.head.num_classes)
            images, shares = self.mix(step.images.clone(), labels)  # CutMix writes into the images
        logits = classifier.head(classifier.extract_feat(images))
        return dict(loss_mixed=self.weight * soft_cross_entropy(logits, shares, classifier.head.cls_temperature))


@contextmanager
def _numpy_follows_torch() -> Iterator[None]:
    """Inside the context, numpy's random numbers depend on torch's, which are the same when a run is resumed."""
    state = np.random.get_state()
    np.random.seed(int(torch.randint(2**31, ())))
    try:
        yield
    finally:
        np.random.set_state(state)
