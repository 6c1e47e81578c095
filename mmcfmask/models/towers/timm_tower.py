"""mmpretrain's TIMMBackbone with the pooling of the timm model."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import timm
from mmpretrain.models.backbones import TIMMBackbone
from mmpretrain.models.backbones.base_backbone import BaseBackbone
from mmpretrain.registry import MODELS

from ...errors import ConfigError, MissingFileError
from ...messages import near_names
from ...ranges import Stages
from .downloads import offline_if_unreachable
from .initial_weights import load_weights
from .layers import find_depth, freeze_stages, keep_frozen_mode, layer_depths


class PooledTIMMBackbone(TIMMBackbone):
    """What ``dict(type='TIMMBackbone', …)`` is in a :class:`mmcfmask.models.CounterfactualClassifier`.

    ``forward`` returns a tuple with one (B, D) tensor: the features that the timm model gives to its classifier.
    mmpretrain's class drops the pooling of the model, with the weights of an attention pool, and returns the tokens of
    a ViT. The names of the weights (``timm_model.*``) are the same.

    Args:
        model_name (str): A name of ``timm.list_models()``, ``'hf-hub:org/repo'`` or ``'local-dir:path'``.
        features_only (bool): Must be False: a classifier needs one feature.
        pretrained (bool): Load the weights of timm.
        checkpoint_path (str): File with the weights of the timm model; a classifier in it is left out.
        in_channels (int): Channels of the images.
        frozen_stages (int): As of :class:`.backbone.OpenCLIPBackbone`.
        init_cfg (dict, optional): mmengine's.
        **kwargs: Arguments of ``timm.create_model``, such as ``global_pool`` or ``drop_path_rate``.

    Attributes:
        image_size (tuple[int, int]): Height and width of the images, if they are fixed.
        mean, std (tuple[float, float, float] | None): Normalisation that the weights of timm were trained with.
        pretrained (str | None): Name of the weights of timm.

    Raises:
        ConfigError: An unknown model, ``features_only``, or a file that does not fit.
        MissingFileError: Weights that cannot be downloaded, or a file that does not exist.
    """

    def __init__(
        self,
        model_name: str,
        features_only: bool = False,
        pretrained: bool = False,
        checkpoint_path: str = '',
        in_channels: int = 3,
        frozen_stages: Stages = -1,
        init_cfg: dict | list[dict] | None = None,
        **kwargs: Any,
    ) -> None:
        BaseBackbone.__init__(self, init_cfg)
        if features_only:
            raise ConfigError('TIMMBackbone: features_only=True gives several maps, a classifier needs one feature')
        check_timm_model(model_name)
        if 'norm_layer' in kwargs:
            kwargs['norm_layer'] = MODELS.get(kwargs['norm_layer'])
        unreachable = None
        try:
            with offline_if_unreachable() as unreachable:
                model = timm.create_model(
                    model_name, pretrained=pretrained, in_chans=in_channels, **{**kwargs, 'num_classes': 0}
                )
        except (OSError, RuntimeError) as error:
            if not pretrained and ':' not in model_name:
                raise
            reason = unreachable or error
            raise MissingFileError(
                f'the weights of {model_name!r} are not on this machine and cannot be downloaded ({reason}): set '
                'checkpoint_path to a file of them'
            ) from error
        if checkpoint_path:
            load_weights(model, checkpoint_path, 'checkpoint_path')
        self._is_init = bool(pretrained or checkpoint_path)
        self.timm_model = model
        self.frozen_stages = frozen_stages
        if frozen_stages >= 0:
            freeze_stages(self, frozen_stages)
        size = getattr(getattr(model, 'patch_embed', None), 'img_size', None)
        if size is not None:
            self.image_size = tuple(size)
        self.pretrained = model_name if pretrained else None
        self.mean, self.std = (model.pretrained_cfg.get(key) if pretrained else None for key in ('mean', 'std'))

    def train(self, mode: bool = True) -> PooledTIMMBackbone:
        super().train(mode)
        if self.frozen_stages >= 0:
            keep_frozen_mode(self.timm_model)
        return self

    @cached_property
    def _depths(self) -> dict[str, int]:
        return layer_depths(self)

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Depth of a parameter, and the number of depths, for learning rates by layer; see
        :func:`.layers.layer_depths`."""
        return find_depth(self._depths, param_name, prefix)


def check_timm_model(model_name: str) -> None:
    """Raise a ConfigError with near names if timm has no such model."""
    if ':' in model_name or timm.is_model(model_name):  # hf-hub:…, local-dir:…
        return
    raise ConfigError(
        f'unknown timm model {model_name!r}.{near_names(model_name.partition(".")[0], timm.list_models())} '
        'timm.list_models() has all names'
    )
