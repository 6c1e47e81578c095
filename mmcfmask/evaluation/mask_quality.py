"""How well a relevance map finds the object, if the object is known."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def mask_iou(mask: Tensor, objects: Tensor) -> Tensor:
    """Intersection over union of the masked patches with the object, in pixels.

    Args:
        mask (Tensor): (B, h, w) bool, e.g. an object mask of :func:`mmcfmask.counterfactual.patch_mask`.
        objects (Tensor): (B, H, W) bool, ground truth; h and w divide H and W.

    Returns:
        Tensor: (B,) float32 in [0, 1]; 0 where both are empty.
    """
    pixels = F.interpolate(mask[:, None].float(), size=objects.shape[1:], mode='nearest')[:, 0] > 0.5
    union = (pixels | objects).sum(dim=(1, 2))
    return (pixels & objects).sum(dim=(1, 2)) / union.clamp(min=1)


def best_iou(grid: tuple[int, int], objects: Tensor) -> Tensor:
    """The highest IoU that any selection of patches can reach, (B,) float32; below 1, because patches are coarse.

    The best mask takes patches in the order of how much of each the object covers, so trying every prefix finds it.
    """
    size = (objects.shape[1] // grid[0]) * (objects.shape[2] // grid[1])
    covered = F.adaptive_avg_pool2d(objects[:, None].float(), grid).flatten(1) * size
    covered = covered.sort(dim=1, descending=True).values.cumsum(dim=1)
    taken = size * covered.new_ones(covered.shape).cumsum(dim=1)
    total = objects.flatten(1).sum(dim=1, keepdim=True)
    return (covered / (taken + total - covered)).amax(dim=1)


def pointing_hits(relevance: Tensor, objects: Tensor) -> Tensor:
    """Pointing game (Zhang et al. 2016) on patches: whether the most relevant patch contains a pixel of the object.

    Args:
        relevance (Tensor): (B, h, w).
        objects (Tensor): (B, H, W) bool; h and w divide H and W.

    Returns:
        Tensor: (B,) bool.
    """
    touched = F.adaptive_max_pool2d(objects[:, None].float(), relevance.shape[1:])[:, 0].flatten(1) > 0
    return touched.gather(1, relevance.flatten(1).argmax(dim=1, keepdim=True))[:, 0]
