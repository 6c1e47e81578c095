"""Linear interpolation of weights (WiSE-FT: Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..errors import ConfigError


def check_same_model(
    first: Mapping[str, Tensor], second: Mapping[str, Tensor], what: str = 'the pretrained and the fine-tuned weights'
) -> None:
    """Raise a ConfigError that names a tensor, unless both hold the same names and shapes."""
    only = sorted(first.keys() ^ second.keys())
    if only:
        raise ConfigError(
            f'{what} are not of the same model: {len(only)} tensors are in only one of them, such as {only[0]}'
        )
    for name, value in first.items():
        if value.shape != second[name].shape:
            raise ConfigError(
                f'{what} are not of the same model: {name} has the shapes {tuple(value.shape)} and '
                f'{tuple(second[name].shape)}'
            )


def interpolate(theta0: Mapping[str, Tensor], theta1: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """θ = (1 − α) θ0 + α θ1, over all weights, in float32 or better; exactly θ0 at α = 0 and θ1 at α = 1.

    Args:
        theta0 (Mapping[str, Tensor]): Pretrained weights.
        theta1 (Mapping[str, Tensor]): Fine-tuned weights; the same names and shapes.
        alpha (float): In [0, 1].

    Returns:
        dict[str, Tensor]: New tensors, on the device and in the dtype of ``theta1``. Tensors that are not floating
        point (counters, masks) are copied from ``theta1``.

    Raises:
        ConfigError: α outside [0, 1], or weights of different models.
    """
    if not 0 <= alpha <= 1:
        raise ConfigError(f'alpha={alpha} must lie in [0, 1]: 0 is the pretrained model, 1 the fine-tuned one')
    check_same_model(theta0, theta1)
    return {name: lerp(theta0[name], weight, alpha) for name, weight in theta1.items()}


def lerp(weight0: Tensor, weight1: Tensor, alpha: float) -> Tensor:
    """:func:`interpolate` for one tensor."""
    if not weight1.is_floating_point():
        return weight1.clone()
    dtype = torch.promote_types(torch.promote_types(weight0.dtype, weight1.dtype), torch.float32)
    # torch.lerp starts from the nearer end, so that both ends are exact.
    return torch.lerp(weight0.to(weight1.device, dtype), weight1.to(dtype), alpha).to(weight1.dtype)


def fingerprint(module: nn.Module) -> Tensor:
    """Norms of all weights of ``module``, (number of weights,), float64: they change with the weights."""
    with torch.no_grad():
        return torch.stack([weight.double().norm() for weight in module.parameters()])
