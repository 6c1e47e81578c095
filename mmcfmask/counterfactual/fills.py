"""Fills: what replaces the patches that were taken out."""

from __future__ import annotations

import torch
from torch import Tensor

FILLS = ('none', 'single', 'multi')
DONORS = ('any', 'other_class')


def single_donors(
    batch: int,
    device: torch.device | str = 'cpu',
    generator: torch.Generator | None = None,
    labels: Tensor | None = None,
    num: int | None = None,
) -> Tensor:
    """One donor per image: a random cycle through the batch, so that every image gives once, and never to itself.

    With ``labels``, the donor has another class wherever the batch has one. Every image still gives once if no class
    has more than half of the batch. Otherwise the m images of the largest class share the B − m others as evenly as
    possible, and B − m of the m give once.

    Args:
        batch (int): B, at least 2.
        device: Of the result.
        generator (torch.Generator, optional): On ``device``.
        labels (Tensor, optional): (B,) int64, on ``device``. None: donors of any class. Ours, not published.
        num (int, optional): Draw so many donors for every image, each of them as above, and the first two different
            ones where the image has two candidates. The first are those of ``num=None``.

    Returns:
        Tensor: (B,) int64, or (num, B).
    """
    order = torch.rand(batch, device=device, generator=generator).argsort()
    turn = torch.arange(num or 1, device=device)[:, None]
    place = torch.arange(batch, device=device)
    if labels is None:
        target = place - 1 - turn % max(batch - 1, 1)
    else:
        order, size = _sort_by_class(order, labels)
        most = size.max()
        shifts = (batch - 2 * most).clamp(min=0) + 1
        # Moved by `most` to B − most places, a class of at most `most` images lands outside of itself.
        shift = (torch.rand((), device=device, generator=generator) * shifts).long()
        moved = place + most + (shift + turn) % shifts
        rest = batch - most  # the largest class comes first, see _sort_by_class
        shared = torch.where(place < most, most + (place + turn) % rest.clamp(min=1), (place - most + turn) % most)
        alone = place + 1 + turn % max(batch - 1, 1)
        target = torch.where(2 * most < batch, moved, torch.where(rest > 0, shared, alone))
    donors = torch.empty_like(target).scatter_(1, order.expand_as(target), order[target % batch])
    return donors[0] if num is None else donors


def multi_donors(
    shape: tuple[int, int, int],
    device: torch.device | str = 'cpu',
    generator: torch.Generator | None = None,
    labels: Tensor | None = None,
    num: int | None = None,
) -> Tensor:
    """One donor per patch: uniform over the other images of the batch, or, with ``labels``, over those of other classes
    (over all others where the batch has a single class).

    Args:
        shape (tuple[int, int, int]): B, h and w, with B of at least 2.
        device, generator, labels, num: As in :func:`single_donors`, for every patch.

    Returns:
        Tensor: (B, h, w) int64, or (num, B, h, w).
    """
    batch = shape[0]
    turn = torch.arange(num or 1, device=device)[:, None, None, None]
    place = torch.arange(batch, device=device)[:, None, None]
    if labels is None:
        shift = torch.randint(1, batch, shape, device=device, generator=generator)
        donors = (place + 1 + (shift - 1 + turn) % (batch - 1)) % batch
    else:
        order, size = _sort_by_class(torch.rand(batch, device=device, generator=generator).argsort(), labels)
        # In this order the images of a class are neighbours, so the others follow its last one, in a circle.
        places = order.argsort()
        last = torch.where(labels[:, None] == labels, places, 0).amax(dim=1)
        first = torch.where(size < batch, last, places)[:, None, None] + 1
        others = torch.where(size < batch, batch - size, batch - 1)[:, None, None]
        shift = (torch.rand(shape, device=device, generator=generator) * others).long()
        donors = order[(first + (shift + turn) % others) % batch]
    return donors[0] if num is None else donors


