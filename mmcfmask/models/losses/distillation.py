"""Distillation from the frozen teacher, on counterfactual images (this method) or on clean ones (FD, KD)."""

from __future__ import annotations

import torch.nn.functional as F
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from ...errors import ConfigError
from .base import LossTerm, Step, check_tower, find_layout


def feature_distillation(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over batch and dimension of (f(x̃) − f₀(x̃))² (CVPR 2023, equation 3), in float32.

    Args:
        student, teacher (Tensor): (B, D) features before L2 normalisation.
    """
    return F.mse_loss(student.float(), teacher.float())


def knowledge_distillation(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T² · KL(softmax(teacher / T) ‖ softmax(student / T)), mean over the batch (Hinton et al. 2015), in float32.

    Args:
        student, teacher (Tensor): (B, C) logits.
        temperature (float): T > 0.
    """
    return temperature**2 * F.kl_div(
        F.log_softmax(student.float() / temperature, dim=1),
        F.log_softmax(teacher.float() / temperature, dim=1),
        reduction='batchmean',
        log_target=True,
    )


def soft_cross_entropy(logits: Tensor, shares: Tensor, temperature: float = 1.0) -> Tensor:
    """Mean over the batch of −Σ_c ỹ_c log softmax(l / τ)_c, in float32.

    Args:
        logits (Tensor): (B, C).
        shares (Tensor): ỹ, (B, C), ≥ 0, rows with the sum 1: of mixed labels, or another model's softmax.
        temperature (float): τ > 0.
    """
    return F.cross_entropy(logits.float() / temperature, shares.float())


@MODELS.register_module()
class Distillation(LossTerm):
    """``loss_distill`` = λ · distillation on the clean images x.

    The head compares (:class:`CLIPDistillHead`): ``head.distill='feature'`` is feature distillation (FD), ``'logits'``
    knowledge distillation (KD), ``head.distill_weight`` is λ.
    """

    any_teacher = True
    reads_teacher_weights = False

    def __init__(self) -> None:
        super().__init__()  # its weight is head.distill_weight

    def setup(self, classifier: nn.Module) -> None:
        super().setup(classifier)
        teacher, head = classifier.teacher, classifier.head
        width = head.in_channels if teacher.is_pretrained_student else teacher.backbone.embed_dims
        if width != head.in_channels:
            raise ConfigError(
                f'the teacher {teacher.model_name!r} gives features of width {width}, but the student gives width '
                f'{head.in_channels}: choose towers of the same embedding width'
            )
        if head.distill == 'logits' and not teacher.is_pretrained_student:
            raise ConfigError(
                f"distill='logits' compares class probabilities, but the teacher {teacher.model_name!r} has no class "
                "embeddings of its own: use distill='feature', or the pretrained student as teacher"
            )

    def forward(self, step: Step) -> dict[str, Tensor]:
        return step.classifier.head.distill_loss(step.features, step.teacher_features, step.teacher)


@MODELS.register_module()
class CounterfactualDistillation(Distillation):
    """``loss_distill`` = λ · distillation on the counterfactual images x̃ (CVPR 2023, equation 3).

    ``model.data_preprocessor`` (:class:`CAMRefillDataPreprocessor`) makes x̃ by its ``mask``, ``fill`` and ``value``;
    the head compares as in :class:`Distillation`.
    """

    def setup(self, classifier: nn.Module) -> None:
        super().setup(classifier)
        if classifier.data_preprocessor.fill == 'none':
            check_same_patches(classifier)
        check_tower(classifier, classifier.data_preprocessor)

    def needs_relevance(self, classifier: nn.Module) -> bool:
        return classifier.data_preprocessor.needs_relevance

    def forward(self, step: Step) -> dict[str, Tensor]:
        student, teacher = step.counterfactual_features, step.counterfactual_teacher_features
        return step.classifier.head.distill_loss(student, teacher, step.teacher)


def check_same_patches(classifier: nn.Module) -> None:
    """Raise a ConfigError unless the same patches can be hidden from student and teacher (``fill='none'``)."""
    student, teacher = find_layout(classifier.backbone), find_layout(classifier.teacher.backbone)
    if student is not None and teacher is not None and student.grid != teacher.grid:
        raise ConfigError(
            f'fill="none" hides patches from student and teacher, but the teacher '
            f'{classifier.teacher.model_name!r} has {teacher.grid} patches and the student {student.grid}: use '
            'fill="single" or "multi"'
        )
