"""Loss terms that need a text tower."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import ConfigError
from ...ranges import NonNegative
from ..class_embeddings.text import resolve_classnames, resolve_templates, text_source
from ..towers.loading import NoTextTowerError
from .base import LossTerm


def cosines(features: Tensor, directions: Tensor) -> Tensor:
    """Cosine similarities (B, K), float32 under autocast too.

    Args:
        features (Tensor): (B, D).
        directions (Tensor): (K, D), rows L2-normalised.
    """
    with torch.autocast(features.device.type, enabled=False):
        return F.normalize(features.float(), dim=-1) @ directions.float().T


class TextLoss(LossTerm):
    """A loss term that needs the text tower of the image tower.

    Args:
        weight (float): Factor of the loss.
        model_name, pretrained (str, optional): The text tower, as in :class:`OpenCLIPBackbone`. Defaults to the
            backbone's.
    """

    def __init__(self, weight: NonNegative = 1.0, model_name: str | None = None, pretrained: str | None = None) -> None:
        super().__init__(weight)
        self.model_name = model_name
        self.pretrained = pretrained

    def setup(self, classifier: nn.Module) -> None:
        super().setup(classifier)
        self.scale = getattr(classifier.backbone, 'logit_scale', 100.0)
        try:
            self.setup_text(classifier, *text_source(classifier, self.model_name, self.pretrained))
        except NoTextTowerError as error:
            raise NoTextTowerError(
                f'{type(self).__name__} needs a text tower, but {error}: choose weights of the whole model, or a '
                'method without texts (docs/methods.md lists them)'
            ) from None

    def setup_text(self, classifier: nn.Module, model_name: str, pretrained: str | None) -> None:
        """Take what is needed from the text tower of this name and these weights.

        Raises:
            NoTextTowerError: The weights have no text tower.
        """
        raise NotImplementedError


class PromptLoss(TextLoss):
    """A loss term on prompts: class names in templates.

    Args:
        weight (float): Factor of the loss.
        classnames, templates, cache_dir: As in ``class_weights=dict(type='text', …)``. They default to the head's,
            if the head is initialised from text.
        model_name, pretrained (str, optional): The text tower, as in :class:`OpenCLIPBackbone`. Defaults to the
            backbone's.
    """

    def __init__(
        self,
        weight: float = 1.0,
        classnames: str | Sequence[str] | None = None,
        templates: str | Sequence[str] | None = None,
        model_name: str | None = None,
        pretrained: str | None = None,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__(weight, model_name, pretrained)
        self.classnames: Any = classnames  # after setup lists, as of the templates
        self.templates: Any = templates
        self.cache_dir = cache_dir

    def setup(self, classifier: nn.Module) -> None:
        texts = classifier.head.class_weights or {}
        texts = dict(texts) if texts.get('type') == 'text' else {}
        for name in ('classnames', 'templates', 'model_name', 'pretrained', 'cache_dir'):
            if getattr(self, name) is None:
                setattr(self, name, texts.get(name))
        if self.classnames is None:
            raise ConfigError(
                f'{type(self).__name__} needs prompts: give it classnames=[…] and templates=…, or initialise the head '
                "from them with class_weights=dict(type='text', …)"
            )
        self.classnames = resolve_classnames(self.classnames)
        self.templates = resolve_templates('openai' if self.templates is None else self.templates)
        if len(self.classnames) != classifier.head.num_classes:
            raise ConfigError(
                f'{type(self).__name__} has {len(self.classnames)} classnames, but the head has '
                f'num_classes={classifier.head.num_classes}'
            )
        super().setup(classifier)