def _sort_by_class(order: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The images of a batch, sorted by class: first a class that has half of the batch or more, then all others in
    random order; and the size of the class of every image.

    Args:
        order (Tensor): (B,) int64, a random permutation, which decides.
        labels (Tensor): (B,) int64.
    """
    batch = len(order)
    rank = torch.empty_like(order).scatter_(0, order, torch.arange(batch, device=order.device))
    same = labels[:, None] == labels
    size = same.sum(dim=1)
    leader = torch.where(same, rank, batch).amin(dim=1)  # of the class: its lowest rank
    leader = torch.where(2 * size >= batch, leader - batch, leader)
    return (leader * batch + rank).argsort(), size


def choose_donors(
    fill: str,
    shape: tuple[int, int, int],
    device: torch.device | str = 'cpu',
    generator: torch.Generator | None = None,
    labels: Tensor | None = None,
    num: int | None = None,
) -> Tensor:
    """The donor of every patch, (B, h, w) int64, or (num, B, h, w), of a ``single`` or ``multi`` fill: see
    :func:`single_donors` and :func:`multi_donors`.

    Raises:
        ValueError: Unknown fill, or a batch of one.
    """
    if fill not in FILLS[1:]:
        raise ValueError(f'unknown fill {fill!r}: choose from {", ".join(FILLS[1:])}')
    batch, rows, cols = shape
    if batch < 2:
        raise ValueError(
            'a fill takes patches from other images, so it needs at least 2 images per process, but got a batch of '
            f'{batch}: raise the batch size (and set drop_last=True), or hide the patches (fill="none" in a config)'
        )
    if fill == 'multi':
        return multi_donors(shape, device, generator, labels, num)
    donors = single_donors(batch, device, generator, labels, num)
    return donors[..., None, None].expand(*donors.shape, rows, cols)


def replace_patches(images: Tensor, mask: Tensor, donors: Tensor) -> Tensor:
    """Replace the masked patches of every image by those of other images, from the same positions.

    Args:
        images (Tensor): (B, C, H, W), any dtype.
        mask (Tensor): (B, h, w) bool, True where the patch is to be replaced, see :func:`check_sizes`.
        donors (Tensor): (B, h, w) int64, the images that give.

    Returns:
        Tensor: (B, C, H, W), a new tensor of the dtype of ``images``.

    Raises:
        ValueError: Sizes that do not fit.
    """
    check_sizes(images, mask)
    (height, width), (rows, cols) = images.shape[2:], mask.shape[1:]
    if height % rows or width % cols:
        return _replace_pixels(images, mask, donors)
    # (B, C, H, W) seen as patches (B, h, w, C, H/h, W/w): no copy.
    patches = images.unflatten(3, (cols, -1)).unflatten(2, (rows, -1)).permute(0, 2, 4, 1, 3, 5)
    row = torch.arange(rows, device=images.device)[:, None]
    col = torch.arange(cols, device=images.device)
    filled = torch.where(mask[..., None, None, None], patches[donors, row, col], patches)
    return filled.permute(0, 3, 1, 4, 2, 5).reshape(images.shape)


def _replace_pixels(images: Tensor, mask: Tensor, donors: Tensor) -> Tensor:
    """:func:`replace_patches` for patches of unequal sizes: pixel i of H belongs to patch ⌊i h / H⌋ of h."""
    row, col = (
        torch.arange(size, device=images.device) * num // size for size, num in zip(images.shape[2:], mask.shape[1:])
    )
    mask, donors = (x[:, row[:, None], col] for x in (mask, donors))  # (B, H, W)
    y, x = (torch.arange(size, device=images.device) for size in images.shape[2:])
    given = images.movedim(1, -1)[donors, y[:, None], x].movedim(-1, 1)
    return torch.where(mask[:, None], given, images).contiguous()


def check_sizes(images: Tensor, mask: Tensor) -> None:
    """Raise ValueError unless ``mask`` (B, h, w) has at most one patch per pixel of ``images`` (B, C, H, W).

    Where h and w do not divide H and W, patches differ in size by a pixel.
    """
    fits = images.ndim == 4 and mask.ndim == 3 and len(mask) == len(images)
    if not fits or any(num > size or not num for num, size in zip(mask.shape[1:], images.shape[2:])):
        raise ValueError(
            f'a mask of shape {tuple(mask.shape)} does not fit images of shape {tuple(images.shape)}: it must be '
            '(B, h, w) for images (B, C, H, W), with h and w of at most H and W'
        )


def refill(
    images: Tensor,
    mask: Tensor,
    fill: str,
    generator: torch.Generator | None = None,
    labels: Tensor | None = None,
) -> Tensor:
    """Replace the masked patches of every image by patches of other images of the batch, from the same positions
    (CVPR 2023, section 3.2).

    ``single``: all masked patches of an image come from one other image. ``multi``: each patch draws its own donor. An
    image is never its own donor (the published single fill allows it with probability 1/B).

    Args:
        images (Tensor): (B, C, H, W), any dtype.
        mask (Tensor): (B, h, w) bool, True where the patch is to be replaced, see :func:`check_sizes`.
        fill (str): 'single' or 'multi'.
        generator (torch.Generator, optional): On the device of ``images``.
        labels (Tensor, optional): (B,) int64: donors have another class where the batch has one. Ours, not published.
            None: donors of any class.

    Returns:
        Tensor: (B, C, H, W), a new tensor of the dtype of ``images``.

    Raises:
        ValueError: Unknown fill, a batch of one, or sizes that do not fit.
    """
    check_sizes(images, mask)
    batch, rows, cols = mask.shape
    return replace_patches(images, mask, choose_donors(fill, (batch, rows, cols), images.device, generator, labels))
