"""CaRot: a projection held orthogonal, and self-distillation from a moving average."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from ...errors import ConfigError
from ...ranges import NonNegative, OpenShare, Share
from ..teacher import OpenCLIPTeacher
from .base import LossTerm, Step
from .distillation import soft_cross_entropy
from .flyp import FLYP
from .text import cosines


def orthogonality(projection: Tensor) -> Tensor:
    """‖PᵀP − I‖_F (Oh et al., "Towards Calibrated Robust Fine-Tuning of Vision-Language Models", NeurIPS 2024), in
    float32.

    Args:
        projection (Tensor): P, (width of the tower, D).
    """
    with torch.autocast(projection.device.type, enabled=False):
        weight = projection.float()
        return torch.linalg.matrix_norm(weight.T @ weight - torch.eye(weight.shape[1], device=weight.device))


def average_momentum(progress: float, start: float, end: float, warm_up: float) -> float:
    """m at a share ``progress`` of the training: from ``start`` to ``end`` on a straight line during the share
    ``warm_up``, then ``end``."""
    return end if progress >= warm_up else start + (end - start) * progress / warm_up


@torch.no_grad()
def move_average(average: nn.Module, current: nn.Module, momentum: float) -> None:
    """θ̄ ← m θ̄ + (1 − m) θ for all parameters, in place."""
    for old, new in zip(average.parameters(), current.parameters()):
        old.lerp_(new.to(old.dtype), 1 - momentum)


def find_projection(classifier: nn.Module) -> Tensor:
    """P of the image tower, (width, D): of a CLIP ViT, of an attention pool, of timm's towers in open_clip, or of a
    neck.

    Raises:
        ConfigError: The tower ends without a linear projection.
    """
    visual = getattr(classifier.backbone, 'visual', None)
    for owner, path in (
        (classifier.neck, 'proj'),
        (visual, 'proj'),
        (visual, 'attnpool.c_proj'),
        (visual, 'head.proj'),
        (visual, 'attn_pool.proj'),
    ):
        found = owner
        for name in path.split('.'):
            found = getattr(found, name, None)
        if isinstance(found, nn.Linear):
            return found.weight.T
        if isinstance(found, Tensor) and found.ndim == 2:
            return found
    raise ConfigError(
        f'CaRot holds the projection of the image tower orthogonal, but {type(visual or classifier.backbone).__name__} '
        'ends without a linear projection: set orthogonality=0'
    )


@dataclass
class AverageSchedule:
    """When and how far the moving average moves.

    Args:
        momentum (tuple[float, float]): m of :func:`move_average` at the start and after ``warm_up``.
        warm_up (float): Share of the training in which m rises.
        interval (float): Share of the training after which the average moves again.
    """

    momentum: tuple[float, float]
    warm_up: float
    interval: float

    def momentum_after(self, done: int, steps: int) -> float | None:
        """m after ``done`` of ``steps`` steps of the optimizer, the first move being after step 1; None between two
        moves."""
        every = max(1, round(self.interval * steps))
        start, end = self.momentum
        return None if (done - 1) % every else average_momentum((done - 1) / steps, start, end, self.warm_up)


def check_weights(term: str, orthogonality: float, distillation: float) -> None:
    """Raise a ConfigError for negative weights."""
    if orthogonality < 0 or distillation < 0:
        raise ConfigError(f'{term}: orthogonality={orthogonality} and distillation={distillation} must not be negative')


def orthogonality_loss(classifier: nn.Module, weight: float) -> dict[str, Tensor]:
    """``loss_orthogonality`` of the image tower's projection, unless ``weight`` is 0."""
    return dict(loss_orthogonality=weight * orthogonality(find_projection(classifier))) if weight else {}


