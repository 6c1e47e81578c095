"""The data preprocessor: normalised images, and counterfactual ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from mmpretrain.models import ClsDataPreprocessor
from mmpretrain.registry import MODELS
from torch import nn

from ..counterfactual import check_relevance
from ..errors import ConfigError
from ..ranges import Finite, OpenShare, Positive, Share
from ..renamed import refuse_old_names
from .maker import PUBLISHED_VALUES, Counterfactual, CounterfactualMaker, check_names
from .towers.loading import weights_normalisation

__all__ = ['PUBLISHED_VALUES', 'CAMRefillDataPreprocessor', 'Counterfactual']


def check_options(relevance: dict | None) -> None:
    """Raise a ConfigError unless these are options of a relevance map (or None)."""
    if relevance is None:
        return
    hint = "relevance=dict(outliers=6.0, smooth='mean'); leave it out for the published map"
    check_names('model.data_preprocessor.relevance', relevance, check_relevance, hint)
    try:
        check_relevance(**relevance)
    except ConfigError as error:
        raise ConfigError(f'model.data_preprocessor.{error}') from None


def fill_normalisation(options: Mapping[str, Any], backbone: Any) -> dict[str, Any]:
    """The options of a data preprocessor, with numbers in place of ``mean='pretrained'`` and ``std='pretrained'``: what
    the weights of an open_clip tower were trained with (:func:`.towers.loading.weights_normalisation`).

    Args:
        options (Mapping): Of :class:`CAMRefillDataPreprocessor`.
        backbone (nn.Module | dict): The tower, or its config.

    Raises:
        ConfigError: The backbone is no tower of open_clip.
    """
    filled = dict(options)
    for key in 'mean', 'std':
        if filled.get(key) != 'pretrained':
            continue
        tower = backbone if isinstance(backbone, Mapping) else vars(backbone)
        if not tower.get('model_name'):
            raise ConfigError(
                f"model.data_preprocessor.{key}='pretrained' is for towers of open_clip, which say how their weights "
                'were trained: give three numbers in 0-255'
            )
        known = tower.get(key) or weights_normalisation(tower['model_name'], tower.get('pretrained'))[key]
        filled[key] = [255 * value for value in known]
    return filled


def to_unit_rgb(preprocessor: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Images that a data preprocessor normalised, for pictures: RGB in 0..1."""
    mean, std = (getattr(preprocessor, key, None) for key in ('mean', 'std'))
    return ((images if mean is None or std is None else images * std + mean) / 255).clamp(0, 1)


@MODELS.register_module()
class CAMRefillDataPreprocessor(ClsDataPreprocessor, CounterfactualMaker):
    """mmpretrain's ``ClsDataPreprocessor`` that also makes counterfactual images, as a :class:`CounterfactualMaker`.

    Args:
        mask, fill, value, mask_share, views, color_mixing, donors: Of :class:`CounterfactualMaker`.
        mean, std (Sequence[float] | str, optional): Of RGB images in 0-255 (BGR without ``to_rgb``). 'pretrained': as
            the weights of the backbone were trained, which the classifier fills in (:func:`fill_normalisation`).
            Defaults to None: images are not normalised.
        relevance (dict, optional): How relevance is computed, here, in the relevance crop and in pictures: ``layers``,
            ``outliers`` and ``smooth`` of :func:`mmcfmask.counterfactual.attention_relevance`. Defaults to None: as
            published.
        oracle (bool): In training, masks follow the true objects (``gt_mask`` of the items, passed on by
            ``PackInputs(algorithm_keys=('gt_mask',))``) in place of the relevance map
            (:func:`mmcfmask.counterfactual.object_coverage`): what a perfect map would be worth. Defaults to False.
        **kwargs: Arguments of ``ClsDataPreprocessor``; batch augments (mixup, cutmix) excepted.

    Raises:
        ConfigError: Options that a :class:`CounterfactualMaker` does not take, or batch augments.
    """

    def __init__(
        self,
        mask: str = 'object',
        fill: str = 'single',
        value: Share | None = None,
        mask_share: OpenShare | None = None,
        relevance: dict | None = None,
        oracle: bool = False,
        views: dict | None = None,
        color_mixing: Share = 0.0,
        donors: str = 'any',
        mean: Sequence[Finite] | Literal['pretrained'] | None = None,
        std: Sequence[Positive] | Literal['pretrained'] | None = None,
        **kwargs: Any,
    ) -> None:
        refuse_old_names('model.data_preprocessor', type(self), dict(kwargs, mask=mask, relevance=relevance))
        if kwargs.get('batch_augments'):
            raise ConfigError(
                'batch_augments (mixup, cutmix, …) mix images and labels, so a class activation map of one label has '
                'no meaning there: remove batch_augments (or train_cfg.augments), and mix for the cross-entropy alone '
                "with dict(type='MixedCrossEntropy', augments=[…]) in model.losses"
            )
        if isinstance(mean, str) or isinstance(std, str):
            raise ConfigError(
                f'model.data_preprocessor has mean={mean!r}, std={std!r}: numbers, or "pretrained" in a '
                'CounterfactualClassifier, which fills them in'
            )
        super().__init__(**dict(kwargs, mean=mean, std=std))
        self._non_blocking = True  # from pinned memory; mmpretrain's class has no argument for it
        CounterfactualMaker.__init__(self, mask, fill, value, mask_share, views, color_mixing, donors)
        check_options(relevance)
        if oracle and relevance:
            raise ConfigError(
                f'model.data_preprocessor has oracle=True and relevance={relevance}: an oracle needs no relevance map, '
                'leave one of them out'
            )
        self.relevance = dict(relevance or {})
        self.oracle = oracle

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
