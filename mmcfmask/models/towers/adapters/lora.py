"""LoRA: the weights of a transformer stay frozen, and low-rank updates of them are trained.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022, section 4.1::

    W x + b  →  (W + s B A) x + b        s = α / r

A is (r, in) and random, B is (out, r) and 0 at the start, so the tower starts as it was. The fused weight of q, k and v
in ``nn.MultiheadAttention`` counts as three weights of rank r each.

Adapted layers keep their names and their frozen weights, and get two more parameters, ``lora_A`` and ``lora_B``.
Whatever reads their ``weight`` or ``in_proj_weight`` sees W + s B A.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ....compat import is_compiling
from ....counterfactual.relevance import needs_weight_gradients
from ....errors import ConfigError
from ....precision import no_autocast
from ....ranges import Count, Positive
from ..fast_path import LeanAttention
from .base import AdaptedLayer, Adapters, become, check_rank, find_layers, plain_weight


@dataclass(frozen=True)
class LoRA(Adapters):
    """Options of LoRA, ``model.backbone.lora`` of a config.

    Args:
        rank (int): r.
        alpha (float, optional): α. Defaults to None: r, so that s = 1.
        targets (list[str], optional): Adapt the linear layers and the attention with one of these in their dotted name:
            'attn', 'mlp.c_fc', 'resblocks.11'. Defaults to None: all of attention and MLP.

    Raises:
        ConfigError: A rank below 1, an α that is not above 0, or targets that are no list of names.
    """

    key: ClassVar[str] = 'lora'
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

    def find(self, tower: nn.Module) -> dict[str, Any]:
        """See :meth:`Adapters.find`. Layers that are frozen before are left alone."""
        layers = find_layers(tower, self.targets)
        check_rank(self.rank, max(min(plain_weight(layer).shape) for layer in layers.values()))
        return layers

    def adapt(self, layer: Any) -> None:
        """See :meth:`Adapters.adapt`."""
        weight = plain_weight(layer)
        linear = isinstance(layer, nn.Linear)
        lean = isinstance(layer, LeanAttention)
        become(layer, LoRALinear if linear else LoRALeanAttention if lean else LoRAMultiheadAttention, self)
        bound = 1 / math.sqrt(weight.shape[1])  # as nn.Linear's own weights
        rows = self.rank * (1 if linear else 3)
        layer.lora_A = nn.Parameter(weight.new_empty(rows, weight.shape[1]).uniform_(-bound, bound))
        layer.lora_B = nn.Parameter(weight.new_zeros(len(weight), self.rank))


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


class LoRALayer(AdaptedLayer):
    """A layer with W + s B A in place of W."""

    adapters: LoRA
    lora_A: nn.Parameter
    lora_B: nn.Parameter

    def frozen_weight(self) -> Tensor:
        return plain_weight(self)  # type: ignore[arg-type]

    def full_weight(self) -> Tensor:
        """W + s B A."""
        return self.frozen_weight() + low_rank_update(self.lora_A, self.lora_B, self.adapters.scale)


class LoRALinear(LoRALayer, nn.Linear):
    """A linear layer with adapters."""

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """W + s B A, (out, in)."""
        return self.full_weight()

    def merged(self) -> dict[str, Tensor]:
        return dict(weight=self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return lora_linear(x, self.frozen_weight(), self.bias, self.lora_A, self.lora_B, self.adapters.scale)


class LoRAMultiheadAttention(LoRALayer, nn.MultiheadAttention):
    """Attention with adapters of q, k and v. Its output projection is a linear layer of its own."""

    @property
    def in_proj_weight(self) -> Tensor:  # type: ignore[override]
        """W + s B A of q, k and v, (3 C, C)."""
        return self.full_weight()

    def merged(self) -> dict[str, Tensor]:
        return dict(in_proj_weight=self.in_proj_weight)


class LoRALeanAttention(LoRAMultiheadAttention, LeanAttention):
    """:class:`LoRAMultiheadAttention` with the faster forward pass."""

    def project_parts(self, x: Tensor, first: int = 0, last: int = 3) -> Tensor:
        width, rank = self.embed_dim, self.adapters.rank
        rows, ranks = slice(first * width, last * width), slice(first * rank, last * rank)
        weight, bias = self.frozen_weight()[rows], self.in_proj_bias[rows]
        return lora_linear(x, weight, bias, self.lora_A[ranks], self.lora_B[rows], self.adapters.scale)
