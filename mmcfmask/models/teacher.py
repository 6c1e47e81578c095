"""The frozen pre-trained model that the student is held to."""
from __future__ import annotations

from copy import deepcopy

import torch
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from .clip_loading import load_text_tower


@MODELS.register_module()
class OpenCLIPTeacher(nn.Module):
    """A frozen image tower with its projection.

    Without a ``model_name`` (or with the student's own) it is a copy of the student's start and nothing is loaded twice.
    It is always in eval mode, needs no gradient, and its owner keeps it out of ``named_modules()``, so it is absent from the
    optimizer, checkpoints, EMA and DDP. A deep copy of the owner shares it: it never changes.

    Args:
        model_name (str, optional): An open_clip model, if the teacher is not the student's start.
        pretrained (str, optional): Its weights, as in :class:`OpenCLIPBackbone`.
    """

    def __init__(self, model_name: str | None = None, pretrained: str | None = None) -> None:
        super().__init__()
        if pretrained is not None and model_name is None:
            raise ValueError(f'OpenCLIPTeacher got pretrained={pretrained!r} but no model_name')
        if model_name is not None and pretrained is None:
            raise ValueError(f'OpenCLIPTeacher(model_name={model_name!r}) needs pretrained weights: a random teacher teaches nothing')
        self.model_name = model_name
        self.pretrained = pretrained

    def start_from(self, backbone: nn.Module, neck: nn.Module | None = None, head: nn.Module | None = None) -> None:
        """Take the pre-trained weights: copied from the student's start, or loaded if another model was named.

        Args:
            backbone (nn.Module): The student's tower, holding its pre-trained weights.
            neck (nn.Module, optional): The student's projection, where the tower has none of its own.
            head (nn.Module, optional): The student's head at its start; gives :meth:`logits` for knowledge distillation, and is what
                L2-SP holds the head to.
        """
        same = (self.model_name, self.pretrained) == (getattr(backbone, 'model_name', None), getattr(backbone, 'pretrained', None))
        if self.model_name is None or same:
            self.backbone, self.neck = deepcopy(backbone), deepcopy(neck)
        else:
            self.backbone = MODELS.build(dict(type='OpenCLIPBackbone', model_name=self.model_name, pretrained=self.pretrained))
            self.neck = None
        self.is_start = same or self.model_name is None
        self.head = deepcopy(head)
        self.text = self.tokenizer = None
        self.requires_grad_(False)
        self.eval()

    def load_text(self, model_name: str, pretrained: str | None) -> None:
        """Load a text tower for :meth:`encode_text`, unless there is one.

        Args:
            model_name, pretrained: As in :func:`mmcfmask.models.clip_loading.load_text_model`.
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

    def forward(self, images: Tensor) -> Tensor:
        """Features (B, D) of ``images`` (B, 3, H, W) before L2 normalisation, usable in a loss."""
        with torch.inference_mode():
            feats = self.backbone(images)
            if self.neck is not None:
                feats = self.neck(feats)
        return feats[-1].clone()  # outside inference mode: a normal tensor, which autograd may save

    def logits(self, feats: Tensor) -> Tensor:
        """Logits (B, classes) of the start head for features (B, D)."""
        with torch.no_grad():
            return self.head((feats, ))
