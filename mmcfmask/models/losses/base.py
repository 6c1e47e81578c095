"""A term of the loss, and what a training step gives it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor, nn

from ...errors import ConfigError


@dataclass
class Step:
    """What a training step has when it asks for the auxiliary losses.

    Attributes:
        classifier (CounterfactualClassifier): The model, with its ``teacher``.
        images (Tensor): (B, 3, H, W), normalised.
        labels (Tensor): (B,) int64.
        features (Tensor): (B, D) of the images, before L2 normalisation.
        logits (Tensor): (B, C) of the images.
        teacher_features (Tensor): (B, D) of the frozen start on the same images; computed when first asked for.
    """

    classifier: nn.Module
    images: Tensor
    labels: Tensor
    features: Tensor
    logits: Tensor

    @cached_property
    def teacher_features(self) -> Tensor:
        return self.classifier.teacher(self.images)


class LossTerm(nn.Module):
    """One method's loss. Trainable weights of its own are parameters like any other: in the optimizer, in checkpoints,
    in moving averages. What is frozen belongs to the classifier's teacher, which is in none of them, or into buffers
    with ``persistent=False``.

    Args:
        weight (float): Factor of the loss.
    """

    needs_teacher = True

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        if weight < 0:
            raise ConfigError(f'{type(self).__name__}: weight={weight} must not be negative')
        self.weight = weight

    def start(self, classifier: nn.Module) -> None:
        """Take what is needed from the classifier, which holds its pre-trained weights now; called once.

        Raises:
            ValueError: The classifier lacks something.
        """
        if self.needs_teacher and classifier.teacher is None:
            raise ConfigError(
                f"{type(self).__name__} compares with the frozen start: set model.teacher=dict(type='OpenCLIPTeacher')"
            )
        if self.needs_teacher and not classifier.teacher.is_start:
            raise ConfigError(
                f'{type(self).__name__} compares with the frozen start, but the teacher is another model: '
                'leave out its model_name'
            )

    def forward(self, step: Step) -> dict[str, Tensor]:
        """Losses by name (``loss_…``), to be added to the others."""
        raise NotImplementedError

    def finish(self, classifier: nn.Module) -> None:
        """Bring the classifier up to date before it is evaluated or saved, where the loss trains something in its
        place."""
