"""From normalised images and a relevance map to counterfactual images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from mmpretrain.models import ClsDataPreprocessor
from mmpretrain.registry import MODELS
from torch import Tensor

from ..counterfactual import (
    FILLS,
    MASKS,
    check_value,
    exact_random_mask,
    num_kept,
    patch_mask,
    random_color_mixing,
    random_views,
    refill,
)
from ..errors import ConfigError
from ..ranges import Share

PUBLISHED_VALUES = {
    ('random', 'none'): 0.75, ('object', 'none'): 0.3, ('context', 'none'): 0.6,
    ('random', 'single'): 0.5, ('object', 'single'): 0.3, ('context', 'single'): 0.5,
    ('random', 'multi'): 0.5, ('object', 'multi'): 0.6, ('context', 'multi'): 0.3,
}  # yapf: disable
"""Published threshold (object, context) or probability (random) of every mask and fill (CVPR 2023, table 5)."""


@dataclass
class Counterfactual:
    """Counterfactual images as a classifier needs them.

    Attributes:
        images (Tensor): (B, 3, H, W), normalised.
        mask (Tensor): (B, h, w) bool, the patches that were taken out.
        hidden (bool): The patches were not replaced: the tower must not see them.
        kept (int, optional): Patches kept of every image where that number is fixed (hidden random patches).
    """

    images: Tensor
    mask: Tensor
    hidden: bool
    kept: int | None = None


@MODELS.register_module()
class CAMRefillDataPreprocessor(ClsDataPreprocessor):
    """mmpretrain's ``ClsDataPreprocessor`` that also makes counterfactual images.

    Args:
        mask (str, optional): 'object' (patches that speak for the class), 'context' (all others) or 'random'. None: no
            patch is taken out, and the student is distilled on the images as they are.
        fill (str): 'none' (patches are hidden), 'single' (replaced from one other image) or 'multi' (from many).
        value (float, optional): Threshold on relevance / max for object and context, probability for random; in [0, 1].
            Defaults to the published value of the pair.
        views (dict, optional): Turn, zoom and shift the counterfactual images at random: arguments of
            :func:`mmcfmask.counterfactual.random_views`, ``dict()`` for its defaults. Ours, not published. Needs a
            fill.
        colors (float): Probability that the channels of a counterfactual image are mixed
            (:func:`mmcfmask.counterfactual.random_color_mixing`). Ours, not published. Needs a fill.
        relevance (str): How relevance is computed: 'attention' (:func:`mmcfmask.counterfactual.attention_relevance`).
        **kwargs: Those of ``ClsDataPreprocessor``; batch augments (mixup, cutmix) excepted.

    Raises:
        ValueError: Unknown mask, fill or relevance, a value outside [0, 1], views without a fill, or batch augments.
    """

    def __init__(
        self,
        mask: str | None = 'object',
        fill: str = 'single',
        value: Share | None = None,
        relevance: str = 'attention',
        views: dict | None = None,
        colors: Share = 0.0,
        **kwargs,
    ) -> None:
        if kwargs.get('batch_augments'):
            raise ConfigError(
                'batch_augments (mixup, cutmix, …) mix images and labels, so a class activation map of one label has '
                'no meaning there: remove batch_augments (or train_cfg.augments) or use ClsDataPreprocessor'
            )
        super().__init__(**kwargs)
        self._non_blocking = True  # from pinned memory; mmpretrain's class has no argument for it
        if mask is not None and mask not in MASKS:
            raise ConfigError(f'unknown mask {mask!r}: choose from {", ".join(MASKS)}, or None for no mask')
        if fill not in FILLS:
            raise ConfigError(f'unknown fill {fill!r}: choose from {", ".join(FILLS)}')
        if relevance != 'attention':
            raise ConfigError(f'unknown relevance {relevance!r}: choose "attention"')
        if mask is not None:
            value = PUBLISHED_VALUES[mask, fill] if value is None else value
            check_value(mask, value)
        if (views is not None or colors) and (mask is None or fill == 'none'):
            raise ConfigError(
                f'views and colors change refilled images, but mask={mask!r}, fill={fill!r}: choose a mask with fill '
                '"single" or "multi" (mask="random", value=0. changes no patch), or views=None, colors=0.'
            )
        for change, arguments in (random_color_mixing, dict(probability=colors)), (random_views, views or {}):
            change(
                torch.zeros(1, 3, 1, 1), generator=torch.Generator(), **arguments
            )  # wrong arguments are an error now, not in training
        self.mask = mask
        self.fill = fill
        self.value = value
        self.relevance = relevance
        self.views = views
        self.colors = colors

    @property
    def needs_relevance(self) -> bool:
        """Whether the mask depends on the image."""
        return self.mask in ('object', 'context')

    def counterfactual(
        self,
        images: Tensor,
        grid: tuple[int, int],
        relevance: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Counterfactual:
        """Cut patches out of normalised images and refill them.

        Args:
            images (Tensor): (B, 3, H, W), normalised.
            grid (tuple[int, int]): Rows and columns of patches.
            relevance (Tensor, optional): (B, h, w); needed for object and context masks.
            generator (torch.Generator, optional): On the device of ``images``.

        Returns:
            Counterfactual: The images and what was done.
        """
        shape = (len(images), *grid)
        if self.mask == 'random' and self.fill == 'none':
            kept = num_kept(grid[0] * grid[1], self.value)
            return Counterfactual(images, exact_random_mask(shape, self.value, images.device, generator), True, kept)
        if self.mask == 'random':
            relevance = images.new_empty(shape)
        mask = patch_mask(relevance, self.mask, self.value, generator)
        if self.fill == 'none':
            return Counterfactual(images, mask, True)
        changed = refill(images, mask, self.fill, generator)
        if self.colors:
            changed = random_color_mixing(changed, self.colors, generator)
        if self.views is not None:
            changed = random_views(changed, **self.views, generator=generator)
        return Counterfactual(changed, mask, False)
