"""Masks: which patches to take out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

MASKS = ('object', 'context', 'random')


def check_kind(kind: str) -> None:
    """Raise ValueError unless ``kind`` is a known mask."""
    if kind not in MASKS:
        raise ValueError(f'unknown mask {kind!r}: choose from {", ".join(MASKS)}')


def check_share(kind: str, share: float) -> None:
    """Raise ValueError unless ``kind`` is a known mask and ``share`` a share of the patches in [0, 1]."""
    check_kind(kind)
    if not 0 <= share <= 1:
        raise ValueError(f'the share of patches that the {kind} mask takes out must lie in [0, 1], but is {share}')


def check_value(kind: str, value: float) -> None:
    """Raise ValueError unless ``kind`` is a known mask and ``value`` its threshold or probability in [0, 1]."""
    check_kind(kind)
    if not 0 <= value <= 1:
        what = 'probability' if kind == 'random' else 'threshold'
        raise ValueError(f'the {what} of the {kind} mask must lie in [0, 1], but is {value}')


def patch_mask(
    relevance: Tensor,
    kind: str,
    value: float | None = None,
    generator: torch.Generator | None = None,
    share: float | None = None,
) -> Tensor:
    """Choose patches by their relevance (CVPR 2023, section 3.2).

    With c = relevance / (max over the image + 1e-8): ``object`` is c > value, ``context`` its complement, ``random``
    ignores the relevance and takes each patch with probability ``value``.

    With ``share`` in place of ``value``, the mask takes round(share · h w) patches of every image: the most relevant
    ones (``object``), the least relevant ones (``context``) or random ones. Relevance maps of different kinds or towers
    then mask equally much; a threshold does not.

    Args:
        relevance (Tensor): (B, h, w), ≥ 0. For ``random`` only its shape and device matter.
        kind (str): 'object', 'context' or 'random'.
        value (float, optional): Threshold or probability, in [0, 1].
        generator (torch.Generator, optional): On the device of ``relevance``; for ``random``, and for patches of equal
            relevance with ``share``.
        share (float, optional): Share of the patches to take out, in [0, 1].

    Returns:
        Tensor: (B, h, w) bool, True where the patch is to be taken out.

    Raises:
        ValueError: Unknown kind, value or share outside [0, 1], or not exactly one of them.
    """
    if value is not None and share is None:
        check_value(kind, value)
        if kind == 'random':
            return torch.rand(relevance.shape, device=relevance.device, generator=generator) < value
        normalised = relevance / (relevance.amax(dim=(1, 2), keepdim=True) + 1e-8)
        return normalised > value if kind == 'object' else ~(normalised > value)
    if share is None or value is not None:
        raise ValueError('a mask needs either a value (threshold or probability) or a share of the patches')
    check_share(kind, share)
    num = masked_patches(relevance[0].numel(), share)
    if kind == 'random':
        return _highest(torch.zeros_like(relevance, dtype=torch.float32), num, generator)
    return _highest(relevance if kind == 'object' else -relevance, num, generator)


def object_coverage(objects: Tensor, grid: tuple[int, int]) -> Tensor:
    """The share of every patch that the true object covers: the relevance map of an oracle.

    Args:
        objects (Tensor): (B, H, W) bool.
        grid (tuple[int, int]): Rows h and columns w of patches.

    Returns:
        Tensor: (B, h, w) float32 in [0, 1].
    """
    return F.adaptive_avg_pool2d(objects[:, None].float(), grid)[:, 0]


def masked_patches(num_patches: int, share: float) -> int:
    """Patches taken out of an image when a share is given: round(share · n), halves upwards."""
    return int(num_patches * share + 0.5)


def _highest(scores: Tensor, num: int, generator: torch.Generator | None) -> Tensor:
    """(B, h, w) bool: the ``num`` patches of each image with the highest scores; of equal ones, random ones."""
    flat = scores.flatten(1)
    shuffled = torch.rand(flat.shape, device=flat.device, generator=generator).argsort(dim=1)
    order = shuffled.gather(1, flat.gather(1, shuffled).argsort(dim=1, stable=True))
    taken = torch.zeros_like(flat, dtype=torch.bool)
    return taken.scatter_(1, order[:, flat.shape[1] - num :], True).view(scores.shape)


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
