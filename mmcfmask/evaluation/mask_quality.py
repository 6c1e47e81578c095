"""How well a relevance map finds the object, if the object is known, and how much the prediction depends on it."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..counterfactual import object_coverage


def object_patches(objects: Tensor, grid: tuple[int, int]) -> Tensor:
    """The patches of which the object covers more than half.

    Args:
        objects (Tensor): (B, H, W) bool, ground truth; h and w divide H and W.
        grid (tuple[int, int]): Rows h and columns w of patches.

    Returns:
        Tensor: (B, h, w) bool.
    """
    return object_coverage(objects, grid) > 0.5


def average_precision(relevance: Tensor, patches: Tensor) -> Tensor:
    """Average precision of patches ranked by relevance: the mean of the precision at every patch of the object.

    Patches of equal relevance are taken together, so that their order does not count.

    Args:
        relevance (Tensor): (B, h, w), float.
        patches (Tensor): (B, h, w) bool, see :func:`object_patches`.

    Returns:
        Tensor: (B,) float32 in [0, 1]; NaN where no patch is object.
    """
    values, order = relevance.flatten(1).sort(dim=1, descending=True, stable=True)
    hits = patches.flatten(1).gather(1, order).float()
    places = torch.arange(1, hits.shape[1] + 1, device=hits.device).expand_as(hits)
    ends = F.pad(values[:, :-1] != values[:, 1:], (0, 1), value=True)
    # The place at which the patches of equal relevance end.
    ends = places.masked_fill(~ends, hits.shape[1]).flip(1).cummin(dim=1).values.flip(1)
    precision = hits.cumsum(dim=1).gather(1, ends - 1) / ends
    return (precision * hits).sum(dim=1) / hits.sum(dim=1)


def pointing_hits(relevance: Tensor, patches: Tensor) -> Tensor:
    """Pointing game (Zhang et al. 2016) on patches: whether the most relevant patch is object.

    Args:
        relevance (Tensor): (B, h, w).
        patches (Tensor): (B, h, w) bool, see :func:`object_patches`.

    Returns:
        Tensor: (B,) bool.
    """
    return patches.flatten(1).gather(1, relevance.flatten(1).argmax(dim=1, keepdim=True))[:, 0]


def mask_iou(mask: Tensor, objects: Tensor) -> Tensor:
    """Intersection over union of the masked patches with the object.

    Args:
        mask (Tensor): (B, h, w) bool, e.g. an object mask of :func:`mmcfmask.counterfactual.patch_mask`.
        objects (Tensor): (B, h, w) bool, patches of the object; or (B, H, W) bool, its pixels: h and w divide H and W.

    Returns:
        Tensor: (B,) float32 in [0, 1]; 0 where both are empty.
    """
    pixels = F.interpolate(mask[:, None].float(), size=objects.shape[1:], mode='nearest')[:, 0] > 0.5
    union = (pixels | objects).sum(dim=(1, 2))
    return (pixels & objects).sum(dim=(1, 2)) / union.clamp(min=1)


def best_iou(grid: tuple[int, int], objects: Tensor) -> Tensor:
    """The highest IoU in pixels that any selection of patches can reach, (B,) float32; below 1, because patches are
    coarse.

    The best mask takes patches in the order of how much of each the object covers, so trying every prefix finds it.
    """
    size = (objects.shape[1] // grid[0]) * (objects.shape[2] // grid[1])
    covered = object_coverage(objects, grid).flatten(1) * size
    covered = covered.sort(dim=1, descending=True).values.cumsum(dim=1)
    taken = size * covered.new_ones(covered.shape).cumsum(dim=1)
    total = objects.flatten(1).sum(dim=1, keepdim=True)
    return (covered / (taken + total - covered)).amax(dim=1)


def blurred(images: Tensor, sigma: float) -> Tensor:
    """Images under a Gaussian blur, cut off at 3 σ or the side of the image; at the border, images are mirrored.

    Args:
        images (Tensor): (B, C, H, W) float.
        sigma (float): Standard deviation in pixels, above 0.

    Returns:
        Tensor: (B, C, H, W).
    """
    radius = min(int(3 * sigma), min(images.shape[2:]) - 1)
    steps = torch.arange(-radius, radius + 1, device=images.device, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (steps / sigma) ** 2)
    kernel = (kernel / kernel.sum()).to(images.dtype)
    rows = F.pad(images.flatten(0, 1)[:, None], (radius,) * 4, mode='reflect')
    rows = F.conv2d(F.conv2d(rows, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))
    return rows.view(images.shape)


def deletion_and_insertion(
    classify: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor, relevance: Tensor, steps: int = 10
) -> tuple[Tensor, Tensor]:
    """Probability of the label while patches are deleted, and while they are inserted, the most relevant ones first.

    After Petsiuk et al., "RISE" (BMVC 2018), on patches. A deleted patch is replaced by the same patch of the blurred
    image (σ: the side of a patch), in both curves. RISE deletes to grey and inserts into a blurred image. A grey patch
    has edges that no natural image has, which alone may change the prediction; a blurred one has none.

    Args:
        classify (Callable): Images (B, 3, H, W) to logits (B, C).
        images (Tensor): (B, 3, H, W), normalised; h and w divide H and W.
        labels (Tensor): (B,) int64.
        relevance (Tensor): (B, h, w).
        steps (int): The curves have the shares 0, 1 / steps, ..., 1 of the patches.

    Returns:
        tuple[Tensor, Tensor]: Deletion and insertion, (B, steps + 1, 2) float32: the probability of the label, and 1
        where the label has the highest one, else 0. A good map has a low curve of deletion and a high one of insertion.
    """
    grid = relevance.shape[1:]
    smooth = blurred(images, max(images.shape[2] / grid[0], 1.0))
    order = relevance.flatten(1).argsort(dim=1, descending=True, stable=True)
    ranks = torch.empty_like(order).scatter_(
        1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
    )

    def judge(inputs: Tensor) -> Tensor:
        logits = classify(inputs).float()
        probability = logits.softmax(dim=1).gather(1, labels[:, None])[:, 0]
        return torch.stack([probability, (logits.argmax(dim=1) == labels).float()], dim=1)

    whole, none = judge(images), judge(smooth)
    deletion, insertion = [whole], [none]
    for step in range(1, steps):
        first = ranks < round(order.shape[1] * step / steps)
        pixels = F.interpolate(first.view(-1, 1, *grid).float(), size=images.shape[2:], mode='nearest') > 0.5
        deletion.append(judge(torch.where(pixels, smooth, images)))
        insertion.append(judge(torch.where(pixels, images, smooth)))
    return torch.stack([*deletion, none], dim=1), torch.stack([*insertion, whole], dim=1)


def area_under(curves: Tensor) -> Tensor:
    """Area under curves of equal steps from 0 to 1, by trapezoids.

    Args:
        curves (Tensor): (..., S), two or more values.

    Returns:
        Tensor: (...).
    """
    return torch.trapezoid(curves, dx=1 / (curves.shape[-1] - 1), dim=-1)
