"""Random views and colours, and crops by relevance."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def random_views(
    images: Tensor,
    probability: float = 1.0,
    rotation: float = 30.0,
    zoom: float = 2.0,
    shift: float = 0.25,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Rotate, zoom and shift each image at random, with bilinear interpolation and reflection at the borders.

    Every image draws an angle, uniform in ± ``rotation``; a factor, log-uniform in 1/zoom … zoom; and a shift, uniform
    in ± ``shift`` in each direction.

    Args:
        images (Tensor): (B, C, H, W), floating point.
        probability (float): Of each image to be changed at all, in [0, 1].
        rotation (float): Degrees.
        zoom (float): At least 1.
        shift (float): Share of the side, at least 0.
        generator (torch.Generator, optional): On the device of ``images``.

    Returns:
        Tensor: (B, C, H, W), of the dtype of ``images``.

    Raises:
        ValueError: Arguments outside their range.
    """
    if not 0 <= probability <= 1 or not 0 <= rotation <= 180 or zoom < 1 or shift < 0:
        raise ValueError(
            'views need probability in [0, 1], rotation in [0, 180], zoom of at least 1 and shift of at least 0, but '
            f'got probability={probability}, rotation={rotation}, zoom={zoom}, shift={shift}'
        )
    batch, _, height, width = images.shape
    changed, turn, factor, right, down = torch.rand(5, batch, device=images.device, generator=generator).unbind()
    angle = math.radians(rotation) * (2 * turn - 1)
    scale = zoom ** (1 - 2 * factor)  # of the sampling grid: above 1, the object becomes smaller
    cos, sin = scale * angle.cos(), scale * angle.sin()
    # Coordinates of an image run from -1 to 1; rotation in pixels, whatever the aspect ratio.
    rows = [
        torch.stack([cos, -sin * height / width, 2 * shift * (2 * right - 1)], dim=1),
        torch.stack([sin * width / height, cos, 2 * shift * (2 * down - 1)], dim=1),
    ]
    theta = torch.where(
        changed[:, None, None] < probability, torch.stack(rows, dim=1), torch.eye(2, 3, device=images.device)
    )
    return _sample(images, theta, 'reflection')


def random_color_mixing(images: Tensor, probability: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
    """Mix the channels of each image by a random matrix: x ← M x, with M ~ N(0, 1/3) drawn for every image.

    On normalised images (mean 0, variance 1 per channel) the expected variance does not change. The results include
    negatives, greys and false colours.

    Args:
        images (Tensor): (B, 3, H, W), normalised, floating point.
        probability (float): Of each image to be changed at all, in [0, 1].
        generator (torch.Generator, optional): On the device of ``images``.

    Returns:
        Tensor: (B, 3, H, W), of the dtype of ``images``.

    Raises:
        ValueError: A probability outside [0, 1].
    """
    if not 0 <= probability <= 1:
        raise ValueError(f'color_mixing={probability} is the probability of mixed channels, in [0, 1]')
    batch, channels = images.shape[:2]
    changed = torch.rand(batch, 1, 1, device=images.device, generator=generator) < probability
    mixing = torch.randn(batch, channels, channels, device=images.device, generator=generator) / channels**0.5
    mixing = torch.where(changed, mixing, torch.eye(channels, device=images.device)).to(images.dtype)
    with torch.autocast(images.device.type, enabled=False):  # the images keep their dtype
        return (mixing @ images.flatten(2)).view_as(images)


def relevance_center(relevance: Tensor) -> Tensor:
    """The centre of relevance of each image: the mean position of its patches, weighted by squared relevance, so that
    many patches of low relevance do not pull it to the middle.

    Args:
        relevance (Tensor): (B, h, w), ≥ 0.

    Returns:
        Tensor: (B, 2) float32, right and down, in (-1, 1) from edge to edge; (0, 0) if no patch is relevant.
    """
    height, width = relevance.shape[1:]
    weights = relevance.float().square()
    total = weights.sum(dim=(1, 2)).clamp(min=torch.finfo(torch.float32).tiny)
    right, down = _middles(width, relevance), _middles(height, relevance)
    return torch.stack(
        [(weights.sum(dim=1) * right).sum(dim=1) / total, (weights.sum(dim=2) * down).sum(dim=1) / total], dim=1
    )


def part_of_grid(center: Tensor, side: float, grid: tuple[int, int]) -> Tensor:
    """Which patches have their middle in the crop of :func:`zoom_in`.

    Args:
        center (Tensor): (B, 2), see :func:`zoom_in`.
        side (float): See :func:`zoom_in`.
        grid (tuple[int, int]): Rows and columns of patches.

    Returns:
        Tensor: (B, h, w) bool.
    """
    right, down = center.float().clamp(side - 1, 1 - side).unbind(dim=1)
    rows, cols = (_middles(num, center) for num in grid)
    return ((rows - down[:, None]).abs() <= side)[:, :, None] & ((cols - right[:, None]).abs() <= side)[:, None]


def _middles(num: int, like: Tensor) -> Tensor:
    """Middles of ``num`` patches in a row, in (-1, 1) from edge to edge."""
    return (2 * torch.arange(num, device=like.device) + 1) / num - 1


def zoom_in(images: Tensor, center: Tensor, side: float) -> Tensor:
    """Crop each image around ``center``, within its borders, to ``side`` times its height and width, and resize the
    crop to the size of the image (bilinear).

    Args:
        images (Tensor): (B, C, H, W), floating point.
        center (Tensor): (B, 2), right and down, in [-1, 1] from edge to edge.
        side (float): In (0, 1].

    Returns:
        Tensor: (B, C, H, W), of the dtype of ``images``.

    Raises:
        ValueError: ``side`` outside its range.
    """
    if not 0 < side <= 1:
        raise ValueError(f'the side of the crop must lie in (0, 1], but it is {side:g}')
    center = center.float().clamp(side - 1, 1 - side)
    scale = torch.eye(2, device=images.device).mul(side).expand(len(images), 2, 2)
    return _sample(images, torch.cat([scale, center[:, :, None]], dim=2), 'border')


def _sample(images: Tensor, theta: Tensor, outside: str) -> Tensor:
    """``images`` by the affine maps ``theta`` (B, 2, 3) float32, bilinear. In float32 under autocast too, which would
    round positions to half a pixel."""
    with torch.autocast(images.device.type, enabled=False):
        grid = F.affine_grid(theta, list(images.shape), align_corners=False)
        return F.grid_sample(images.float(), grid, padding_mode=outside, align_corners=False).to(images.dtype)
