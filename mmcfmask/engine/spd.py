"""SPD, selective projection decay: a decay towards the pretrained weights, where the loss asks for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from mmpretrain.registry import OPTIMIZERS
from torch import Tensor
from torch.distributed.fsdp import FlatParameter

from ..errors import ConfigError
from ..ranges import NonNegative


def project(moved: Tensor, pretrained: Tensor, distance: Tensor, inner: Tensor, strength: float) -> Tensor:
    """θ′ − λ r (θ′ − θ₀) where ⟨g, θ − θ₀⟩ > 0, and θ′ elsewhere, with the deviation ratio
    r = clip((‖θ′ − θ₀‖ − ‖θ − θ₀‖) / ‖θ′ − θ₀‖, 0, 1) (Tian et al., "Rethinking Weight Decay for Robust Fine-Tuning of
    Foundation Models", NeurIPS 2024, algorithm 2).

    The gradient then asks for a way back to θ₀, and r > 0 says that the step went on all the same, by its momentum.
    λ = 1 takes the weights back to the distance from θ₀ that they had before the step.

    Args:
        moved (Tensor): θ′, the weights after the optimizer's step.
        pretrained (Tensor): θ₀, of the same shape.
        distance (Tensor): ‖θ − θ₀‖ before the step, a scalar.
        inner (Tensor): ⟨g, θ − θ₀⟩ before the step, a scalar; g is the gradient.
        strength (float): λ ≥ 0.
    """
    away = moved - pretrained
    norm = away.norm()
    ratio = torch.where((inner > 0) & (norm > 0), ((norm - distance) / norm).clamp(0, 1), 0)
    return moved - strength * ratio * away


@OPTIMIZERS.register_module()
class AdamSPD(torch.optim.Adam):
    """torch's ``Adam``, and after every step :func:`project` on every tensor of weights.

    θ₀ are the weights when the optimizer is built. These are the pretrained weights, also of a run that is resumed,
    because the Runner builds the optimizer before it loads the checkpoint. The decay takes the place of weight decay.
    It needs one more copy of the weights.

    Args:
        params, lr, betas, eps: As of ``torch.optim.Adam``.
        spd (float): λ of :func:`project`; 0 is Adam.
        weight_decay (float): Must be 0.
        **kwargs: Other arguments of ``torch.optim.Adam``, such as ``fused``.

    Raises:
        ConfigError: A weight decay; weights that FSDP splits, whose norms are not those of a tensor.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        spd: NonNegative = 1.0,
        weight_decay: float = 0.0,
        **kwargs,
    ) -> None:
        if weight_decay:
            raise ConfigError(
                f'AdamSPD decays towards the pretrained weights in place of weight decay: set weight_decay=0 (it is '
                f'{weight_decay:g}) and choose the strength with spd={spd:g}'
            )
        super().__init__(params, lr=lr, betas=betas, eps=eps, **kwargs)
        weights = [weight for group in self.param_groups for weight in group['params']]
        if any(isinstance(weight, FlatParameter) or hasattr(weight, 'full_tensor') for weight in weights):
            raise ConfigError('AdamSPD compares whole tensors of weights, which FSDP splits: train with DDP')
        self.strength = spd
        with torch.no_grad():
            self.pretrained = [[weight.clone() for weight in group['params']] for group in self.param_groups]

    @torch.no_grad()
    def step(self, closure: Callable | None = None):
        """One step of Adam and the projection of every tensor that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        moving = [
            (weight, start)
            for group, starts in zip(self.param_groups, self.pretrained)
            for weight, start in zip(group['params'], starts)
            if weight.grad is not None
        ]
        before = [((weight - start).norm(), (weight.grad * (weight - start)).sum()) for weight, start in moving]
        super().step()
        for (weight, start), (distance, inner) in zip(moving, before):
            weight.copy_(project(weight, start, distance, inner, self.strength))
        return loss
