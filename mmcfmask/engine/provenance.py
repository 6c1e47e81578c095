"""Where results come from: the command of a test, and the training settings of its checkpoint, so that results are
pooled over seeds only if nothing but the seed differs."""

from __future__ import annotations

import hashlib
import re
import shlex
import sys
from pathlib import Path
from typing import Any

from mmengine.hooks import CheckpointHook, IterTimerHook, LoggerHook
from mmpretrain.registry import HOOKS

from ..renamed import update_model
from .checks.classes import CheckClassesHook
from .hooks import IterationSeedHook, StopOnInvalidLossHook
from .values import get_value, is_a, parse_config_text

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
# Last parts of keys that change no weight except through the seed, or that fit a recipe to a machine.
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
# Hooks that change no weight.
WITHOUT_EFFECT = (
    CheckpointHook,
    CheckClassesHook,
    IterationSeedHook,
    StopOnInvalidLossHook,
    IterTimerHook,
    LoggerHook,
)
OLD_HOOK = 'PlainCheckpointHook'  # version 0.1.0 added it to every config
LONGEST = 200

# An absolute path in a text, of Linux or Windows.
PATH = re.compile(r'(?<![\w.~/])(?:[A-Za-z]:)?[/\\](?:[^/\\\s\'",;:()]+[/\\])+(?P<last>[^/\\\s\'",;:()]*)')
PATH_KEYS = ('config', 'path', 'root')  # whose whole value is a path
MEASURED = ('speed',)  # of this machine


def read_command() -> str:
    """The command of this process, as it can be typed again."""
    program, *arguments = sys.argv  # the console script is 'mmcfmask test', which needs no quotes
    return ' '.join(filter(None, [program, shlex.join(arguments)]))


def read_training_settings(meta: dict) -> dict[str, str] | None:
    """Read the settings of the training that wrote a checkpoint.

    The result leaves out the seeds (of the run, the hold-out and subsets), the folders of files, and what changes no
    weight. It includes whether the checkpoint is the best one or was written after an epoch.

    Args:
        meta (dict): The ``meta`` of a checkpoint.

    Returns:
        dict[str, str], optional: Dotted keys to values as texts; None if ``meta`` holds no config.
    """
    if not isinstance(meta.get('cfg'), str):
        return None
    try:
        values = parse_config_text(meta['cfg'], free=FREE)
    except (SyntaxError, ValueError, AttributeError):  # another program wrote it
        return None
    values['model'] = update_model(values.get('model') or {})
    values['custom_hooks'] = [
        hook
        for hook in values.get('custom_hooks') or ()
        if hook['type'] != OLD_HOOK and not is_a(WITHOUT_EFFECT, hook['type'], HOOKS)
    ]
    parts = PARTS if values.get('total_batch_size') else (*PARTS, 'train_dataloader.batch_size')
    settings: dict[str, str] = {}
    for key in parts:
        _flatten(key, get_value(values, key), settings)
    if 'epoch' in meta:
        settings['checkpoint'] = 'the best' if meta.get('best') else f'epoch {meta["epoch"]}'
    return settings


def read_selection(meta: dict) -> str | None:
    """The validation metric that chose a checkpoint among those of its training, such as 'accuracy/top1'; None for a
    checkpoint that was written after an epoch."""
    best = meta.get('best')
    return best.get('metric') if isinstance(best, dict) else None


def _flatten(key: str, value, settings: dict[str, str]) -> None:
    """Add the values below ``key``, except None."""
    name = key.rpartition('.')[2]
    if value is None or key.endswith(('holdout.seed', 'subset_seed')):
        return
    if isinstance(value, dict):
        inside = value['dataset'] if value.get('type') == 'CachedDataset' else value  # the same images
        for part, below in inside.items():
            _flatten(f'{key}.{part}', below, settings)
        return
    if name in PLACES and isinstance(value, str):
        value = Path(value).name
    text = str(value)
    settings[key] = (
        text if len(text) <= LONGEST else f'{text[:LONGEST]}… ({hashlib.sha256(text.encode()).hexdigest()[:8]})'
    )


def hide_machine(part: Any, out: Path, key: str = '') -> Any:
    """A part of a metrics.json without absolute paths and measured speeds.

    Args:
        part: The value of ``key``.
        out: Paths below this folder are shortened to what is below, all others to their last part.
        key: Its name.
    """
    if isinstance(part, dict):
        return {name: hide_machine(value, out, name) for name, value in part.items() if name not in MEASURED}
    if isinstance(part, list):
        return [hide_machine(value, out, key) for value in part]
    if not isinstance(part, str) or key == 'key':  # changed, it would be another run's
        return part
    for base in dict.fromkeys(map(str, (out.resolve(), out.absolute(), out))):
        part = re.sub(rf'(?<![\w./]){re.escape(base)}[/\\]', '', part)
    if key in PATH_KEYS and (part[:1] in ('/', '\\', '~') or part[1:2] == ':' or '..' in part):
        return re.split(r'[/\\]', part.rstrip('/\\'))[-1]
    return PATH.sub(lambda match: match['last'] or Path(match[0]).name, part)
