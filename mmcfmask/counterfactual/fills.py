"""Fills: what replaces the patches that were taken out."""

from __future__ import annotations

import torch
from torch import Tensor

FILLS = ('none', 'single', 'multi')


def single_donors(batch: int, device: torch.device | str = 'cpu', generator: torch.Generator | None = None) -> Tensor:
    """One donor per image, (B,) int64: a random cycle through the batch, so that every image gives once, and never to
    itself."""
    order = torch.rand(batch, device=device, generator=generator).argsort()
    return torch.empty_like(order).scatter_(0, order, order.roll(1))


def multi_donors(
    shape: tuple[int, int, int], device: torch.device | str = 'cpu', generator: torch.Generator | None = None
) -> Tensor:
    """One donor per patch, (B, h, w) int64: uniform over the other images of the batch."""
    batch = shape[0]
    shift = torch.randint(1, batch, shape, device=device, generator=generator)
    return (torch.arange(batch, device=device)[:, None, None] + shift) % batch


def refill(images: Tensor, mask: Tensor, fill: str, generator: torch.Generator | None = None) -> Tensor:
    """Replace the masked patches of every image by patches of other images of the batch, from the same positions
    (CVPR 2023, section 3.2).

    ``single``: all masked patches of an image come from one other image. ``multi``: each patch draws its own donor. An
    image is never its own donor (the published single fill allows it with probability 1/B).

    Args:
        images (Tensor): (B, C, H, W), any dtype.
        mask (Tensor): (B, h, w) bool, True where the patch is to be replaced; h and w divide H and W.
        fill (str): 'single' or 'multi'.
        generator (torch.Generator, optional): On the device of ``images``.

    Returns:
        Tensor: (B, C, H, W), a new tensor of the dtype of ``images``.

    Raises:
        ValueError: Unknown fill, a batch of one, or sizes that do not fit.
    """
    if fill not in FILLS[1:]:
        raise ValueError(f'unknown fill {fill!r}: choose from {", ".join(FILLS[1:])}')
    batch, height, width = len(images), *images.shape[-2:]
    if batch < 2:
        raise ValueError(
            'a fill takes patches from other images, so it needs at least 2 images per process, but got a batch of '
            f'{batch}: raise the batch size (and set drop_last=True), or hide the patches (fill="none" in a config)'
        )
    if images.ndim != 4 or mask.ndim != 3 or len(mask) != batch or height % mask.shape[1] or width % mask.shape[2]:
        raise ValueError(
            f'a mask of shape {tuple(mask.shape)} does not fit images of shape {tuple(images.shape)}: it must be '
            '(B, h, w) for images (B, C, H, W), where h and w divide H and W'
        )
    rows, cols = mask.shape[1:]
    # (B, C, H, W) seen as patches (B, h, w, C, H/h, W/w): no copy.
    patches = images.unflatten(3, (cols, -1)).unflatten(2, (rows, -1)).permute(0, 2, 4, 1, 3, 5)
    if fill == 'single':
        donors = single_donors(batch, images.device, generator)[:, None, None].expand(mask.shape)
    else:
        donors = multi_donors((batch, rows, cols), images.device, generator)
    row = torch.arange(rows, device=images.device)[:, None]
    col = torch.arange(cols, device=images.device)
    filled = torch.where(mask[..., None, None, None], patches[donors, row, col], patches)
    return filled.permute(0, 3, 1, 4, 2, 5).reshape(images.shape)
