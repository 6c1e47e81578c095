"""Records the attention of a stock vision transformer, and hides patches from it.

Every tower used here (open_clip's, mmpretrain's, timm's) calls ``torch.nn.functional.scaled_dot_product_attention``
once per layer. Replacing this one function records what a relevance map needs, and hides patches from every layer.
Fused attention stays on, and no attention module is modified.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..compat import no_fused_transformer_layers
from ..errors import ConfigError


@dataclass
class AttentionCall:
    """One call of scaled-dot-product attention.

    Attributes:
        query, key, value (Tensor): (B, heads, L, d), detached from the autograd graph.
        output (Tensor): (B, heads, L, d), part of the graph: the tensor to differentiate with respect to.
        scale (float): Factor on q kᵀ.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor
    scale: float


class AttentionRecord(list[AttentionCall]):
    """The attention calls of a forward pass, in order.

    Attributes:
        norms (Tensor | None): (B, L) float32, norms of the tokens that enter the last block; None where no block was
            found (:func:`last_block`).
    """

    norms: Tensor | None = None


@contextmanager
def _replace_attention(tower: nn.Module, make: Callable[[Callable], Callable]) -> Iterator[None]:
    """Inside the context, attention calls go to ``make(original)``.

    The replacement is global to the process for functions that look it up in ``torch.nn.functional`` (open_clip, timm)
    and per instance for mmpretrain's ``MultiheadAttention``, which keeps its own reference. Not for use by two threads.
    """
    original = F.scaled_dot_product_attention
    replacement = make(original)
    holders = [module for module in tower.modules() if 'scaled_dot_product_attention' in vars(module)]
    own: list[Any] = [module.scaled_dot_product_attention for module in holders]
    try:
        F.scaled_dot_product_attention = replacement
        for module, function in zip(holders, own):
            module.scaled_dot_product_attention = make(function)  # type: ignore[assignment]
        with no_fused_transformer_layers():
            yield
    finally:
        F.scaled_dot_product_attention = original
        for module, function in zip(holders, own):
            module.scaled_dot_product_attention = function


@contextmanager
def record_attention(tower: nn.Module) -> Iterator[AttentionRecord]:
    """Record every attention call of ``tower`` made inside the context, in order.

    Outputs and gradients of the tower do not change. If nothing before a layer requires a gradient (frozen towers), the
    output of the layer is made to require one, so that a relevance map can be computed.

    Yields:
        AttentionRecord: Grows by one entry per layer during the forward pass.
    """
    calls = AttentionRecord()

    def make(original: Callable) -> Callable:

        def recording(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            output = original(query, key, value, *args, **kwargs)
            if torch.is_grad_enabled():
                if not output.requires_grad:
                    output.requires_grad_(True)
                scale = kwargs.get('scale')
                calls.append(
                    AttentionCall(
                        query.detach(),
                        key.detach(),
                        value.detach(),
                        output,
                        query.shape[-1] ** -0.5 if scale is None else scale,
                    )
                )
            return output

        return recording

    def record_norms(_: nn.Module, args: tuple) -> None:
        if args and torch.is_grad_enabled():
            calls.norms = args[0].detach().float().norm(dim=-1)

    block = last_block(tower)
    handle = None if block is None else block.register_forward_pre_hook(record_norms)
    try:
        with _replace_attention(tower, make):
            yield calls
    finally:
        if handle is not None:
            handle.remove()


@contextmanager
def hide_patches(tower: nn.Module, hidden: Tensor, num_kept: int | None = None) -> Iterator[None]:
    """Inside the context, ``tower`` does not see the hidden patches: by :func:`drop_tokens` where every image keeps the
    same number of patches and the tower allows it, else by :func:`mask_keys`.

    Args:
        tower (nn.Module): The image tower.
        hidden (Tensor): (B, n) bool over the n patches, True where the patch is hidden.
        num_kept (int, optional): Patches that every image keeps, if the number is the same for all.
    """
    module = after_position(tower)
    if num_kept is not None and module is not None:
        with drop_tokens(module, hidden, num_kept):
            yield
    else:
        with mask_keys(tower, hidden):
            yield


def after_position(tower: nn.Module) -> nn.Module | None:
    """The module that tokens pass right after the position embedding (open_clip: ``visual.patch_dropout``; mmpretrain:
    ``drop_after_pos``); None where ``tower`` has none."""
    tower = getattr(tower, 'visual', tower)
    return getattr(tower, 'patch_dropout', getattr(tower, 'drop_after_pos', None))


def last_block(tower: nn.Module) -> nn.Module | None:
    """The last block of a transformer (open_clip: ``visual.transformer.resblocks``; mmpretrain: ``layers``; timm:
    ``trunk.blocks``), which takes tokens (B, L, C); None where ``tower`` has none."""
    tower = getattr(tower, 'visual', tower)
    tower = getattr(tower, 'transformer', getattr(tower, 'trunk', tower))
    blocks = next((getattr(tower, name) for name in ('resblocks', 'layers', 'blocks') if hasattr(tower, name)), ())
    return blocks[-1] if isinstance(blocks, (nn.ModuleList, nn.Sequential)) and len(blocks) else None


@contextmanager
def mask_keys(tower: nn.Module, hidden: Tensor) -> Iterator[None]:
    """Inside the context, no token of ``tower`` attends to a hidden patch in any layer (−∞ on its key).

    Args:
        tower (nn.Module): The image tower.
        hidden (Tensor): (B, n) bool over the n patches, True where the patch is hidden. Prefix tokens (CLS) stay
            visible.
    """

    def make(original: Callable) -> Callable:

        def masked(
            query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *args: Any, **kwargs: Any
        ) -> Tensor:
            if attn_mask is not None:
                raise ConfigError(
                    'hiding patches from a tower with its own attention mask is not supported: use fill="single" or '
                    '"multi"'
                )
            prefix = key.shape[-2] - hidden.shape[1]
            visible = F.pad(~hidden, (prefix, 0), value=True)[:, None, None, :]
            return original(query, key, value, visible, *args, **kwargs)

        return masked

    with _replace_attention(tower, make):
        yield


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