@MODELS.register_module()
class CaRotImage(LossTerm):
    """CaRot without a text tower, beside the ordinary cross-entropy.

    - ``loss_orthogonality`` = 0.2 · :func:`orthogonality` of the image tower's projection.
    - ``loss_self_distillation`` = 1.5 · the cross-entropy of the class logits to those of a moving average of the model
      (:func:`mmcfmask.models.losses.soft_cross_entropy`).

    In the paper the logits are those between the images and the texts of a batch, and the cross-entropy is the
    contrastive loss of FLYP: :class:`CaRot`. The average moves 50 times in a training, as in the authors' 25,000 steps
    on ImageNet, first by a momentum of 0.05, and from a fifth of the training on by 0.9. Checkpoints hold it, to resume
    from; a test ignores it.

    Args:
        orthogonality, distillation (float): Weights of the two losses.
        momentum, warm_up, interval: As of :class:`AverageSchedule`.

    Raises:
        ConfigError: A negative weight, or a tower without a projection.
    """

    needs_teacher = False

    def __init__(
        self,
        orthogonality: NonNegative = 0.2,
        distillation: NonNegative = 1.5,
        momentum: tuple[Share, Share] = (0.05, 0.9),
        warm_up: Share = 0.2,
        interval: OpenShare = 0.02,
    ) -> None:
        check_weights('CaRotImage', orthogonality, distillation)
        super().__init__()
        self.orthogonality, self.distillation = orthogonality, distillation
        self.schedule = AverageSchedule(momentum, warm_up, interval)

    def setup(self, classifier: nn.Module) -> None:
        super().setup(classifier)
        if self.orthogonality:
            find_projection(classifier)  # an error now, and not in the first step
        self.average = OpenCLIPTeacher()
        self.average.exact = True  # its weights move
        self.average.setup(classifier.backbone, classifier.neck, classifier.head)

    def forward(self, step: Step) -> dict[str, Tensor]:
        losses = orthogonality_loss(step.classifier, self.orthogonality)
        if self.distillation:
            target = self.average.logits(self.average(step.images))
            losses['loss_self_distillation'] = self.distillation * soft_cross_entropy(
                step.logits, target.float().softmax(dim=1)
            )
        return losses

    def after_step(self, classifier: nn.Module, done: int, steps: int) -> None:
        momentum = self.schedule.momentum_after(done, steps)
        if momentum is None:
            return
        for name in ('backbone', 'neck', 'head'):
            if getattr(classifier, name) is not None:
                move_average(getattr(self.average, name), getattr(classifier, name), momentum)


@MODELS.register_module()
class CaRot(FLYP):
    """CaRot (Oh et al. 2024): ``loss_flyp``, and of :class:`CaRotImage` the two other losses, where the logits are the
    scaled similarities of the images and the prompts of the batch, both ways, and the average has a text tower too.

    The self-distillation compares the images of one process. The authors' command also adds 0.05 times the norm of the
    product of both projections (``cross_fnorm``), which is left out.

    Args:
        orthogonality, distillation, momentum, warm_up, interval: As of :class:`CaRotImage`.
        **kwargs: Arguments of :class:`FLYP`.
    """

    def __init__(
        self,
        orthogonality: NonNegative = 0.2,
        distillation: NonNegative = 1.5,
        momentum: tuple[Share, Share] = (0.05, 0.9),
        warm_up: Share = 0.2,
        interval: OpenShare = 0.02,
        **kwargs: Any,
    ) -> None:
        check_weights('CaRot', orthogonality, distillation)
        super().__init__(**kwargs)
        self.orthogonality, self.distillation = orthogonality, distillation
        self.schedule = AverageSchedule(momentum, warm_up, interval)

    def setup(self, classifier: nn.Module) -> None:
        super().setup(classifier)
        if self.orthogonality:
            find_projection(classifier)
        self.average = OpenCLIPTeacher()
        self.average.exact = True
        self.average.setup(classifier.backbone, classifier.neck)
        self.average_text = deepcopy(self.text).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> CaRot:
        super().train(mode)
        if hasattr(self, 'average_text'):  # not before setup
            self.average_text.eval()
        return self

    def forward(self, step: Step) -> dict[str, Tensor]:
        tokens = self.draw(step.labels)
        texts = self.text.encode_text(tokens)
        losses = self.compare(step, texts)
        losses.update(orthogonality_loss(step.classifier, self.orthogonality))
        if self.distillation:
            student = self.text.logit_scale.exp() * cosines(step.features, F.normalize(texts.float(), dim=-1))
            with torch.no_grad():
                texts = self.average_text.encode_text(tokens, normalize=True)
                teacher = self.average_text.logit_scale.exp() * cosines(self.average(step.images), texts)
            by_image = soft_cross_entropy(student, teacher.float().softmax(dim=1))
            by_text = soft_cross_entropy(student.T, teacher.T.float().softmax(dim=1))
            losses['loss_self_distillation'] = self.distillation * (by_image + by_text)
        return losses

    def after_step(self, classifier: nn.Module, done: int, steps: int) -> None:
        momentum = self.schedule.momentum_after(done, steps)
        if momentum is None:
            return
        for average, current in (
            (self.average.backbone, classifier.backbone),
            (self.average.neck, classifier.neck),
            (self.average_text, self.text),
        ):
            if average is not None:
                move_average(average, current, momentum)
