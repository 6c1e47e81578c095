"""The frozen pretrained model that teaches the student."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from typing import Any, Literal

import torch
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from ..errors import ConfigError, blame
from ..precision import autocast_dtype
from .towers.adapters import copy_without_adapters
from .towers.loading import load_text_tower
from .towers.modes import take_class_token

PRECISIONS = {None: None, 'bf16': torch.bfloat16}


@MODELS.register_module()
class OpenCLIPTeacher(nn.Module):
    """A frozen image tower with its projection.

    Without a ``model_name``, or with the student's own, it is a copy of the pretrained student, and no weights are
    loaded twice. Of a student with adapters it is the student without them, and shares its frozen weights. Under
    autocast, and with ``precision='bf16'``, the first call rounds its weights for good, as autocast would do in every
    step: the features are the same, with less memory and time. :attr:`exact` prevents this.

    It is always in eval mode and needs no gradient. Its owner keeps it out of ``named_modules()``, so it is absent from
    the optimizer, checkpoints, EMA and DDP. A deep copy of the owner shares it, because it never changes.

    Args:
        model_name (str, optional): An open_clip model, if the teacher is not the pretrained student.
        pretrained (str, optional): Its weights, as in :class:`OpenCLIPBackbone`.
        precision (str, optional): 'bf16' runs the teacher in bfloat16 autocast even if the student trains in float32.
            On CPUs and GPUs with bfloat16 units this takes a fraction of the time, and rounds the features
            (docs/performance.md has numbers). Defaults to None: as the student.

    Raises:
        ConfigError: An unknown ``precision``, or one of ``model_name`` and ``pretrained`` without the other.

    Attributes:
        exact (bool): Never round the weights, because something other than :meth:`forward` reads them. Defaults to
            False.
        is_pretrained_student (bool): After :meth:`setup`, whether it is a copy of the pretrained student.
    """

    exact = False
    head: Any  # None, or a head
    text: Any  # None, or a text tower
    tokenizer: Any
    _rounded: torch.dtype | None = None

    def __init__(
        self, model_name: str | None = None, pretrained: str | None = None, precision: Literal['bf16'] | None = None
    ) -> None:
        super().__init__()
        if precision not in PRECISIONS:
            raise ConfigError(
                f"OpenCLIPTeacher has no precision={precision!r}: choose 'bf16', or None to follow the student"
            )
        if pretrained is not None and model_name is None:
            raise ConfigError(f'OpenCLIPTeacher got pretrained={pretrained!r} but no model_name')
        if model_name is not None and pretrained is None:
            raise ConfigError(
                f'OpenCLIPTeacher(model_name={model_name!r}) needs pretrained weights: a random teacher teaches nothing'
            )
        self.model_name = model_name
        self.pretrained = pretrained
        self.precision = precision

    def setup(self, backbone: nn.Module, neck: nn.Module | None = None, head: nn.Module | None = None) -> None:
        """Take the pretrained weights: copied from the student, or loaded if another model was named.

        Args:
            backbone (nn.Module): The student's tower, holding its pretrained weights.
            neck (nn.Module, optional): The student's projection, where the tower has none of its own.
            head (nn.Module, optional): The student's head before training. It gives :meth:`logits` for knowledge
                distillation, and L2-SP holds the student's head to it.
        """
        same = (self.model_name, self.pretrained) == (
            getattr(backbone, 'model_name', None),
            getattr(backbone, 'pretrained', None),
        )
        if self.model_name is None or same:
            self.backbone, self.neck = copy_without_adapters(backbone), deepcopy(neck)
        else:
            options = dict(model_name=self.model_name, pretrained=self.pretrained)
            size = getattr(backbone, 'image_size', None)  # the same images go into both
            with blame('model.teacher'):
                self.backbone = MODELS.build(dict(type='OpenCLIPBackbone', image_size=size, **options))
            self.neck = None
        self.is_pretrained_student = same or self.model_name is None
        self.head = deepcopy(head)
        self.text = self.tokenizer = None
        self.requires_grad_(False)
        self.eval()

    def load_text(self, model_name: str, pretrained: str | None) -> None:
        """Load a text tower for :meth:`encode_text`, unless there is one.

        Args:
            model_name, pretrained: As in :func:`mmcfmask.models.towers.loading.load_text_model`.
        """
        if self.text is None:
            self.text, self.tokenizer = load_text_tower(model_name, pretrained)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """L2-normalised embeddings (B, D) of token ids (B, context length)."""
        with torch.no_grad():
            return self.text.encode_text(tokens, normalize=True)

    def train(self, mode: bool = True) -> OpenCLIPTeacher:
        """Stay in eval mode."""
        return super().train(False)

    def __deepcopy__(self, memo: dict) -> OpenCLIPTeacher:
        return self

    def _apply(self, fn: Callable, *args: Any, **kwargs: Any) -> nn.Module:
        super()._apply(fn, *args, **kwargs)
        if self._rounded not in {parameter.dtype for parameter in self.backbone.parameters()}:  # .double() and the like
            self._rounded = None
        return self

    def _round(self, dtype: torch.dtype) -> None:
        """Round what autocast rounds: weights and biases of linear layers, attention and convolutions."""
        for module in self.backbone.modules():
            if isinstance(module, (nn.Linear, nn.MultiheadAttention, nn.modules.conv._ConvNd)):
                for parameter in module.parameters(recurse=False):
                    parameter.data = parameter.data.to(dtype)
        self._rounded = dtype

    def forward(self, images: Tensor) -> Tensor:
        """Features (B, D) of ``images`` (B, 3, H, W) before L2 normalisation, usable in a loss."""
        device = images.device.type
        low = self._rounded or PRECISIONS[self.precision] or autocast_dtype(device)
        if low is not None and self._rounded is None and not self.exact:
            self._round(low)
        with torch.inference_mode(), nullcontext() if low is None else torch.autocast(device, dtype=low):
            feats = self._features(images)
        return feats[-1].clone()  # outside inference mode: a normal tensor, which autograd may save

    def _features(self, images: Tensor) -> tuple[Tensor]:
        feats = self.backbone(images)
        return take_class_token(feats if self.neck is None else self.neck(feats))

    def classify(self, images: Tensor) -> Tensor:
        """Zero-shot logits (B, C) of images (B, 3, H, W), with a graph if gradients are enabled."""
        return self.head(self._features(images))

    def logits(self, feats: Tensor) -> Tensor:
        """Zero-shot logits (B, C) of features (B, D)."""
        with torch.no_grad():
            return self.head((feats,))
