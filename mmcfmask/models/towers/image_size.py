"""Images of another size than an open_clip tower was trained with."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from open_clip.utils import to_2tuple
from torch import Tensor, nn

from ...errors import ConfigError


def set_image_size(visual: nn.Module, image_size: tuple[int, int]) -> None:
    """Let an image tower take images of another size, in place: its position embeddings are resized as open_clip does
    for a checkpoint of another size (bicubic, antialiased).

    Args:
        visual (nn.Module): The image tower of an open_clip model, its weights in place.
        image_size (tuple[int, int]): Height and width in pixels.

    Raises:
        ConfigError: The size is no multiple of the patch size, or the tower is of a kind that cannot be resized.
    """
    if to_2tuple(visual.image_size) == image_size:
        return
    if isinstance(visual, TimmModel):
        _check_multiple(image_size, getattr(getattr(visual.trunk, 'patch_embed', None), 'patch_size', 1))
        try:
            visual.set_input_size(image_size)
        except (AssertionError, ValueError, RuntimeError, TypeError) as error:  # of timm
            raise ConfigError(f'image_size={image_size} does not fit {type(visual.trunk).__name__}: {error}') from None
        visual.image_size = image_size
    elif isinstance(visual, ModifiedResNet):
        _check_multiple(image_size, 32)
        pool = visual.attnpool
        grid = (image_size[0] // 32, image_size[1] // 32)
        pool.positional_embedding = nn.Parameter(_resized(pool.positional_embedding, grid))
        visual.image_size = image_size
    elif isinstance(visual, VisionTransformer):
        _check_multiple(image_size, visual.patch_size)
        rows, cols = to_2tuple(visual.patch_size)
        visual.grid_size = (image_size[0] // rows, image_size[1] // cols)
        trained = visual.positional_embedding.requires_grad  # sines and cosines are not
        embedding = _resized(visual.positional_embedding, visual.grid_size)
        visual.positional_embedding = nn.Parameter(embedding, requires_grad=trained)
        visual.image_size = image_size
    else:
        raise ConfigError(f'image_size={image_size}: the size of a {type(visual).__name__} cannot be changed')


def _check_multiple(image_size: tuple[int, int], patch_size: int | tuple[int, int]) -> None:
    patch = to_2tuple(patch_size)
    if any(size % side for size, side in zip(image_size, patch)):
        near = tuple(max(1, round(size / side)) * side for size, side in zip(image_size, patch))
        raise ConfigError(
            f'model.backbone: image_size={image_size} is no multiple of the patch size {patch}: near it is {near}'
        )


def _resized(embedding: Tensor, grid: tuple[int, int]) -> Tensor:
    """Position embeddings (1 + n, C) of a class token and a square grid, for ``grid`` rows and columns."""
    token, patches = embedding.detach()[:1], embedding.detach()[1:]
    side = math.isqrt(len(patches))
    patches = F.interpolate(
        patches.T.reshape(1, -1, side, side), grid, mode='bicubic', antialias=True, align_corners=False
    )
    return torch.cat([token, patches.flatten(2)[0].T])
