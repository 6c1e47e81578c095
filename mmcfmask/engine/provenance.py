"""What a result says of the training behind it, so that runs are pooled over seeds only if nothing but the seed
differs."""

from __future__ import annotations

import hashlib
from pathlib import Path

from mmengine.hooks import CheckpointHook, IterTimerHook, LoggerHook
from mmpretrain.registry import HOOKS

from ..compat import PlainCheckpointHook
from ..renamed import update_model
from .checks.classes import CheckClassesHook
from .hooks import IterationSeedHook, StopOnInvalidLossHook
from .values import config_values, is_a, value_of

PARTS = (
    'model',
    'optim_wrapper',
    'param_scheduler',
    'train_cfg',
    'total_batch_size',
    'train_dataloader.dataset',
    'train_dataloader.sampler',
    'train_dataloader.batch_sampler',
    'train_dataloader.collate_fn',
    'val_dataloader.dataset',
    'default_hooks.checkpoint.save_best',
    'custom_hooks',
    'load_from',
)
# Settings, by the last part of their key, on which no weight depends but through the seed, or by which one recipe fits
# different machines.
FREE = (
    'cache_dir',
    'fused',
    'accumulative_counts',
    'val_interval',
    'priority',
    'interval',
    'lazy_init',
    'num_workers',
    'multiple',
)
PLACES = ('data_root', 'pretrained', 'path', 'load_from', 'ann_file', 'classes')  # files may have moved
# Hooks on which no weight depends.
WITHOUT_EFFECT = (
    CheckpointHook,
    PlainCheckpointHook,
    CheckClassesHook,
    IterationSeedHook,
    StopOnInvalidLossHook,
    IterTimerHook,
    LoggerHook,
)
LONGEST = 200


def training_of(meta: dict) -> dict[str, str] | None:
    """Settings of the training that wrote a checkpoint, by dotted key, as texts; None where its ``meta`` holds no
    config.

    Left out are the seed, also as that of the hold-out, folders of files but for their last part, and what has no
    effect on weights. Which checkpoint of the training it is, the best or that of an epoch, is one of them.
    """
    if not isinstance(meta.get('cfg'), str):
        return None
    try:
        values = config_values(meta['cfg'], free=FREE)
    except (SyntaxError, ValueError, AttributeError):  # of another program
        return None
    values['model'] = update_model(values.get('model') or {})
    values['custom_hooks'] = [
        hook for hook in values.get('custom_hooks') or () if not is_a(WITHOUT_EFFECT, hook['type'], HOOKS)
    ]
    parts = PARTS if values.get('total_batch_size') else (*PARTS, 'train_dataloader.batch_size')
    settings: dict[str, str] = {}
    for key in parts:
        _flatten(key, value_of(values, key), settings)
    if 'epoch' in meta:
        settings['checkpoint'] = 'the best' if meta.get('best') else f'epoch {meta["epoch"]}'
    return settings


def _flatten(key: str, value, settings: dict[str, str]) -> None:
    """Add the values below ``key``; one that is None is as one that is not there."""
    name = key.rpartition('.')[2]
    if value is None or key.endswith('holdout.seed'):
        return
    if isinstance(value, dict):
        for part, below in value.items():
            _flatten(f'{key}.{part}', below, settings)
        return
    if name in PLACES and isinstance(value, str):
        value = Path(value).name
    text = str(value)
    settings[key] = (
        text if len(text) <= LONGEST else f'{text[:LONGEST]}… ({hashlib.sha256(text.encode()).hexdigest()[:8]})'
    )
