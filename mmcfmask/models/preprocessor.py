"""From normalised images and a relevance map to counterfactual images."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from mmpretrain.models import ClsDataPreprocessor
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from ..counterfactual import (
    FILLS,
    MASKS,
    check_relevance,
    check_share,
    check_value,
    exact_random_mask,
    masked_patches,
    num_kept,
    patch_mask,
    random_color_mixing,
    random_views,
    refill,
)
from ..errors import ConfigError
from ..messages import near_names
from ..ranges import OpenShare, Share
from ..renamed import refuse_old_names

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


def check_options(relevance: dict | None) -> None:
    """Raise a ConfigError unless these are options of a relevance map (or None)."""
    if relevance is None:
        return
    known = list(inspect.signature(check_relevance).parameters)
    if not isinstance(relevance, dict):
        raise ConfigError(
            f'model.data_preprocessor.relevance={relevance!r} must be a dict of {", ".join(known)}: '
            "relevance=dict(outliers=6.0, smooth='mean'); leave it out for the published map"
        )
    for key in relevance:
        if key not in known:
            hint = near_names(key, known) or f' It has {", ".join(known)}'
            raise ConfigError(f'model.data_preprocessor.relevance has no {key!r}.{hint}')
    try:
        check_relevance(**relevance)
    except ConfigError as error:
        raise ConfigError(f'model.data_preprocessor.{error}') from None


@MODELS.register_module()
class CAMRefillDataPreprocessor(ClsDataPreprocessor):
    """mmpretrain's ``ClsDataPreprocessor`` that also makes counterfactual images.

    Args:
        mask (str): 'object' (patches that speak for the class), 'context' (all others) or 'random'.
        fill (str): 'none' (patches are hidden), 'single' (replaced from one other image) or 'multi' (from many).
        value (float, optional): Threshold on relevance / max for object and context, probability for random; in [0, 1].
            Defaults to the published value of the pair.
        mask_share (float, optional): Share of the patches that the mask takes out of every image, in place of
            ``value``: the most relevant ones (object), the least relevant ones (context) or random ones. Ours, not
            published. Defaults to None: by ``value``.
        relevance (dict, optional): How relevance is computed, here, in the relevance crop and in pictures: ``layers``,
            ``outliers`` and ``smooth`` of :func:`mmcfmask.counterfactual.attention_relevance`. Defaults to None: as
            published.
        views (dict, optional): Turn, zoom and shift the counterfactual images at random: arguments of
            :func:`mmcfmask.counterfactual.random_views`, ``dict()`` for its defaults. Ours, not published. Needs a
            fill.
        color_mixing (float): Probability that the channels of a counterfactual image are mixed
            (:func:`mmcfmask.counterfactual.random_color_mixing`). Ours, not published. Needs a fill.
        **kwargs: Arguments of ``ClsDataPreprocessor``; batch augments (mixup, cutmix) excepted.

    Raises:
        ConfigError: Unknown mask or fill, a value outside [0, 1], views without a fill, or batch augments.
    """

    def __init__(
        self,
        mask: str = 'object',
        fill: str = 'single',
        value: Share | None = None,
        mask_share: OpenShare | None = None,
        relevance: dict | None = None,
        views: dict | None = None,
        color_mixing: Share = 0.0,
        **kwargs: Any,
    ) -> None:
        refuse_old_names('model.data_preprocessor', type(self), dict(kwargs, mask=mask, relevance=relevance))
        if kwargs.get('batch_augments'):
            raise ConfigError(
                'batch_augments (mixup, cutmix, …) mix images and labels, so a class activation map of one label has '
                'no meaning there: remove batch_augments (or train_cfg.augments) or use ClsDataPreprocessor'
            )
        super().__init__(**kwargs)
        self._non_blocking = True  # from pinned memory; mmpretrain's class has no argument for it
        if mask not in MASKS:
            raise ConfigError(f'unknown mask {mask!r}: choose from {", ".join(MASKS)}')
        if fill not in FILLS:
            raise ConfigError(f'unknown fill {fill!r}: choose from {", ".join(FILLS)}')
        if value is not None and mask_share is not None:
            raise ConfigError(
                f'model.data_preprocessor has value={value} and mask_share={mask_share}: set one of them (value is a '
                'threshold or probability, mask_share the share of the patches)'
            )
        if mask_share is not None:
            check_share(mask, mask_share)
        else:
            value = PUBLISHED_VALUES[mask, fill] if value is None else value
            check_value(mask, value)
        check_options(relevance)
        if (views is not None or color_mixing) and fill == 'none':
            raise ConfigError(
                f'views and color_mixing change refilled images, but fill={fill!r}: choose fill="single" or "multi" '
                '(mask="random", value=0. takes out no patch), or views=None, color_mixing=0.'
            )
        for change, arguments in (random_color_mixing, dict(probability=color_mixing)), (random_views, views or {}):
            # wrong arguments are an error now, not in training
            change(torch.zeros(1, 3, 1, 1), generator=torch.Generator(), **arguments)
        self.mask = mask
        self.fill = fill
        self.value = value
        self.mask_share = mask_share
        self.relevance = dict(relevance or {})
        self.views = views
        self.color_mixing = color_mixing

    def check_normalisation(self, backbone: nn.Module) -> None:
        """Raise a ConfigError, with what to write, unless images are normalised as the weights of ``backbone`` need it,
        where that is known."""
        if not self._enable_normalize:  # mmpretrain's: neither mean nor std was given
            return
        for key in 'mean', 'std':
            wanted = getattr(backbone, key, None)
            got = getattr(self, key).flatten().cpu()
            if wanted is not None and (got - torch.tensor(wanted) * 255).abs().max() > 0.5:
                wanted = [round(value * 255, 2) for value in wanted]
                raise ConfigError(
                    f'model.data_preprocessor.{key} is {[round(value, 2) for value in got.tolist()]}, but the weights '
                    f'{backbone.pretrained or backbone.model_name!r} were trained with {key}={wanted}'
                )

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
            relevance (Tensor, optional): (B, h, w), needed for object and context masks.
            generator (torch.Generator, optional): On the device of ``images``.

        Returns:
            Counterfactual: The images and what was done.

        Raises:
            ValueError: An object or context mask without relevance.
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
        counterfactual = refill(images, mask, self.fill, generator)
        if self.color_mixing:
            counterfactual = random_color_mixing(counterfactual, self.color_mixing, generator)
        if self.views is not None:
            counterfactual = random_views(counterfactual, **self.views, generator=generator)
        return Counterfactual(counterfactual, mask, False)
