"""Shared variables: one override of a config variable reaches every copy of it.

A variable of a config is copied where the config uses it. A child config that sets ``data_root`` changes that variable
alone, and every data set keeps the old folder. So a config names the variables that are meant as settings::

    shared = ('data_root', 'pipeline')

An override of such a variable, by a child config or by ``--cfg-options``, also sets every key of the same name that
still holds the old value. Nothing else changes, and one log line names the keys. If a child config overrides a variable
that is not shared, a log line names the keys that keep the old value.

A dotted name shares a part of the config that others copied with ``{{_base_.…}}``: with ``'train_dataloader.dataset'``
a linear probe of the training images follows an override of ``train_dataloader.dataset.per_class``. It reaches the keys
of any name that hold the same dict.

Overrides by a child reach copies only in text configs, with ``_base_ = …``. In a config of mmengine's new style, with
``read_base()``, only ``--cfg-options`` do.
"""

from __future__ import annotations

import copy
import functools
import inspect
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmengine.config import Config
from mmengine.runner import Runner

from .values import get_value

RANKS = ('RANK', 'SLURM_PROCID', 'OMPI_COMM_WORLD_RANK')  # of this process, before there is a process group

# Top-level names that the Runner or this package reads. All others are variables, which parts of the config copy.
READ_KEYS = {*inspect.signature(Runner.__init__).parameters} - {'self', 'cfg'} | {
    'cache_dir',
    'custom_imports',
    'shared',
    'one_test_set',
    'tf32',
    'total_batch_size',
    # The Runner reads these too, but not as arguments.
    'activation_checkpointing',
    'compile',
    'efficient_conv_bn_eval',
    'find_unused_parameters',
    'model_wrapper_cfg',
    'sync_bn',
}


def find_shared(cfg: Mapping[str, Any], child: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a config that it or a child of it shares, by name; only dicts under dotted names."""
    lists = [names for names in (cfg.get('shared'), child.get('shared')) if isinstance(names, (list, tuple))]
    values = {name: get_value(cfg, name) for names in lists for name in names if isinstance(name, str)}
    return {name: value for name, value in values.items() if isinstance(value, dict) or name in cfg}


def update_shared(cfg: Mapping[str, Any], before: Mapping[str, Any], by: str) -> dict[str, list[str]]:
    """Set the copies of shared values to their new values, in place, and log which keys that are.

    Args:
        cfg (Mapping): The config, with new values of some variables.
        before (Mapping): The shared values before the override, see :func:`find_shared`.
        by (str): What overrides them, for the log.

    Returns:
        dict[str, list[str]]: For every shared name with a new value, the dotted keys that were set and
            that a run reads.
    """
    now = {name: get_value(cfg, name) for name in before}
    exists = [name for name in before if now[name] is not None or name in cfg]
    changed = [name for name in exists if not is_same(now[name], before[name])]
    reached: dict[str, list[str]] = {name: [] for name in changed}
    for name in sorted(changed, key=lambda name: -len(repr(before[name]))):  # a value before those that it contains
        for part, value in cfg.items():
            keys = list(_set_copies(value, part, None if '.' in name else name, before[name], now[name]))
            reached[name] += keys if part in READ_KEYS else []  # a copy in another variable runs nothing
        if reached[name]:
            log_once(f'{name} is shared: its override by {by} also sets {", ".join(reached[name])}')
    return reached


def _set_copies(node: Any, where: str, name: str | None, old: Any, new: Any) -> Iterator[str]:
    """Set the keys below ``node`` that hold ``old``, of one name or any, to copies of ``new``; yields dotted keys."""
    if not isinstance(node, (dict, list, tuple)):
        return
    for key, value in list(node.items() if isinstance(node, dict) else enumerate(node)):
        if isinstance(node, dict) and name in (None, key) and is_same(value, old):
            node[key] = copy.deepcopy(new)
            yield f'{where}.{key}'
        else:
            yield from _set_copies(value, f'{where}.{key}', name, old, new)


def find_copies(node: Any, name: str, value: Any, where: str = '') -> list[str]:
    """Find the keys that copied a variable: keys of its name with its value and, if the value is a dict or a list, all
    keys with it."""
    found = []
    telling = isinstance(value, (dict, list)) and len(value) > 0
    for key, item in node.items() if isinstance(node, dict) else enumerate(node):
        if where and (telling or key == name) and is_same(item, value):
            found.append(f'{where}.{key}')
        elif isinstance(item, (dict, list, tuple)):
            found += find_copies(item, name, value, f'{where}.{key}'.lstrip('.'))
    return found


def is_same(value: Any, other: Any) -> bool:
    """Whether two values of a config are equal and of one type: False is not 0."""
    if isinstance(value, dict) and isinstance(other, dict):  # a dict and a ConfigDict are equal
        return value.keys() == other.keys() and all(is_same(item, other[key]) for key, item in value.items())
    if isinstance(value, (list, tuple)) and type(value) is type(other):
        return len(value) == len(other) and all(map(is_same, value, other))
    return type(value) is type(other) and value == other


def _warn_of_kept_values(cfg: Mapping[str, Any], kept: Sequence[tuple[str, str, Any]]) -> None:
    """Log which keys keep the value that a variable had before a child config set it, if it is not shared.

    Args:
        cfg (Mapping): The config, complete.
        kept: For every such variable, the file that set it, its name and its old value.
    """
    parts = {key: value for key, value in cfg.items() if key in READ_KEYS}
    for filename, name, old in kept:
        keys = [key for key in find_copies(parts, name, old) if key.rpartition('.')[2] == name]
        if keys and not is_same(cfg.get(name), old):
            log_once(
                f'Warning: {filename} sets {name}, but the old value stays in {", ".join(keys)}: set them too, or add '
                f'{name!r} to shared'
            )


@functools.cache  # a study reads the same config for every run
def log_once(line: str) -> None:
    if all(os.environ.get(rank, '0') == '0' for rank in RANKS):
        print(line, file=sys.stderr)  # there is no log file yet, and stdout may be the config itself (print_config)


def share_between_files() -> None:
    """Let a child config override shared variables of its bases.

    ``Config.fromfile`` itself does it from here on, in every program that imports mmcfmask: mmpretrain's ``train.py``,
    ``print_config.py`` and ``browse_dataset.py`` see the config that runs here.
    """
    original = Config._file2dict
    open_files: list[list[dict]] = []  # for every file that is being read, its bases as they were read
    kept: list[tuple[str, str, Any]] = []  # see _warn_of_kept_values

    def file2dict(filename: str, *args, **kwargs) -> tuple[dict, str, dict]:
        bases: list[dict] = []
        open_files.append(bases)
        try:
            cfg, text, environment = original(filename, *args, **kwargs)  # calls itself for the bases
        except Exception:
            kept.clear()
            raise
        finally:
            open_files.pop()
        for base in bases:
            shared = find_shared(base, cfg)
            update_shared(cfg, shared, by=filename)
            kept.extend(
                (filename, name, old)
                for name, old in base.items()
                if name not in shared and name not in READ_KEYS and not is_same(cfg.get(name), old)
            )
        if open_files:
            open_files[-1].append(copy.deepcopy(cfg))
        else:
            _warn_of_kept_values(cfg, kept)
            kept.clear()
        return cfg, text, environment

    Config._file2dict = staticmethod(file2dict)
