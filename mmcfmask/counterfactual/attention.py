"""Records the attention of a stock tower, or its last feature map, and hides patches from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError
from .listening import replace_attention, replace_softmax
from .towers import (
    CLASS_TOKEN,
    FEATURE_MAP,
    MEAN,
    TowerLayout,
    after_position,
    inner_tower,
    last_block,
    last_tensor,
    tower_layout,
)


@dataclass
class AttentionCall:
    """One call of scaled-dot-product attention, of T queries to L keys.

    Attributes:
        query, key, value (Tensor): (B, heads, T or L, d), detached from the autograd graph.
        output (Tensor): (B, heads, T, d), part of the graph: the tensor to differentiate with respect to.
        scale (float): Factor on q kᵀ.
        bias (Tensor, optional): Broadcastable to (B, heads, T, L), detached: added to the scores, or bool, True where a
            key is seen.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor
    scale: float
    bias: Tensor | None = None

    @property
    def num_keys(self) -> int:
        """L."""
        return self.key.shape[2]


@dataclass
class AttentionWeights:
    """Attention that a tower writes out.

    Attributes:
        output (Tensor): (B, heads, T, L), after the softmax, part of the graph.
    """

    output: Tensor

    @property
    def num_keys(self) -> int:
        """L."""
        return self.output.shape[3]


class AttentionRecord(list[AttentionCall | AttentionWeights]):
    """The attention calls of a forward pass, in order; none of a tower that pools a feature map without attention.

    Attributes:
        layout (TowerLayout | None): Of the tower.
        norms (Tensor | None): (B, L) float32, norms of the tokens that enter the last block; None where no block was
            found (:func:`last_block`).
        feature_map (Tensor | None): Of a tower that has one: (B, C, h, w), (B, h, w, C) or (B, h w, C), part of the
            graph.
    """

    layout: TowerLayout | None = None
    norms: Tensor | None = None
    feature_map: Tensor | None = None


