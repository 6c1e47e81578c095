"""LoRA: the weights of a transformer stay frozen, and low-rank updates of them are trained.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022, section 4.1::

    W x + b  →  (W + s B A) x + b        s = α / r

A is (r, in) and random, B is (out, r) and 0 at the start, so the tower starts as it was. The fused weight of q, k and v
in ``nn.MultiheadAttention`` counts as three weights of rank r each.

Adapted layers keep their names and their frozen weights, and get two more parameters, ``lora_A`` and ``lora_B``.
Whatever reads their ``weight`` or ``in_proj_weight`` sees W + s B A.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...compat import is_compiling
from ...counterfactual.relevance import needs_weight_gradients
from ...counterfactual.towers import inner_tower
from ...errors import ConfigError
from ...messages import near_names, short_list
from ...precision import no_autocast
from ...ranges import Count, Positive
from .fast_path import LeanAttention

# How open_clip, timm and mmpretrain call attention and MLP.
TARGETS = ('attn', 'attn_pool', 'mlp', 'ffn')
ADAPTERS = ('lora_A', 'lora_B')


@dataclass(frozen=True)
class LoRA:
    """Options of :func:`add_lora`, ``model.backbone.lora`` of a config.

    Args:
        rank (int): r.
        alpha (float, optional): α. Defaults to None: r, so that s = 1.
        targets (list[str], optional): Adapt the linear layers and the attention with one of these in their dotted name:
            'attn', 'mlp.c_fc', 'resblocks.11'. Defaults to None: all of attention and MLP.

    Raises:
        ConfigError: A rank below 1, an α that is not above 0, or targets that are no list of names.
    """

    rank: Count = 8
    alpha: Positive | None = None
    targets: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.rank, int) or self.rank < 1:
            raise ConfigError(f'rank={self.rank!r} must be a whole number of at least 1')
        if self.scale <= 0:
            raise ConfigError(f'alpha={self.alpha!r} must be above 0')
        if self.targets is not None and (isinstance(self.targets, str) or not self.targets):
            raise ConfigError(f"targets={self.targets!r} must be a list of names, such as ['attn', 'mlp'], or None")

    @property
    def scale(self) -> float:
        """s."""
        return 1.0 if self.alpha is None else self.alpha / self.rank


def low_rank_update(down: Tensor, up: Tensor, scale: float) -> Tensor:
    """s B A, the update of a weight, or of several on top of each other.

    Args:
        down (Tensor): A of each weight, (parts · r, in).
        up (Tensor): B of each weight, (parts · out, r).
        scale (float): s.

    Returns:
        Tensor: (parts · out, in).
    """
    parts = len(down) // up.shape[1]
    with no_autocast():  # as exact as the weight
        return scale * torch.bmm(up.unflatten(0, (parts, -1)), down.unflatten(0, (parts, -1))).flatten(0, 1)


def lora_linear(x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float) -> Tensor:
    """x (W + s B A)ᵀ + b, (…, parts · out), of x (…, in). W and b get no gradient.

    Args:
        x, weight, bias (Tensor): As of ``F.linear``; the weight is (parts · out, in).
        down, up, scale: As of :func:`low_rank_update`.
    """
    if is_compiling():
        return F.linear(x, weight + low_rank_update(down, up, scale), bias)
    return _LoRALinear.apply(x, weight, bias, down, up, scale)


class _LoRALinear(torch.autograd.Function):
    """:func:`lora_linear` by one product, as of a merged weight, which is not kept but made again for the backward
    pass. The gradients of A and B come from products with r columns; the gradient of the weight is never made."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float
    ) -> Tensor:
        ctx.save_for_backward(x, weight, down, up)
        ctx.scale = scale
        return F.linear(x, weight + low_rank_update(down, up, scale), bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, down, up = ctx.saved_tensors
        grad_x = grad_down = grad_up = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad @ (weight + low_rank_update(down, up, ctx.scale)).to(grad.dtype)).to(x.dtype)
        if needs_weight_gradients():
            rows, grads = x.flatten(0, -2).to(grad.dtype), grad.flatten(0, -2)
            ups = torch.block_diag(*up.chunk(len(down) // up.shape[1])).to(grad.dtype)  # (parts · out, parts · r)
            grad_down = ctx.scale * ((grads @ ups).T @ rows).to(down.dtype)
            blocks = (grads.T @ (rows @ down.T.to(grad.dtype))).chunk(len(down) // up.shape[1])
            blocks = [block.chunk(len(blocks), dim=1)[index] for index, block in enumerate(blocks)]
            grad_up = ctx.scale * torch.cat(blocks).to(up.dtype)
        return grad_x, None, None, grad_down, grad_up, None


class LoRALinear(nn.Linear):
    """A linear layer with adapters."""

    lora_A: nn.Parameter
    lora_B: nn.Parameter
    lora_scale: float

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """W + s B A, (out, in)."""
        return _frozen_weight(self) + low_rank_update(self.lora_A, self.lora_B, self.lora_scale)

    def forward(self, x: Tensor) -> Tensor:
        return lora_linear(x, _frozen_weight(self), self.bias, self.lora_A, self.lora_B, self.lora_scale)


class LoRAMultiheadAttention(nn.MultiheadAttention):
    """Attention with adapters of q, k and v. Its output projection is a linear layer of its own."""

    lora_A: nn.Parameter
    lora_B: nn.Parameter
    lora_scale: float

    @property
    def in_proj_weight(self) -> Tensor:  # type: ignore[override]
        """W + s B A of q, k and v, (3 C, C)."""
        return _frozen_weight(self) + low_rank_update(self.lora_A, self.lora_B, self.lora_scale)


class LoRALeanAttention(LoRAMultiheadAttention, LeanAttention):
    """:class:`LoRAMultiheadAttention` with the faster forward pass."""

    def project_parts(self, x: Tensor, first: int = 0, last: int = 3) -> Tensor:
        width, rank = self.embed_dim, self.lora_B.shape[1]
        rows, ranks = slice(first * width, last * width), slice(first * rank, last * rank)
        weight, bias = _frozen_weight(self)[rows], self.in_proj_bias[rows]
        return lora_linear(x, weight, bias, self.lora_A[ranks], self.lora_B[rows], self.lora_scale)


LAYERS = (LoRALinear, LoRAMultiheadAttention)


def add_lora(tower: nn.Module, options: LoRA) -> None:
    """Freeze a tower and add trainable adapters to it, in place.

    Layers that are frozen before are left alone.

    Args:
        tower (nn.Module): An image tower with its pretrained weights.
        options (LoRA): Which layers, and the rank.

    Raises:
        ConfigError: There is nothing to adapt, a target matches no layer, or the rank is larger than every layer.
    """
    layers = find_layers(tower, options.targets)
    largest = max(min(weight.shape) for weight in map(_frozen_weight, layers.values()))
    if options.rank > largest:
        raise ConfigError(f'rank={options.rank} is larger than the rank of every adapted weight, at most {largest}')
    tower.requires_grad_(False)
    for layer in layers.values():
        _adapt(layer, options)
    tower.register_buffer('lora_base', _fingerprint(map(_frozen_weight, layers.values())))


def find_layers(tower: nn.Module, targets: Sequence[str] | None = None) -> dict[str, nn.Module]:
    """The layers of a tower that LoRA adapts, by name.

    Args:
        tower (nn.Module): The image tower.
        targets (Sequence[str], optional): See :class:`LoRA`.

    Raises:
        ConfigError: There are none, or none for one of the targets.
    """
    trained = {
        name: module
        for name, module in tower.named_modules()
        if isinstance(module, (nn.Linear, nn.MultiheadAttention))
        and (weight := _frozen_weight(module)) is not None
        and weight.requires_grad
    }

    def matches(target: str) -> dict[str, nn.Module]:
        return {name: module for name, module in trained.items() if f'.{target}.' in f'.{name}.'}

    found: dict[str, nn.Module] = {}
    for target in TARGETS if targets is None else targets:
        matching = matches(target)
        if targets is not None and not matching:
            parts = sorted({part for name in trained for part in name.split('.') if not part.isdigit()})
            raise ConfigError(
                f'no linear layer or attention of {_kind(tower)} has {target!r} in its name.'
                f'{near_names(target, parts)} Parts of names: {short_list(parts, 20)}'
            )
        found.update(matching)
    if not found:
        raise ConfigError(
            f'{_kind(tower)} has no attention or MLP that can be trained, so there is nothing to adapt: leave out '
            + ('frozen=True, or lora' if not any(p.requires_grad for p in tower.parameters()) else 'lora')
        )
    return found


def has_lora(tower: nn.Module) -> bool:
    """Whether a tower has adapters."""
    return any(isinstance(module, LAYERS) for module in tower.modules())


def remove_lora(tower: nn.Module, merge: bool = False) -> None:
    """Take the adapters away, in place; the layers are of their former classes again.

    Args:
        tower (nn.Module): A tower, or a model with one, with or without adapters.
        merge (bool): The weights become W + s B A. False: they are W, the pretrained ones.
    """
    for layer in [module for module in tower.modules() if isinstance(module, LAYERS)]:
        if merge:  # a new weight, because a teacher may share the frozen one
            name = _weight_name(layer)
            layer._parameters[name] = nn.Parameter(getattr(layer, name).detach(), requires_grad=False)
        layer.__class__ = layer.plain_class
        del layer.lora_A, layer.lora_B, layer.lora_scale, layer.plain_class
    for module in tower.modules():
        module._buffers.pop('lora_base', None)


def copy_without_lora(tower: nn.Module) -> nn.Module:
    """A copy of a tower without its adapters. With adapters, it shares the frozen weights."""
    shared = [weight for weight in tower.parameters() if not weight.requires_grad] if has_lora(tower) else []
    copied = deepcopy(tower, {id(weight): weight for weight in shared})
    remove_lora(copied)
    return copied


def uses_lora(model: Mapping) -> bool:
    """Whether the ``model`` of a config has adapters."""
    return (model.get('backbone') or {}).get('lora') is not None


def is_adapter(name: str) -> bool:
    """Whether a parameter of this name belongs to an adapter."""
    return name.rpartition('.')[2] in ADAPTERS


def holds_adapters(names: Iterable[str]) -> bool:
    """Whether a state dict with these names holds adapters in place of the weights."""
    return any(map(is_adapter, names))


def _adapt(layer: Any, options: LoRA) -> None:
    weight = _frozen_weight(layer)
    parts = 1 if isinstance(layer, nn.Linear) else 3
    layer.plain_class = type(layer)
    if isinstance(layer, nn.Linear):
        layer.__class__ = LoRALinear
    else:
        layer.__class__ = LoRALeanAttention if isinstance(layer, LeanAttention) else LoRAMultiheadAttention
    bound = 1 / math.sqrt(weight.shape[1])  # as nn.Linear's own weights
    layer.lora_A = nn.Parameter(weight.new_empty(parts * options.rank, weight.shape[1]).uniform_(-bound, bound))
    layer.lora_B = nn.Parameter(weight.new_zeros(len(weight), options.rank))
    layer.lora_scale = options.scale


def _frozen_weight(layer: nn.Module) -> Any:
    """W of a linear layer, or of q, k and v; None for attention with separate weights of q, k and v."""
    return layer._parameters[_weight_name(layer)]


def _weight_name(layer: nn.Module) -> str:
    return 'weight' if isinstance(layer, nn.Linear) else 'in_proj_weight'


def _fingerprint(weights: Iterable[Tensor]) -> Tensor:
    """An integer that says which pretrained weights the adapters belong to."""
    digest = hashlib.sha256()
    for weight in weights:
        digest.update(weight.detach().float().cpu().numpy().tobytes())
    return torch.tensor(int.from_bytes(digest.digest()[:7], 'big'))


def _kind(tower: nn.Module) -> str:
    return f'this {type(inner_tower(tower)).__name__}'
