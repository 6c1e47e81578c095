"""StarFT: what texts with spurious contexts say stays as it was."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from ...errors import ConfigError, blame
from ...ranges import NonNegative
from ..class_embeddings.text import resolve_templates
from .base import Step
from .distillation import knowledge_distillation
from .flyp import FLYP, draw_prompts, tokenize_prompts
from .text import cosines

BACKGROUNDS = (
    'a photo of a {} in a forest.',
    'a photo of a {} in the grass.',
    'a photo of a {} in the snow.',
    'a photo of a {} on a beach.',
    'a photo of a {} in the desert.',
    'a photo of a {} in the mountains.',
    'a photo of a {} by a lake.',
    'a photo of a {} under water.',
    'a photo of a {} under a blue sky.',
    'a photo of a {} at sunset.',
    'a photo of a {} at night.',
    'a photo of a {} in the rain.',
    'a photo of a {} in the fog.',
    'a photo of a {} on a street.',
    'a photo of a {} in a city.',
    'a photo of a {} in a garden.',
    'a photo of a {} on a farm.',
    'a photo of a {} in a kitchen.',
    'a photo of a {} in a living room.',
    'a photo of a {} on a wooden table.',
    'a photo of a {} in a shop.',
    'a photo of a {} on a stage.',
    'a photo of a {} in front of a brick wall.',
    'a photo of a {} on a white background.',
)
"""Spurious contexts of photos. Ours: the authors let a language model list 58."""

HIDDEN = -1e8  # as −∞, but a row of nothing else has no NaN: it is uniform for both


def spurious_divergence(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """KL(softmax(teacher) ‖ softmax(student)), mean over the images, over the texts whose label is another one's (Kim
    et al., "StarFT: Robust Fine-tuning of Zero-shot Models via Spuriosity Alignment", IJCAI 2025), in float32.

    A text of the image's own label tells more than its context. Images without a text of another label give 0.

    Args:
        student, teacher (Tensor): (B, B) scaled similarities of images (rows) and texts with a spurious context.
        labels (Tensor): (B,) int64, of both.
    """
    own = labels[:, None] == labels
    return knowledge_distillation(
        student.float().masked_fill(own, HIDDEN), teacher.float().masked_fill(own, HIDDEN), temperature=1.0
    )


@MODELS.register_module()
class StarFT(FLYP):
    """StarFT on FLYP: ``loss_flyp``, and ``loss_starft`` = λ (1 − t) · :func:`spurious_divergence`.

    Every image has a text of its label in a random spurious context. The similarities of the images of the batch to
    these texts are held to those of the pretrained model, whose texts and scale are frozen. t is the share of the
    training that is done (``progress``): λ falls to 0, here with every step, in the authors' code with every epoch.

    Args:
        spurious_weight (float): λ at the start.
        contexts (list[str], optional): Templates with a spurious context and a ``{}`` for the class name. Defaults to
            :data:`BACKGROUNDS`.
        **kwargs: Arguments of :class:`FLYP`.
    """

    needs_teacher = True

    def __init__(
        self, spurious_weight: NonNegative = 0.5, contexts: Sequence[str] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if spurious_weight < 0:
            raise ConfigError(f'StarFT: spurious_weight={spurious_weight} must not be negative')
        self.spurious_weight = spurious_weight
        with blame('contexts of StarFT'):
            self.contexts = resolve_templates(BACKGROUNDS if contexts is None else contexts)

    def setup_text(self, classifier: nn.Module, model_name: str, pretrained: str | None) -> None:
        super().setup_text(classifier, model_name, pretrained)
        classifier.teacher.load_text(model_name, pretrained)
        self.spurious_tokens: Tensor | None = None

    def forward(self, step: Step) -> dict[str, Tensor]:
        losses = super().forward(step)
        if self.spurious_tokens is None:
            tokens = tokenize_prompts(self.tokenizer, self.classnames, self.contexts)
            self.spurious_tokens = tokens.to(step.labels.device)
        tokens = draw_prompts(self.spurious_tokens, step.labels)
        texts = F.normalize(self.text.encode_text(tokens).float(), dim=-1)
        student = self.scale * cosines(step.features, texts)
        teacher = self.scale * cosines(step.teacher_features, step.teacher.encode_text(tokens))
        weight = self.spurious_weight * (1 - self.progress)
        return {**losses, 'loss_starft': weight * spurious_divergence(student, teacher, step.labels)}
