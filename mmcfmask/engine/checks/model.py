"""The model, its weights and the device."""

from __future__ import annotations

import logging

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.logging import print_log
from mmpretrain.registry import MODELS
from torch import nn

from ...compat import multiplies_bfloat16
from ...errors import ConfigError
from ...messages import near_names
from ...models import OpenCLIPBackbone
from ...models.towers.loading import check_pretrained
from ..values import is_a, value_of
from .parts import lower_errors

SLOW_BFLOAT16 = 'this CPU has no instructions for bfloat16, in which a step takes ten times as long as in float32, or more. Leave it out'


def check_fill(cfg: Config) -> None:
    """A fill needs at least two images in every batch of a process, the last one of an epoch included.

    Raises:
        ValueError: Names the keys to change.
    """
    preprocessor = cfg.model.get('data_preprocessor') or {}
    if not makes_counterfactuals(cfg.model) or preprocessor.get('fill', 'single') == 'none':
        return
    loader = cfg.train_dataloader
    if loader.batch_size < 2:
        raise ConfigError(
            f'fill={preprocessor.get("fill", "single")!r} takes patches from other images of the batch, but '
            f'train_dataloader.batch_size={loader.batch_size}: raise it to at least 2, or use fill="none"'
        )
    if not loader.get('drop_last'):
        raise ConfigError(
            f'fill={preprocessor.get("fill", "single")!r} takes patches from other images of the batch, but the last '
            'batch of an epoch may hold a single one: set train_dataloader.drop_last=True'
        )


def makes_counterfactuals(model: dict) -> bool:
    """Whether a model config trains on counterfactual images."""
    return (
        bool(model.get('teacher'))
        and (model.get('head') or {}).get('distill', 'feature') is not None
        and ((model.get('data_preprocessor') or {}).get('mask', 'object') is not None)
    )


def check_backbone(model: dict) -> None:
    """Raise a ValueError or a FileNotFoundError for an image tower that open_clip has not, or a file of weights that is
    not there."""
    tower = model.get('backbone') or {}
    if is_a(OpenCLIPBackbone, tower.get('type'), MODELS) and tower.get('load', True):
        with lower_errors('model.backbone'):
            check_pretrained(tower.get('model_name'), tower.get('pretrained'))


def warn_of_random_start(cfg: Config) -> None:
    """Log a warning for an image tower that no weights are named for."""
    tower = cfg.model.get('backbone') or {}
    if (
        tower.get('model_name')
        and tower.get('pretrained') is None
        and ':' not in tower.model_name
        and not tower.get('init_cfg')
    ):
        print_log(
            f'{tower.model_name} starts from random weights, since model.backbone.pretrained is not set: there is no '
            'robustness that '
            "could be kept. Name a tag of open_clip, such as 'openai', or a file",
            'current',
            level=logging.WARNING,
        )


def check_start(cfg: Config) -> None:
    """Raise a ConfigError for a model that, without a checkpoint, would have random weights."""
    if cfg.model.get('pretrained') or cfg.model.get('init_cfg'):
        return
    tower, head = cfg.model.get('backbone') or {}, cfg.model.get('head') or {}
    if not (tower.get('pretrained') or tower.get('init_cfg') or ':' in tower.get('model_name', '')):
        raise ConfigError(
            'the image tower would have random weights: give a checkpoint, or set model.backbone.pretrained'
        )
    if not (head.get('class_weights') or head.get('init_cfg')):
        raise ConfigError('the head would have random weights: give a checkpoint, or set model.head.class_weights')


def unmatched_keys(cfg: Config, model: nn.Module) -> str | None:
    """What to say of settings for parameters that the model does not have; None where there are none."""
    keys = value_of(cfg, 'optim_wrapper.paramwise_cfg.custom_keys') or {}
    names = [name for name, _ in model.named_parameters()] if keys else []
    unmatched = [key for key in keys if not any(key in name for name in names)]
    if not unmatched:
        return None
    parts = sorted({part for name in names for part in name.split('.')} - {'weight', 'bias'})
    return 'optim_wrapper.paramwise_cfg.custom_keys: no parameter of the model has ' + ', '.join(
        f'{key!r} in its name, so it does nothing.{near_names(key, parts)}' for key in unmatched
    )


def check_device(cfg: Config) -> None:
    """Raise a ConfigError for a training that needs a GPU where there is none."""
    if value_of(cfg, 'optim_wrapper.type') == 'AmpOptimWrapper' and get_device() == 'cpu':
        raise ConfigError(
            "optim_wrapper.type='AmpOptimWrapper' needs a GPU: use --amp, which is bfloat16 on any device"
        )


def slow_bfloat16(cfg: Config, device: str) -> str | None:
    """What to say of a run that is asked for bfloat16 where the CPU multiplies it one number at a time; None elsewhere."""
    asked = []
    if (
        value_of(cfg, 'optim_wrapper.type') == 'AutocastOptimWrapper'
        or value_of(cfg, 'val_cfg.amp')
        or value_of(cfg, 'test_cfg.amp')
    ):
        asked.append('--amp')
    if value_of(cfg, 'model.teacher.precision') == 'bf16':
        asked.append("model.teacher.precision='bf16'")
    if not asked or multiplies_bfloat16(device):
        return None
    return f'{" and ".join(asked)}: {SLOW_BFLOAT16}'
