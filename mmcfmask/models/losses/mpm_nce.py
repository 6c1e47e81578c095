"""MPM-NCE: a contrastive loss with several positives and a margin."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.dist import all_gather, get_rank, get_world_size
from mmpretrain.registry import MODELS
from open_clip.loss import gather_features
from torch import Tensor, nn

from ...errors import ConfigError
from ...ranges import Momentum, NonNegative
from ..class_embeddings.text import text_embeddings
from .base import Step
from .distillation import soft_cross_entropy
from .flyp import draw_prompts
from .text import PromptLoss, cosines


def soft_targets(labels: Tensor, smoothing: float) -> Tensor:
    """ỹ_ij = (1 − ε) y_ij / |P(i)| + ε (1 − y_ij) / (B − |P(i)|), (B, B): 1 − ε is shared by the texts with the label
    of image i, P(i), and ε by all others. Where there are no others, the rows have the sum 1 − ε.

    Args:
        labels (Tensor): (B,) of the images, and of the texts.
        smoothing (float): ε, in [0, 1).
    """
    own = (labels[:, None] == labels).float()
    others = 1 - own
    share = smoothing / others.sum(dim=1, keepdim=True).clamp(min=1)
    return (1 - smoothing) * own / own.sum(dim=1, keepdim=True) + share * others


def mpm_nce(
    image: Tensor, text: Tensor, labels: Tensor, scale: float, margin: float = 0.05, smoothing: float = 0.02
) -> Tensor:
    """Multi-positive margin noise-contrastive estimation (Kim et al., "Efficient and Versatile Robust Fine-Tuning of
    Zero-shot Models", ECCV 2024, section 3), in float32::

        − 1/B Σ_ij ỹ_ij log softmax_j((cos(f_i, g_j) + δ_ij)/τ) + ỹ_ji log softmax_j((cos(f_j, g_i) + δ_ji)/τ)

    δ is the ``margin`` for pairs of two labels, and 0 for those of one; ỹ are the :func:`soft_targets`. The paper has
    the sum over the batch, here it is the mean.

    Args:
        image (Tensor): f, (B, D).
        text (Tensor): g, (B, D), rows L2-normalised; row i is a text of the label of image i.
        labels (Tensor): (B,).
        scale (float): 1/τ.
        margin (float): δ, in cosines.
        smoothing (float): ε, in [0, 1).
    """
    logits = scale * (cosines(image, text) + margin * (labels[:, None] != labels))
    targets = soft_targets(labels, smoothing)
    return soft_cross_entropy(logits, targets) + soft_cross_entropy(logits.T, targets.T)


@MODELS.register_module()
class MPMNCE(PromptLoss):
    """``loss_mpm_nce`` = weight · :func:`mpm_nce` of the images and one prompt each of their labels, with a random
    template, over the images of all processes.

    The text tower stays as it was: the embeddings of all prompts are computed once and cached. So the head that they
    make stays too, with ``head.cls_weight=0``. The paper trains adapters of both towers. τ is that of the pretrained
    model, 0.01 for CLIP.

    Args:
        margin (float): δ. Published: 0.05.
        smoothing (float): ε. In the authors' command for ImageNet 0.02.
        **kwargs: Arguments of :class:`PromptLoss`.

    Raises:
        ConfigError: A negative margin, or a smoothing outside [0, 1).
    """

    needs_teacher = False
    reads_teacher_weights = False
    deterministic = False

    def __init__(self, margin: NonNegative = 0.05, smoothing: Momentum = 0.02, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if margin < 0 or not 0 <= smoothing < 1:
            raise ConfigError(f'MPMNCE: margin={margin} must not be negative, and smoothing={smoothing} in [0, 1)')
        self.margin, self.smoothing = margin, smoothing

    def setup_text(self, classifier: nn.Module, model_name: str, pretrained: str | None) -> None:
        prompts = text_embeddings(
            classifier, 'prompt', self.classnames, self.templates, model_name, pretrained, self.cache_dir
        )
        self.register_buffer('prompts', prompts.unflatten(0, (len(self.classnames), -1)), persistent=False)

    def forward(self, step: Step) -> dict[str, Tensor]:
        image, labels = step.features, step.labels
        text = draw_prompts(self.prompts, labels)
        if get_world_size() > 1:
            processes = dict(rank=get_rank(), world_size=get_world_size())
            image, text = gather_features(image.contiguous(), text, gather_with_grad=True, **processes)
            labels = torch.cat(all_gather(labels))
        return dict(loss_mpm_nce=self.weight * mpm_nce(image, text, labels, self.scale, self.margin, self.smoothing))
