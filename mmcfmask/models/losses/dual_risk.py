"""DRM: what the pretrained model says by descriptions of the classes is a second label."""

from __future__ import annotations

import torch
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from ...errors import ConfigError
from ...ranges import NonNegative
from .base import LossTerm, Step
from .distillation import soft_cross_entropy


@MODELS.register_module()
class DualRisk(LossTerm):
    """``loss_descriptions`` = weight · cross-entropy of the description logits l_d to what the pretrained model says by
    them, softmax(l_d⁰). It trains the second classifier of :class:`mmcfmask.models.DualHead`.

    The idea of DRM (Li et al., "Dual Risk Minimization", NeurIPS 2024): predictions of the pretrained model by
    descriptions estimate p(y | core features), and the cross-entropy to them stands for the worst-case risk, beside the
    ordinary cross-entropy of the names. The authors' code for training is not published, and how the paper makes
    probabilities of the similarities was not at hand: here they are the softmax. The paper also trains the text tower,
    as FLYP does; here the embeddings of the texts are weights of the two classifiers.

    Args:
        weight (float): λ.

    Raises:
        ConfigError: The head is no DualHead.
    """

    def __init__(self, weight: NonNegative = 1.0) -> None:
        super().__init__(weight)

    def setup(self, classifier: nn.Module) -> None:
        super().setup(classifier)
        if not hasattr(classifier.head, 'description_logits'):
            raise ConfigError(
                f"DualRisk trains the second classifier of model.head.type='DualHead', but the head is a "
                f'{type(classifier.head).__name__}'
            )
        classifier.head.fc_descriptions.requires_grad_(True)

    def forward(self, step: Step) -> dict[str, Tensor]:
        with torch.no_grad():
            target = step.teacher.head.description_logits(step.teacher_features)
        student = step.classifier.head.description_logits(step.features)
        return dict(loss_descriptions=self.weight * soft_cross_entropy(student, target.float().softmax(dim=1)))
