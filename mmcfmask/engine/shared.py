"""Shared variables: one override of a config variable reaches every copy of it.

A variable of a config is copied where the config uses it. A child config that sets ``data_root`` changes that variable
alone, and every data set keeps the old folder. So a config names the variables that are meant as settings::

    shared = ('data_root', 'pipeline')

An override of such a variable, by a child config or by ``--cfg-options``, also sets every key of the same name that
still holds the old value. Nothing else changes, and one log line names the keys.

A dotted name shares a part of the config that others copied with ``{{_base_.…}}``: with ``'train_dataloader.dataset'``
a linear probe of the training images follows an override of ``train_dataloader.dataset.per_class``. It reaches the keys
of any name that hold the same dict.
"""

from __future__ import annotations

import copy
import functools
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.config import Config

from .values import get_value

RANKS = ('RANK', 'SLURM_PROCID', 'OMPI_COMM_WORLD_RANK')  # of this process, before there is a process group


def find_shared(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """The shared values of a config, by name; only dicts under dotted names."""
    names = cfg.get('shared') or ()
    if not isinstance(names, (list, tuple)):
        return {}
    values = {name: get_value(cfg, name) for name in names if isinstance(name, str)}
    return {name: value for name, value in values.items() if isinstance(value, dict) or name in cfg}


def update_shared(cfg: Mapping[str, Any], before: Mapping[str, Any], by: str) -> dict[str, list[str]]:
    """Set the copies of shared values to their new values, in place, and log which keys that are.

    Args:
        cfg (Mapping): The config, with new values of some variables.
        before (Mapping): The shared values before the override, see :func:`find_shared`.
        by (str): What overrides them, for the log.

    Returns:
        dict[str, list[str]]: For every shared name with a new value, the dotted keys that were set.
    """
    now = {name: get_value(cfg, name) for name in before}
    changed = [name for name, old in before.items() if now[name] != old and (now[name] is not None or name in cfg)]
    reached: dict[str, list[str]] = {name: [] for name in changed}
    for name in sorted(changed, key=lambda name: -len(repr(before[name]))):  # a value before those that it contains
        for part, value in cfg.items():
            reached[name] += _set_copies(value, part, None if '.' in name else name, before[name], now[name])
        if reached[name]:
            _log_once(f'{name} is shared: its override by {by} also sets {", ".join(reached[name])}')
    return reached


def _set_copies(node: Any, where: str, name: str | None, old: Any, new: Any) -> Iterator[str]:
    """Set the keys below ``node`` that hold ``old``, of one name or any, to copies of ``new``; yields dotted keys."""
    if not isinstance(node, (dict, list, tuple)):
        return
    for key, value in list(node.items() if isinstance(node, dict) else enumerate(node)):
        if isinstance(node, dict) and name in (None, key) and value == old:
            node[key] = copy.deepcopy(new)
            yield f'{where}.{key}'
        else:
            yield from _set_copies(value, f'{where}.{key}', name, old, new)


@functools.cache  # a study reads the same config for every run
def _log_once(line: str) -> None:
    if all(os.environ.get(rank, '0') == '0' for rank in RANKS):
        print(line, file=sys.stderr)  # there is no log file yet, and stdout may be the config itself (print_config)


def share_between_files() -> None:
    """Let a child config override shared variables of its bases.

    ``Config.fromfile`` itself does it from here on, in every program that imports mmcfmask: mmpretrain's ``train.py``,
    ``print_config.py`` and ``browse_dataset.py`` see the config that runs here.
    """
    original = Config._file2dict
    open_files: list[list[dict]] = []  # for every file that is being read, the shared variables of each of its bases

    def file2dict(filename: str, *args, **kwargs) -> tuple[dict, str, dict]:
        bases: list[dict] = []
        open_files.append(bases)
        try:
            cfg, text, environment = original(filename, *args, **kwargs)  # calls itself for the bases
        finally:
            open_files.pop()
        for before in bases:
            update_shared(cfg, before, by=filename)
        if open_files:
            open_files[-1].append(copy.deepcopy(find_shared(cfg)))
        return cfg, text, environment

    Config._file2dict = staticmethod(file2dict)
