"""Two classifiers on one tower, from the names and from descriptions of the classes (DRM)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from ..errors import ConfigError, blame
from ..evaluation.accuracy import mixture_scores
from ..ranges import Share
from .head import CLIPDistillHead


@MODELS.register_module()
class DualHead(CLIPDistillHead):
    """Two cosine classifiers that answer together::

        p = β softmax(l) + (1 − β) softmax(l_d)        l from class names, l_d from class descriptions

    Li et al., "Dual Risk Minimization" (NeurIPS 2024): descriptions of what makes a class, without its usual context,
    find the features that hold everywhere. ``class_weights`` are the embeddings of the names, ``descriptions`` those of
    the descriptions. On a set with some of the head's classes, both softmaxes are over the classes of the set.

    In training the logits are l, for the ordinary cross-entropy; in a test, log p. The second classifier stays as it is
    unless :class:`mmcfmask.models.losses.DualRisk` trains it.

    Args:
        descriptions (dict, optional): Class embeddings of descriptions, ``dict(type='text', …)`` or
            ``dict(type='file', …)`` as ``class_weights``. None: random weights, for a checkpoint to fill.
        beta (float): β, in [0, 1].
        **kwargs: Arguments of :class:`CLIPDistillHead`.

    Raises:
        ConfigError: Descriptions of another type, or without names; distillation of logits, of which there are two.
    """

    def __init__(self, descriptions: dict | None = None, beta: Share = 0.5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 <= beta <= 1:
            raise ConfigError(f'DualHead: beta={beta} must lie in [0, 1]: 1 is the names alone')
        if descriptions is not None and descriptions.get('type') not in ('text', 'file'):
            raise ConfigError(
                f"DualHead: descriptions.type={descriptions.get('type')!r} must be 'text' or 'file', embeddings of "
                'texts that describe the classes'
            )
        if (descriptions is None) != (self.class_weights is None):
            raise ConfigError('DualHead needs class_weights, of the names, and descriptions: set both')
        if self.distill == 'logits':
            raise ConfigError("DualHead has two sets of logits: use distill='feature'")
        self.descriptions = descriptions
        self.beta = beta
        self.fc_descriptions = nn.Linear(self.in_channels, self.num_classes).requires_grad_(False)

    def start_from(self, build: Callable[[dict], Tensor], logit_scale: float) -> None:
        super().start_from(build, logit_scale)
        if self.descriptions is None:
            return
        with blame('model.head.descriptions'):
            embeddings = build(self.descriptions)
            if embeddings.shape != self.fc.weight.shape:
                raise ConfigError(
                    f'{len(embeddings)} classes of width {embeddings.shape[1]}, but the head has {self.num_classes} '
                    f'classes of width {self.in_channels}'
                )
        with torch.no_grad():
            self.fc_descriptions.weight.copy_(logit_scale * embeddings)
            self.fc_descriptions.bias.zero_()

    def description_logits(self, features: Tensor) -> Tensor:
        """l_d, (B, C) float32, of features (B, D)."""
        with torch.autocast(features.device.type, enabled=False):
            return self.fc_descriptions(F.normalize(features.to(self.fc_descriptions.weight.dtype), dim=-1))

    def parts(self, feats: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """l and l_d (B, 2, C), and β and 1 − β (B, 2)."""
        logits = torch.stack([super().forward(feats), self.description_logits(self.pre_logits(feats))], dim=1)
        return logits, logits.new_tensor([self.beta, 1 - self.beta]).expand(len(logits), 2)

    def forward(self, feats: tuple[Tensor, ...]) -> Tensor:
        """l (B, C) in training, log p (B, C) in evaluation, float32."""
        return super().forward(feats) if self.training else mixture_scores(*self.parts(feats))

    def predict(self, feats: tuple[Tensor, ...], data_samples: list | None = None) -> list:
        """As ``ClsHead.predict``, with the parts in ``mixed_logits`` (2, C) and ``mixed_weights`` (2,)."""
        logits, weights = self.parts(feats)
        data_samples = self._get_predictions(mixture_scores(logits, weights), data_samples)
        for sample, part, weight in zip(data_samples, logits.detach(), weights):
            sample.mixed_logits, sample.mixed_weights = part, weight
        return data_samples
