"""A second, closer look at what the first one found relevant."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ...counterfactual import logits_and_relevance, relevance_center, zoom_in
from ...errors import ConfigError

CROP_SCALE = 0.9
"""Side of the part, as chosen on the held-out images of the built-in benchmark (docs/results.md)."""


IMAGES_AT_ONCE = 32
"""Whose activations are kept for the backward pass: a test takes no more memory for larger batches."""


def check_crop_scale(side: float) -> None:
    """Raise a ValueError unless ``side`` is that of a part to zoom in to."""
    if isinstance(side, bool) or not isinstance(side, (int, float)) or not 0 < side < 1:
        raise ConfigError(
            f'crop_scale is the side of the part to zoom in to, relative to the image, in (0, 1), but is {side!r}'
        )


def predict_with_crop(tower: nn.Module, classify: Callable[[Tensor], Tensor], images: Tensor, side: float) -> Tensor:
    """The mean of two logits: those of an image, and those of the part of it that speaks for its predicted class::

        logits(x) ← (logits(x) + logits(zoom(x))) / 2      zoom: around the center of the relevance R of argmax
        logits(x)

    That to zoom in makes classifiers, CLIP among them, more accurate on small and off-center objects was shown by
    Taesiri et al., "ImageNet-Hard" (NeurIPS 2023), who average views of fixed places; the place by relevance is ours.
    Costs a backward and a second forward pass.

    Args:
        tower (nn.Module): The image tower that ``classify`` goes through.
        classify (Callable): Makes logits (B, C) of images.
        images (Tensor): (B, 3, H, W), normalised.
        side (float): Of the part, relative to the image's; in (0, 1].

    Returns:
        Tensor: (B, C).
    """
    scores = []
    for part in images.split(IMAGES_AT_ONCE):
        logits, relevance = logits_and_relevance(tower, classify, part)
        scores.append((logits + classify(zoom_in(part, relevance_center(relevance), side))) / 2)
    return torch.cat(scores)
