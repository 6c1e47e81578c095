"""Lipsum-FT: random text guidance."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from ...errors import ConfigError
from ...ranges import Count, NonNegative
from .base import Step
from .text import TextLoss, cosines


def energy_gap(student: Tensor, teacher: Tensor, texts: Tensor, scale: float) -> Tensor:
    """1/(2M) ‖v(x; θ) − v(x; θ₀)‖², mean over the batch, where v are the M scaled similarities to random texts (Nam et
    al., "Lipsum-FT: Robust Fine-Tuning of Zero-Shot Models Using Random Text Guidance", ICLR 2024, section 5.1: the
    regulariser R̂).

    Args:
        student, teacher (Tensor): (B, D) features of the same images.
        texts (Tensor): (M, D) text embeddings, rows L2-normalised.
        scale (float): CLIP's factor of the cosine similarities.
    """
    gap = scale * (cosines(student, texts) - cosines(teacher, texts))
    return 0.5 * gap.square().mean()  # the mean over texts is the 1/M


def random_tokens(
    num: int, length: int, context_length: int, start: int, end: int, device: torch.device | str = 'cpu'
) -> Tensor:
    """Texts of random tokens (``num``, ``context_length``), int64: start, ``length`` tokens drawn uniformly from 0 …
    ``start`` − 1, end, and zeros. In CLIP's vocabulary the two special tokens are the last ones."""
    words = torch.randint(start, (num, length), device=device)
    tokens = F.pad(words, (1, context_length - length - 1))
    tokens[:, 0], tokens[:, length + 1] = start, end
    return tokens


@MODELS.register_module()
class LipsumFT(TextLoss):
    """``loss_lipsum`` = weight · :func:`energy_gap` on texts of random tokens, drawn anew in every step.

    Args:
        weight (float): λ of the paper.
        num_texts (int): M.
        length (int): L, number of random tokens of a text.
        model_name, pretrained (str, optional): The text tower, as in :class:`OpenCLIPBackbone`. Defaults to the
            backbone's.
    """

    def __init__(
        self,
        weight: NonNegative = 1.0,
        num_texts: Count = 80,
        length: Count = 8,
        model_name: str | None = None,
        pretrained: str | None = None,
    ) -> None:
        super().__init__(weight, model_name, pretrained)
        if num_texts < 1 or length < 1:
            raise ConfigError(f'LipsumFT: num_texts={num_texts} and length={length} must be positive')
        self.num_texts = num_texts
        self.length = length

    def setup_text(self, classifier: nn.Module, model_name: str, pretrained: str | None) -> None:
        classifier.teacher.load_text(model_name, pretrained)
        tokenizer = classifier.teacher.tokenizer
        self.special: tuple[Any, Any] = (
            getattr(tokenizer, 'sot_token_id', None),
            getattr(tokenizer, 'eot_token_id', None),
        )
        if None in self.special:
            raise ConfigError(
                f"LipsumFT draws tokens of CLIP's own vocabulary, but {model_name!r} has a {type(tokenizer).__name__}"
            )
        self.context_length = tokenizer(['']).shape[1]
        if self.length + 2 > self.context_length:
            raise ConfigError(
                f'LipsumFT: length={self.length}, but the texts of {model_name!r} have {self.context_length} tokens '
                'with the first and the last'
            )

    def forward(self, step: Step) -> dict[str, Tensor]:
        tokens = random_tokens(
            self.num_texts, self.length, self.context_length, *self.special, device=step.features.device
        )
        texts = step.teacher.encode_text(tokens)
        return dict(loss_lipsum=self.weight * energy_gap(step.features, step.teacher_features, texts, self.scale))