@contextmanager
def record_attention(tower: nn.Module, images: Tensor) -> Iterator[AttentionRecord]:
    """Record what a relevance map needs of every forward pass of ``tower`` inside the context: its attention calls, in
    order, or its last feature map.

    Outputs and gradients of the tower do not change. If nothing before a layer requires a gradient (frozen towers), the
    output of the layer is made to require one, so that a relevance map can be computed.

    Args:
        tower (nn.Module): The image tower.
        images (Tensor): (B, 3, H, W), of the size that the tower will see.

    Yields:
        AttentionRecord: Grows by one entry per layer during the forward pass.

    Raises:
        ConfigError: See :func:`tower_layout`.
    """
    calls = AttentionRecord()
    calls.layout = tower_layout(tower, images)

    def make(original: Callable) -> Callable:

        def recording(
            query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *args: Any, **kwargs: Any
        ) -> Tensor:
            output = original(query, key, value, attn_mask, *args, **kwargs)
            if torch.is_grad_enabled():
                scale = kwargs.get('scale')
                calls.append(
                    AttentionCall(
                        query.detach(),
                        key.detach(),
                        value.detach(),
                        _with_gradient(output),
                        query.shape[-1] ** -0.5 if scale is None else scale,
                        None if attn_mask is None else attn_mask.detach(),
                    )
                )
            return output

        return recording

    def record_weights(original: Callable, scores: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        weights = original(scores, *args, **kwargs)
        if torch.is_grad_enabled():
            calls.append(AttentionWeights(_with_gradient(weights)))
        return weights

    def record_norms(_: nn.Module, args: tuple) -> None:
        if args and torch.is_grad_enabled():
            calls.norms = args[0].detach().float().norm(dim=-1)

    def record_map(_: nn.Module, args: tuple, output: Any) -> None:
        features = last_tensor(output)
        if features is not None and torch.is_grad_enabled():
            calls.feature_map = _with_gradient(features)

    with ExitStack() as stack:
        if calls.layout.has_map:
            module = tower.get_submodule(calls.layout.module)
            stack.callback(module.register_forward_hook(record_map).remove)
        if calls.layout.pooling != FEATURE_MAP:
            block = last_block(tower)
            if block is not None:
                stack.callback(block.register_forward_pre_hook(record_norms).remove)
            stack.enter_context(
                replace_softmax(record_weights) if calls.layout.written_out else replace_attention(tower, make)
            )
        yield calls


def _with_gradient(output: Tensor) -> Tensor:
    return output if output.requires_grad else output.requires_grad_(True)


@contextmanager
def hide_patches(tower: nn.Module, images: Tensor, hidden: Tensor, num_kept: int | None = None) -> Iterator[None]:
    """Inside the context, ``tower`` does not see the hidden patches: by :func:`drop_tokens` where every image keeps the
    same number of patches and the tower allows it, else by :func:`mask_keys`.

    Args:
        tower (nn.Module): The image tower.
        images (Tensor): (B, 3, H, W), of the size that the tower will see.
        hidden (Tensor): (B, n) bool over the n patches, True where the patch is hidden.
        num_kept (int, optional): Patches that every image keeps, if the number is the same for all.

    Raises:
        ConfigError: See :func:`check_can_hide`.
    """
    layout = tower_layout(tower, images)
    check_can_hide(tower, layout)
    module = after_position(tower)
    if num_kept and layout.can_drop and module is not None:
        with drop_tokens(module, hidden, num_kept):
            yield
        return
    if layout.pooling != CLASS_TOKEN:  # there must be something to pool: an image without a patch is left whole
        hidden = hidden & ~hidden.all(dim=1, keepdim=True)
    pooled = _pool_visible(tower.get_submodule(layout.module), hidden, layout) if layout.pooling == MEAN else None
    with mask_keys(tower, hidden, layout.written_out), pooled or nullcontext():
        yield


def check_can_hide(tower: nn.Module, layout: TowerLayout) -> None:
    """Raise a ConfigError for a tower from which patches cannot be hidden: one that is no plain transformer."""
    if layout.has_map:
        raise ConfigError(
            f'fill="none" hides patches, but {type(inner_tower(tower)).__name__} is no plain transformer: what '
            'attention does not see comes in by other ways. Use fill="single" or "multi"'
        )


@contextmanager
def mask_keys(tower: nn.Module, hidden: Tensor, written_out: bool = False) -> Iterator[None]:
    """Inside the context, no token of ``tower`` attends to a hidden patch in any layer (−∞ on its key).

    Args:
        tower (nn.Module): The image tower.
        hidden (Tensor): (B, n) bool over the n patches, True where the patch is hidden. Prefix tokens (CLS) stay
            visible.
        written_out (bool): The tower writes attention out (:class:`TowerLayout`).
    """

    def visible(keys: int) -> Tensor:
        return F.pad(~hidden, (keys - hidden.shape[1], 0), value=True)[:, None, None, :]

    def make(original: Callable) -> Callable:

        def masked(
            query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *args: Any, **kwargs: Any
        ) -> Tensor:
            mask = visible(key.shape[-2])
            if attn_mask is not None:
                mask = attn_mask & mask if attn_mask.dtype == torch.bool else attn_mask.where(mask, float('-inf'))
            return original(query, key, value, mask, *args, **kwargs)

        return masked

    def softmax(original: Callable, scores: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return original(scores.where(visible(scores.shape[-1]), float('-inf')), *args, **kwargs)

    with replace_softmax(softmax) if written_out else replace_attention(tower, make):
        yield


@contextmanager
def _pool_visible(module: nn.Module, hidden: Tensor, layout: TowerLayout) -> Iterator[None]:
    """Inside the context, a mean over the tokens (B, L, C) that ``module`` returns is one over visible tokens: each
    hidden one is replaced by the mean of the visible ones."""

    def hook(_: nn.Module, args: tuple, tokens: Tensor) -> Tensor:
        gone = F.pad(hidden, (tokens.shape[1] - hidden.shape[1], 0))[:, layout.first_pooled :, None]
        pooled = tokens[:, layout.first_pooled :]
        mean = pooled.masked_fill(gone, 0).sum(dim=1, keepdim=True) / (~gone).sum(dim=1, keepdim=True)
        return torch.cat([tokens[:, : layout.first_pooled], pooled.where(~gone, mean)], dim=1)

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def drop_tokens(module: nn.Module, hidden: Tensor, num_kept: int) -> Iterator[None]:
    """Inside the context, hidden patches are dropped after the position embedding. CLS sees the same as with
    :func:`mask_keys`, at a cost that falls with the number of tokens.

    Args:
        module (nn.Module): See :func:`after_position`. It takes and returns (B, prefix + n, C).
        hidden (Tensor): (B, n) bool, True where the patch is dropped: n − ``num_kept`` per row.
        num_kept (int): Patches kept per image; the CLS token always is.
    """
    kept = hidden.to(torch.uint8).argsort(dim=1, stable=True)[:, :num_kept]

    def hook(_: nn.Module, args: tuple, tokens: Tensor) -> Tensor:
        prefix = tokens.shape[1] - hidden.shape[1]
        patches = tokens[:, prefix:].gather(1, kept[:, :, None].expand(-1, -1, tokens.shape[2]))
        return torch.cat([tokens[:, :prefix], patches], dim=1)

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
