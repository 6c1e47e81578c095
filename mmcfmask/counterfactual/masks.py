"""Masks: which patches to take out."""

from __future__ import annotations

import torch
from torch import Tensor

MASKS = ('object', 'context', 'random')


def check_value(kind: str, value: float) -> None:
    """Raise ValueError unless ``kind`` is a known mask and ``value`` its threshold or probability in [0, 1]."""
    if kind not in MASKS:
        raise ValueError(f'unknown mask {kind!r}: choose from {", ".join(MASKS)}')
    if not 0 <= value <= 1:
        what = 'probability' if kind == 'random' else 'threshold'
        raise ValueError(f'the {what} of the {kind} mask must lie in [0, 1], but is {value}')


def patch_mask(relevance: Tensor, kind: str, value: float, generator: torch.Generator | None = None) -> Tensor:
    """Choose patches by their relevance (CVPR 2023, section 3.2).

    With c = relevance / (max over the image + 1e-8): ``object`` is c > value, ``context`` its complement, ``random``
    ignores the relevance and takes each patch with probability ``value``.

    Args:
        relevance (Tensor): (B, h, w), ≥ 0. For ``random`` only its shape and device matter.
        kind (str): 'object', 'context' or 'random'.
        value (float): Threshold or probability, in [0, 1].
        generator (torch.Generator, optional): On the device of ``relevance``; for ``random``.

    Returns:
        Tensor: (B, h, w) bool, True where the patch is to be taken out.

    Raises:
        ValueError: Unknown kind, or value outside [0, 1].
    """
    check_value(kind, value)
    if kind == 'random':
        return torch.rand(relevance.shape, device=relevance.device, generator=generator) < value
    normalised = relevance / (relevance.amax(dim=(1, 2), keepdim=True) + 1e-8)
    return normalised > value if kind == 'object' else ~(normalised > value)


def num_kept(num_patches: int, probability: float) -> int:
    """Patches kept per image when a fixed share is dropped: int(n (1 − p))."""
    return int(num_patches * (1 - probability))


def exact_random_mask(
    shape: tuple[int, int, int],
    probability: float,
    device: torch.device | str = 'cpu',
    generator: torch.Generator | None = None,
) -> Tensor:
    """Take out the same number of random patches of every image, keeping int(n (1 − p)): the random mask without a
    fill.

    Returns:
        Tensor: (B, h, w) bool, True where the patch is to be taken out.
    """
    check_value('random', probability)
    batch, height, width = shape
    order = torch.rand(batch, height * width, device=device, generator=generator).argsort(dim=1)
    return (order.argsort(dim=1) >= num_kept(height * width, probability)).view(shape)
