"""Where an image is in a tower: the grid of its patches, and how features come out of them.

Nothing here knows a tower by its class. The towers of open_clip, timm and mmpretrain say by a few attributes how they
pool; the rest is seen in one forward pass of two black images.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..precision import no_autocast
from .listening import replace_attention, replace_softmax

CLASS_TOKEN, ATTENTION_POOL, MEAN, FEATURE_MAP = 'class token', 'attention pool', 'mean of tokens', 'feature map'

# How open_clip (pool_type), timm (global_pool) and mmpretrain (out_type) call it.
_POOLINGS = dict(tok=CLASS_TOKEN, token=CLASS_TOKEN, cls_token=CLASS_TOKEN, avg=MEAN, avg_featmap=MEAN, featmap=MEAN)


@dataclass(frozen=True)
class TowerLayout:
    """What relevance and masks need to know of a tower.

    Attributes:
        grid (tuple[int, int]): Rows and columns of what can be masked: of patches, or of the last feature map.
        pooling (str): How features come out of the tokens: 'class token', 'attention pool' or 'mean of tokens'; or
            'feature map' for a tower that is no plain transformer (convolutions, windows, tokens that merge).
        prefix (int): Tokens before those of the patches: class tokens, registers.
        first_pooled (int): The first token that a mean pools.
        module (str): Name of the module whose output is pooled; '' is the tower itself. Read where the pooling is a
            mean, and in towers with a feature map.
        written_out (bool): Attention is a softmax and a product, not ``scaled_dot_product_attention``.
        has_map (bool): The tower ends in a feature map, which ``module`` returns. So patches cannot be hidden from it:
            what attention does not see comes in by other ways.
        can_drop (bool): Tokens can be left out: only the position embedding says where they are.
    """

    grid: tuple[int, int]
    pooling: str
    prefix: int = 0
    first_pooled: int = 0
    module: str = ''
    written_out: bool = False
    has_map: bool = False
    can_drop: bool = False


_known: WeakKeyDictionary[nn.Module, dict[tuple[int, ...], TowerLayout]] = WeakKeyDictionary()


def tower_layout(tower: nn.Module, images: Tensor) -> TowerLayout:
    """The layout of ``tower`` for images of this size. It is found once, for most towers by a forward pass.

    Args:
        tower (nn.Module): The image tower.
        images (Tensor): (B, 3, H, W); only the shape, dtype and device matter.

    Raises:
        ConfigError: A tower of none of the known kinds; the message says what is in the way.
    """
    known = _known.setdefault(tower, {})
    size = tuple(images.shape[2:])
    if size not in known:
        known[size] = _open_clip_layout(tower, images) or _find_layout(tower, images)
    return known[size]


def patch_grid(tower: nn.Module, inputs: Tensor) -> tuple[int, int]:
    """Rows and columns of what can be masked in ``inputs`` (B, 3, H, W): the patches of a transformer, the positions of
    the last feature map of another tower.

    Raises:
        ConfigError: A tower of none of the known kinds, see :func:`tower_layout`.
    """
    return tower_layout(tower, inputs).grid


def inner_tower(tower: nn.Module) -> nn.Module:
    """``tower`` without the wrappers of this package (``visual``), of open_clip (``trunk``) and of mmpretrain
    (``timm_model``)."""
    for wrapper in ('visual', 'trunk', 'timm_model'):
        tower = getattr(tower, wrapper, tower)
    return tower


def last_block(tower: nn.Module) -> nn.Module | None:
    """The last block of a transformer (open_clip: ``transformer.resblocks``; mmpretrain: ``layers``; timm:
    ``blocks``), which takes tokens (B, L, C); None where ``tower`` has none."""
    tower = inner_tower(tower)
    tower = getattr(tower, 'transformer', tower)
    blocks = next((getattr(tower, name) for name in ('resblocks', 'layers', 'blocks') if hasattr(tower, name)), ())
    return blocks[-1] if isinstance(blocks, (nn.ModuleList, nn.Sequential)) and len(blocks) else None


def after_position(tower: nn.Module) -> nn.Module | None:
    """The module that tokens pass right after the position embedding (open_clip: ``visual.patch_dropout``; mmpretrain:
    ``drop_after_pos``); None where ``tower`` has none."""
    tower = getattr(tower, 'visual', tower)
    return getattr(tower, 'patch_dropout', getattr(tower, 'drop_after_pos', None))


def _open_clip_layout(tower: nn.Module, images: Tensor) -> TowerLayout | None:
    """The layout of open_clip's own vision transformer, which needs no forward pass; None for other towers."""
    visual = inner_tower(tower)
    if not all(hasattr(visual, name) for name in ('conv1', 'class_embedding', 'transformer', 'ln_post')):
        return None
    (height, width), (rows, cols) = images.shape[2:], visual.conv1.stride
    last = 'transformer' if visual.final_ln_after_pool else 'ln_post'
    return TowerLayout(
        grid=(height // rows, width // cols),
        pooling=_pooling(visual),
        prefix=1,
        first_pooled=1,
        module=last if visual is tower else f'visual.{last}',
        can_drop=True,
    )


def _pooling(inner: nn.Module) -> str:
    """How a transformer pools its tokens."""
    if getattr(inner, 'attn_pool', None) is not None:
        return ATTENTION_POOL
    name = next((getattr(inner, key) for key in ('pool_type', 'global_pool', 'out_type') if hasattr(inner, key)), None)
    if hasattr(inner, 'head_dist'):  # of timm; mmpretrain's distilled DeiT returns both tokens
        name = 'the mean of class and distillation token'
    if name not in _POOLINGS:
        raise ConfigError(
            f'{type(inner).__name__} pools its tokens by {name!r}, for which relevance is not defined: choose a class '
            'token, an attention pool or a mean'
        )
    return _POOLINGS[name]


class _Seen(NamedTuple):
    """Something that happened in a forward pass of two images: a module returned a tensor, or attention.

    Attributes:
        shape: Of the tensor; of attention (B, heads, L) for L keys.
        module: Name of the module; None for attention.
        written_out: Attention by a softmax.
        biased: Attention with a bias or a mask.
    """

    shape: tuple[int, ...]
    module: str | None = None
    written_out: bool = False
    biased: bool = False


def _find_layout(tower: nn.Module, images: Tensor) -> TowerLayout:
    """The layout of any tower, by what happens in a forward pass."""
    seen, size = _watch(tower, images), tuple(images.shape[2:])
    if any(event.module is None and not event.written_out for event in seen):
        seen = [event for event in seen if not event.written_out]  # a softmax inside of an attention function
    layout = _token_layout(tower, seen, size)
    if layout is not None:
        return layout
    module, grid = _last_map(tower, seen, size)
    if getattr(inner_tower(tower), 'attnpool', None) is not None:  # the ResNets of CLIP
        return TowerLayout(grid, ATTENTION_POOL, prefix=1, module=module, has_map=True)
    return TowerLayout(grid, FEATURE_MAP, module=module, has_map=True)


def _token_layout(tower: nn.Module, seen: list[_Seen], size: tuple[int, ...]) -> TowerLayout | None:
    """The layout of a plain transformer: the same tokens in all layers, those of a grid among them. None for others."""
    attention = [event for event in seen if event.module is None]
    if last_block(tower) is None or not attention or any(event.shape[0] != 2 for event in attention):
        return None
    inner, tokens, written_out = inner_tower(tower), attention[0].shape[2], attention[0].written_out
    prefix = getattr(inner, 'num_prefix_tokens', getattr(inner, 'num_extra_tokens', 0))
    pool = getattr(inner, 'attn_pool', None) is not None and attention[-1].shape[2] == tokens - prefix  # patches alone
    if any(event.shape[2] != tokens for event in (attention[:-1] if pool else attention)):
        return None
    maps = sorted((event.shape for event in seen if event.module is not None), key=len)  # (B, C, h, w) over (B, h w, C)
    grids = [_grid(shape, size) for shape in maps if len(shape) <= 4]
    grid = next((grid for grid in grids[::-1] if grid and grid[0] * grid[1] == tokens - prefix), None)
    if grid is None:
        return None
    outputs = [event.module for event in seen if event.module is not None and event.shape[:-1] == (2, tokens)]
    only_embedded = not written_out and not attention[0].biased and after_position(tower) is not None
    return TowerLayout(
        grid,
        _pooling(inner),
        prefix,
        first_pooled=0 if getattr(inner, 'pool_include_prefix', False) else prefix,
        module=outputs[-1],
        written_out=written_out,
        can_drop=only_embedded and getattr(inner, 'out_type', None) != 'featmap',
    )


def _watch(tower: nn.Module, images: Tensor) -> list[_Seen]:
    """What happens in a forward pass of two black images, in eval mode, in order."""
    seen: list[_Seen] = []

    def attention(original: Callable) -> Callable:

        def watched(
            query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *args: Any, **kwargs: Any
        ) -> Tensor:
            seen.append(_Seen(tuple(key.shape[:3]), biased=attn_mask is not None))
            return original(query, key, value, attn_mask, *args, **kwargs)

        return watched

    def softmax(original: Callable, scores: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        seen.append(_Seen((*scores.shape[:2], scores.shape[3]), written_out=True))
        return original(scores, *args, **kwargs)

    def watch(name: str) -> Callable:

        def hook(_: nn.Module, args: tuple, output: Any) -> None:
            tensor = last_tensor(output)
            if tensor is not None:
                seen.append(_Seen(tuple(tensor.shape), name))

        return hook

    # Not attention weights, which look like feature maps.
    watched = [pair for pair in tower.named_modules() if not isinstance(pair[1], (nn.Dropout, nn.Softmax))]
    handles = [module.register_forward_hook(watch(name)) for name, module in watched]
    modes = [(module, module.training) for module in tower.modules()]
    try:
        tower.eval()
        # Autocast would keep casts of the weights that have no gradient.
        with torch.no_grad(), no_autocast(), replace_attention(tower, attention), replace_softmax(softmax):
            tower(images.new_zeros(2, *images.shape[1:]))
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes:
            module.training = mode
    return seen


def last_tensor(output: Any) -> Tensor | None:
    """``output`` of a module, or the last tensor of it; None if there is none."""
    while isinstance(output, (tuple, list)) and output:
        output = output[-1]
    return output if isinstance(output, Tensor) else None


def _grid(shape: tuple[int, ...], size: tuple[int, ...]) -> tuple[int, int] | None:
    """Rows and columns of a feature map (B, C, h, w), (B, h, w, C) or (B, h w, C) of images of this size; None for
    other shapes."""
    height, width = size
    if len(shape) == 4:
        grids = [shape[2:], shape[1:3]]
    else:
        rows = round((shape[1] * height / width) ** 0.5) if len(shape) == 3 else 0
        grids = [(rows, shape[1] // rows)] if rows and shape[1] % rows == 0 else []
    for rows, cols in grids:
        # The aspect of the images, up to a row or a column.
        if shape[0] == 2 and rows * cols > 1 and abs(rows * width - cols * height) < max(size):
            return rows, cols
    return None


def _last_map(tower: nn.Module, seen: list[_Seen], size: tuple[int, ...]) -> tuple[str, tuple[int, int]]:
    """The module that returns the last feature map, and its grid. After a map (B, C, h, w) there may be one attention:
    a pool."""
    attention = 0
    for event in reversed(seen):
        attention += event.module is None
        grid = None if event.module is None else _grid(event.shape, size)
        if grid is not None and event.module is not None and attention <= (len(event.shape) == 4):
            return event.module, grid
    raise ConfigError(
        f'{type(inner_tower(tower)).__name__} has neither tokens of equal number in all layers nor a feature map with '
        f'rows and columns after its last attention, for images of {size[0]}x{size[1]}: counterfactual masks need one '
        'of them (larger images may help)'
    )
