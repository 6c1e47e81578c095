"""Counterfactual images by a few options: of the data preprocessor, and of loss terms with their own images."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..counterfactual import (
    DONORS,
    FILLS,
    MASKS,
    check_share,
    check_value,
    choose_donors,
    exact_random_mask,
    masked_patches,
    num_kept,
    patch_mask,
    random_color_mixing,
    random_views,
    replace_patches,
)
from ..errors import ConfigError
from ..messages import near_names
from ..ranges import OpenShare, Share

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
        other_donors (Tensor, optional): (B, h, w) int64, other images that can fill the masked patches, for
            :meth:`CounterfactualMaker.refill_again`.
    """

    images: Tensor
    mask: Tensor
    hidden: bool
    kept: int | None = None
    other_donors: Tensor | None = None


class CounterfactualMaker:
    """Cuts patches out of normalised images and refills them.

    Args:
        mask (str): 'object' (patches that speak for the class), 'context' (all others) or 'random'.
        fill (str): 'none' (patches are hidden), 'single' (replaced from one other image) or 'multi' (from many).
        value (float, optional): Threshold on relevance / max for object and context, probability for random; in [0, 1].
            Defaults to the published value of the pair.
        mask_share (float, optional): Share of the patches that the mask takes out of every image, in place of
            ``value``: the most relevant ones (object), the least relevant ones (context) or random ones. Ours, not
            published. Defaults to None: by ``value``.
        views (dict, optional): Turn, zoom and shift the counterfactual images at random: arguments of
            :func:`mmcfmask.counterfactual.random_views`, ``dict()`` for its defaults. Ours, not published. Needs a
            fill.
        color_mixing (float): Probability that the channels of a counterfactual image are mixed
            (:func:`mmcfmask.counterfactual.random_color_mixing`). Ours, not published. Needs a fill.
        donors (str): 'any' image of the batch gives patches, or only images of 'other_class' where the batch has one
            (:func:`mmcfmask.counterfactual.single_donors`; ours, not published). The latter needs a fill.

    Raises:
        ConfigError: Unknown mask, fill or donors, a value outside [0, 1], or an option that needs a fill without one.
    """

    def __init__(
        self,
        mask: str = 'object',
        fill: str = 'single',
        value: Share | None = None,
        mask_share: OpenShare | None = None,
        views: dict | None = None,
        color_mixing: Share = 0.0,
        donors: str = 'any',
    ) -> None:
        for what, word, known in ('mask', mask, MASKS), ('fill', fill, FILLS), ('donors', donors, DONORS):
            if word not in known:
                raise ConfigError(f'unknown {what} {word!r}: choose from {", ".join(known)}')
        if value is not None and mask_share is not None:
            raise ConfigError(
                f'value={value} and mask_share={mask_share}: set one of them (value is a threshold or probability, '
                'mask_share the share of the patches)'
            )
        if mask_share is not None:
            check_share(mask, mask_share)
        else:
            value = PUBLISHED_VALUES[mask, fill] if value is None else value
            check_value(mask, value)
        if (views is not None or color_mixing) and fill == 'none':
            raise ConfigError(
                f'views and color_mixing change refilled images, but fill={fill!r}: choose fill="single" or "multi" '
                '(mask="random", value=0. takes out no patch), or views=None, color_mixing=0.'
            )
        if donors != 'any' and fill == 'none':
            raise ConfigError(f'donors={donors!r} fill patches, but fill={fill!r}: choose fill="single" or "multi"')
        for change, arguments in (random_color_mixing, dict(probability=color_mixing)), (random_views, views or {}):
            # wrong arguments are an error now, not in training
            change(torch.zeros(1, 3, 1, 1), generator=torch.Generator(), **arguments)
        self.mask = mask
        self.fill = fill
        self.value = value
        self.mask_share = mask_share
        self.views = views
        self.color_mixing = color_mixing
        self.donors = donors

    @property
    def options(self) -> dict[str, Any]:
        """The options by name: makers of equal options make the same kind of images."""
        return {key: getattr(self, key) for key in OPTIONS}

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
        labels: Tensor | None = None,
    ) -> Counterfactual:
        """Cut patches out of normalised images and refill them.

        Args:
            images (Tensor): (B, 3, H, W), normalised.
            grid (tuple[int, int]): Rows and columns of patches.
            relevance (Tensor, optional): (B, h, w), needed for object and context masks.
            generator (torch.Generator, optional): On the device of ``images``.
            labels (Tensor, optional): (B,) int64, needed for donors of other classes.

        Returns:
            Counterfactual: The images and what was done.

        Raises:
            ValueError: An object or context mask without relevance, or donors of other classes without labels.
        """
        shape = (len(images), *grid)
        if self.mask == 'random' and self.fill == 'none' and self.value is not None:
            mask = exact_random_mask(shape, self.value, images.device, generator)
            return Counterfactual(images, mask, True, num_kept(grid[0] * grid[1], self.value))
        if self.mask == 'random':
            relevance = images.new_empty(shape)
        if relevance is None:
            raise ValueError(f'mask={self.mask!r} needs relevance')
        mask = patch_mask(relevance, self.mask, self.value, generator, self.mask_share)
        if self.fill == 'none':
            patches = grid[0] * grid[1]
            kept = None if self.mask_share is None else patches - masked_patches(patches, self.mask_share)
            return Counterfactual(images, mask, True, kept)
        if self.donors == 'other_class' and labels is None:
            raise ValueError(f'donors={self.donors!r} needs labels')
        classes = labels if self.donors == 'other_class' else None
        # The second donors cost no random number, so that they change nothing where none asks for them.
        donors, others = choose_donors(self.fill, shape, images.device, generator, classes, num=2)
        return self._refill(images, mask, donors, others, generator)

    def refill_again(
        self, images: Tensor, made: Counterfactual, generator: torch.Generator | None = None
    ) -> Counterfactual:
        """The same patches of ``images``, refilled from other donors than in ``made``; equal ones only where the batch
        has no more. Views and colours are drawn anew.

        Args:
            images (Tensor): (B, 3, H, W), what ``made`` was made of.
            made (Counterfactual): From :meth:`counterfactual`, with a fill.
            generator (torch.Generator, optional): On the device of ``images``.

        Raises:
            ValueError: ``made`` has no fill.
        """
        if made.other_donors is None:
            raise ValueError('these images were not refilled, so there are no other donors')
        return self._refill(images, made.mask, made.other_donors, None, generator)

    def _refill(
        self, images: Tensor, mask: Tensor, donors: Tensor, others: Tensor | None, generator: torch.Generator | None
    ) -> Counterfactual:
        made = replace_patches(images, mask, donors)
        if self.color_mixing:
            made = random_color_mixing(made, self.color_mixing, generator)
        if self.views is not None:
            made = random_views(made, **self.views, generator=generator)
        return Counterfactual(made, mask, False, other_donors=others)


OPTIONS = tuple(inspect.signature(CounterfactualMaker).parameters)


def check_names(where: str, options: Any, function: Callable, hint: str) -> None:
    """Raise a ConfigError unless ``options`` is a dict of arguments of ``function``.

    Args:
        where (str): The dotted key, for errors.
        options: What the config gives.
        function (Callable): Takes these options.
        hint (str): An example of what to write.
    """
    known = list(inspect.signature(function).parameters)
    if not isinstance(options, dict):
        raise ConfigError(f'{where}={options!r} must be a dict of {", ".join(known)}: {hint}')
    for key in options:
        if key not in known:
            near = near_names(str(key), known) or f' It has {", ".join(known)}'
            raise ConfigError(f'{where} has no {key!r}.{near}')
