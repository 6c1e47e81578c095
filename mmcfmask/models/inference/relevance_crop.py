"""Relevance crop, a test-time augmentation: look again at the part of the image that speaks for the predicted class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ...counterfactual import logits_and_relevance, relevance_center, zoom_in
from ...errors import ConfigError

CROP_SCALE = 0.9
"""Side of the crop relative to the image: the best on `val` of the built-in benchmark (docs/results/ablations.md)."""

IMAGES_AT_ONCE = 32
"""Images whose activations are kept for the backward pass, so that larger test batches take no more memory."""


def check_crop_scale(crop_scale: float) -> None:
    """Raise a ConfigError unless ``crop_scale`` is a number in (0, 1)."""
    if isinstance(crop_scale, bool) or not isinstance(crop_scale, (int, float)) or not 0 < crop_scale < 1:
        raise ConfigError(
            f'crop_scale is the side of the crop relative to the image, in (0, 1), but it is {crop_scale!r}'
        )


def predict_with_crop(
    tower: nn.Module,
    classify: Callable[[Tensor], Tensor],
    images: Tensor,
    crop_scale: float,
    **relevance: Any,
) -> Tensor:
    """The mean of the logits of an image and of its relevance crop::

        logits(x) ← (logits(x) + logits(crop(x))) / 2

    The crop has ``crop_scale`` times the side of the image and lies around the centre of the relevance of the predicted
    class. Taesiri et al., "ImageNet-Hard" (NeurIPS 2023) showed that zooming in makes classifiers, including CLIP, more
    accurate on small and off-centre objects. They average views of fixed places; the place by relevance is ours. It
    costs a backward and a second forward pass.

    Args:
        tower (nn.Module): The image tower that ``classify`` uses.
        classify (Callable): Images (B, 3, H, W) to logits (B, C).
        images (Tensor): (B, 3, H, W), normalised.
        crop_scale (float): Side of the crop relative to the image, in (0, 1].
        **relevance: Options of the map, see :func:`mmcfmask.counterfactual.relevance_map`.

    Returns:
        Tensor: (B, C).
    """
    scores = []
    for part in images.split(IMAGES_AT_ONCE):
        logits, found = logits_and_relevance(tower, classify, part, **relevance)
        scores.append((logits + classify(zoom_in(part, relevance_center(found), crop_scale))) / 2)
    return torch.cat(scores)
