"""The line between two sets of weights (WiSE-FT: Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR
2022)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..errors import ConfigError


def check_same_model(
    first: Mapping[str, Tensor], second: Mapping[str, Tensor], what: str = 'the pre-trained and the fine-tuned weights'
) -> None:
    """Raise a ValueError, naming a tensor, unless both hold the same tensors in the same shapes."""
    only = sorted(first.keys() ^ second.keys())
    if only:
        raise ConfigError(
            f'{what} are not of one model: {len(only)} tensors are in one of them only, such as {only[0]}'
        )
    for name, value in first.items():
        if value.shape != second[name].shape:
            raise ConfigError(
                f'{what} are not of one model: {name} has the shapes {tuple(value.shape)} and '
                f'{tuple(second[name].shape)}'
            )


def interpolate(theta0: Mapping[str, Tensor], theta1: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """θ = (1 − α) θ0 + α θ1, over all weights, in float32 or better; exactly θ0 at α = 0 and θ1 at α = 1.

    Args:
        theta0 (Mapping[str, Tensor]): Pre-trained weights.
        theta1 (Mapping[str, Tensor]): Fine-tuned weights; the same names and shapes.
        alpha (float): In [0, 1].

    Returns:
        dict[str, Tensor]: New tensors, on the device and in the dtype of ``theta1``. What is not floating point
        (counters, masks) is ``theta1``'s.

    Raises:
        ValueError: α outside [0, 1], or weights of different models.
    """
    if not 0 <= alpha <= 1:
        raise ConfigError(f'alpha={alpha} must lie in [0, 1]: 0 is the pre-trained model, 1 the fine-tuned one')
    check_same_model(theta0, theta1)
    return {name: lerp(theta0[name], end, alpha) for name, end in theta1.items()}


def lerp(start: Tensor, end: Tensor, alpha: float) -> Tensor:
    """:func:`interpolate` for one tensor."""
    if not end.is_floating_point():
        return end.clone()
    dtype = torch.promote_types(torch.promote_types(start.dtype, end.dtype), torch.float32)
    # torch.lerp starts from the nearer end, so that both ends are exact.
    return torch.lerp(start.to(end.device, dtype), end.to(dtype), alpha).to(end.dtype)


def fingerprint(module: nn.Module) -> Tensor:
    """Norms (number of weights,), float64, on the device of ``module``: they change with its weights."""
    with torch.no_grad():
        return torch.stack([weight.double().norm() for weight in module.parameters()])
