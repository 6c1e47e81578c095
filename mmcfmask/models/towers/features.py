"""Any backbone as the tower of a classifier: one feature of an image, and its width."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from mmpretrain.models.backbones import TIMMBackbone
from mmpretrain.registry import MODELS
from open_clip.utils import to_2tuple
from torch import Tensor, nn

from ...errors import ConfigError
from .backbone import OpenCLIPBackbone
from .modes import take_class_token
from .timm_tower import PooledTIMMBackbone

USUAL_SIZE = (224, 224)


def build_tower(backbone: dict | nn.Module) -> nn.Module:
    """The image tower of a config. A ``TIMMBackbone`` keeps the pooling of its model, see
    :class:`.timm_tower.PooledTIMMBackbone`."""
    if not isinstance(backbone, Mapping):
        return backbone
    kind = backbone.get('type')
    if (MODELS.get(kind) if isinstance(kind, str) else kind) is TIMMBackbone:
        backbone = {**backbone, 'type': PooledTIMMBackbone}
    return MODELS.build(backbone)


def known_image_size(tower: nn.Module) -> tuple[int, int] | None:
    """Height and width of the images of a tower that knows them; None for others, such as convolutional ones."""
    size = getattr(tower, 'image_size', getattr(tower, 'img_size', None))
    return None if size is None else to_2tuple(size)


def find_features(tower: nn.Module, neck: nn.Module | None = None) -> tuple[nn.Module | None, int]:
    """How a classifier gets one feature of an image, by one forward pass of a black image.

    Args:
        tower (nn.Module): A backbone of mmpretrain or of this package.
        neck (nn.Module, optional): The neck of the config.

    Returns:
        tuple: The neck: the given one; without it, a ``GlobalAveragePooling`` where the tower returns a map
        (B, C, h, w), and None where it returns features (B, D). And the width D of the features.

    Raises:
        ConfigError: What comes out is neither a map nor features, or the tower cannot see the image.
    """
    if neck is None and isinstance(tower, OpenCLIPBackbone):
        return None, tower.embed_dims
    height, width = known_image_size(tower) or USUAL_SIZE
    image = next(tower.parameters()).new_zeros(1, 3, height, width)
    feats = _call(tower, image, 'backbone', f'an image of {height}x{width} pixels')
    shapes = {tuple(part.shape): None for part in feats[-1]} if isinstance(feats[-1], (tuple, list)) else {}
    if len(shapes) > 1:  # two of equal shape are the tokens of a distilled DeiT
        raise ConfigError(
            f'model.backbone: {type(tower).__name__} returns several features of one image, '
            f'{" and ".join(map(str, shapes))}, but the head needs one: choose another backbone'
        )
    feats = take_class_token(feats)
    if neck is None and feats[-1].ndim == 4:
        neck = MODELS.build(dict(type='GlobalAveragePooling'))
    if neck is not None:
        feats = _call(neck, feats, 'neck', f'{tuple(feats[-1].shape)}, which the backbone returns for one image')
    if feats[-1].ndim != 2:
        raise ConfigError(
            f'model.{"backbone" if neck is None else "neck"}: {type(neck or tower).__name__} returns '
            f'{tuple(feats[-1].shape)} for one image, but the head needs one feature (1, D): choose an out_type such '
            "as 'cls_token' or 'avg_featmap', or a neck that pools"
        )
    return neck, feats[-1].shape[1]


def _call(module: nn.Module, inputs: Tensor | tuple, where: str, what: str) -> tuple:
    """The output of a module in eval mode, or a ConfigError that says what it cannot take."""
    module.eval()
    try:
        with torch.no_grad():
            return module(inputs)
    except (RuntimeError, AssertionError, ValueError, TypeError) as error:
        raise ConfigError(f'model.{where}: {type(module).__name__} cannot take {what}: {error}') from error
