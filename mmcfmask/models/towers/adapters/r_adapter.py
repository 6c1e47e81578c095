"""R-Adapter: linear adapters behind attention and MLP, dropped at random in training, averaged and re-scaled.

Kim et al., "Efficient and Versatile Robust Fine-Tuning of Zero-shot Models", ECCV 2024, section 3::

    h(X) = γ/(1 − p) · X W + X,    γ ~ Bernoulli(1 − p)        one γ per image and layer; p = 0 in evaluation

W is (C, C), or B A of rank r, and 0 at the start, so the tower starts as it was. After an output projection with the
weight W_org and the bias b_org, the adapter can be merged: W_org (W + I) and b_org (W + I).

The other two parts of the method are a moving average of W (``RelativeEMAHook``) and α W in place of W (WiSE-FT).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from timm.layers import drop_path
from torch import Tensor, nn

from ....errors import ConfigError
from ....ranges import Count, Momentum
from ..fast_path import LeanAttention
from .base import TARGETS, AdaptedLayer, Adapters, become, check_rank, find_layers


@dataclass(frozen=True)
class RAdapter(Adapters):
    """Options of R-Adapter, ``model.backbone.r_adapter`` of a config.

    Args:
        rank (int, optional): r. Defaults to None: W is a matrix of full rank.
        drop (float): p, the probability that an image passes an adapter without it, in training. Must be 0 beside loss
            terms that compare features of two passes (:attr:`mmcfmask.models.losses.LossTerm.deterministic`).

    Raises:
        ConfigError: A rank below 1, or a probability outside [0, 1).
    """

    key: ClassVar[str] = 'r_adapter'
    rank: Count | None = None
    drop: Momentum = field(default=0.2, compare=False)  # checkpoints do not depend on it

    def __post_init__(self) -> None:
        if self.rank is not None and (not isinstance(self.rank, int) or self.rank < 1):
            raise ConfigError(f'rank={self.rank!r} must be a whole number of at least 1, or None')
        if not 0 <= self.drop < 1:
            raise ConfigError(f'drop={self.drop!r} must lie in [0, 1)')

    def find(self, tower: nn.Module) -> dict[str, Any]:
        """See :meth:`Adapters.find`: the modules whose output an adapter follows. Of an attention and of an MLP this is
        the last linear layer, of ``nn.MultiheadAttention`` the attention itself."""
        found: dict[str, Any] = {}
        for name, layer in find_layers(tower).items():
            parts = name.split('.')
            last = max(index for index, part in enumerate(parts) if part in TARGETS)
            unit = '.'.join(parts[: last + 1])
            whole = tower.get_submodule(unit)
            if isinstance(whole, nn.MultiheadAttention):
                found[unit] = whole
            elif isinstance(layer, nn.Linear):
                found[unit] = layer  # a later one takes its place
        check_rank(self.rank or 1, max(len(output_projection(layer).weight) for layer in found.values()))
        return found

    def adapt(self, layer: Any) -> None:
        """See :meth:`Adapters.adapt`."""
        weight = output_projection(layer).weight
        width = len(weight)
        linear = isinstance(layer, nn.Linear)
        lean = isinstance(layer, LeanAttention)
        become(layer, RAdapterLinear if linear else RAdapterLeanAttention if lean else RAdapterMultiheadAttention, self)
        down = None
        if self.rank is not None:
            bound = 1 / math.sqrt(width)
            down = nn.Parameter(weight.new_empty(self.rank, width).uniform_(-bound, bound))
        layer.register_parameter('adapter_A', down)
        layer.adapter_B = nn.Parameter(weight.new_zeros(width, self.rank or width))


def output_projection(layer: Any) -> nn.Linear:
    """The linear layer that gives the output: ``out_proj`` of ``nn.MultiheadAttention``, or the layer itself."""
    return layer.out_proj if isinstance(layer, nn.MultiheadAttention) else layer


def r_adapter(x: Tensor, up: Tensor, down: Tensor | None = None, drop: float = 0.0, training: bool = False) -> Tensor:
    """γ/(1 − p) · x W + x, of the shape of x; in evaluation x W + x.

    Args:
        x (Tensor): (B, …, C). Every row of the first dimension has a γ of its own.
        up (Tensor): Wᵀ, (C, C), or with ``down`` its left factor (C, r).
        down (Tensor, optional): The right factor of Wᵀ = up · down, (r, C).
        drop (float): p, in [0, 1).
        training (bool): Draw γ.
    """
    return x + drop_path(F.linear(x if down is None else F.linear(x, down), up), drop, training)


class RAdapterLayer(AdaptedLayer):
    """A layer whose output passes an adapter."""

    adapters: RAdapter
    adapter_A: nn.Parameter | None
    adapter_B: nn.Parameter
    training: bool

    @property
    def drop_prob(self) -> float:
        """p, by the name of stochastic depth (:mod:`mmcfmask.models.towers.modes`)."""
        return self.adapters.drop

    def adapt_output(self, x: Tensor) -> Tensor:
        """:func:`r_adapter` of this layer."""
        return r_adapter(x, self.adapter_B, self.adapter_A, self.drop_prob, self.training)

    def frozen_weight(self) -> Tensor:
        return output_projection(self).weight

    def merged(self) -> dict[str, Tensor]:
        """W_org (W + I) and b_org (W + I)."""
        plain = output_projection(self)
        prefix = 'out_proj.' if isinstance(self, nn.MultiheadAttention) else ''
        update = self.adapter_B if self.adapter_A is None else self.adapter_B @ self.adapter_A
        weights = {f'{prefix}weight': torch.addmm(plain.weight, update, plain.weight)}
        if plain.bias is not None:
            weights[f'{prefix}bias'] = torch.addmv(plain.bias, update, plain.bias)
        return weights


class RAdapterLinear(RAdapterLayer, nn.Linear):
    """A linear layer, and an adapter."""

    def forward(self, x: Tensor) -> Tensor:
        return self.adapt_output(super().forward(x))


class RAdapterMultiheadAttention(RAdapterLayer, nn.MultiheadAttention):
    """Attention, and an adapter of its output."""

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        output, weights = super().forward(*args, **kwargs)
        if self.batch_first:
            return self.adapt_output(output), weights
        return self.adapt_output(output.transpose(0, 1)).transpose(0, 1), weights


class RAdapterLeanAttention(RAdapterMultiheadAttention, LeanAttention):
    """:class:`RAdapterMultiheadAttention` with the faster forward pass."""
