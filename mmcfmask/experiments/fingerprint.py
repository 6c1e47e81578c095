"""The key of a run: what determines its result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from mmengine.config import Config

from .. import __version__
from ..engine.provenance import PLACES
from ..engine.shared import READ_KEYS
from ..evaluation import describe_checkpoint

# What fits a run to a machine, and names that only the config itself reads.
FREE = ('cache_dir', 'work_dir', 'shared', 'num_workers', 'persistent_workers', 'pin_memory')


def fingerprint(
    cfg: Config, seed: int | None, amp: bool, derivation: Sequence[Any] = (), sources: Sequence[str] = ()
) -> str:
    """Identify the result of a run, as ``'<version of mmcfmask> <SHA-256>'``.

    It is the same on every machine: of files that the model names, such as weights, the contents count and not the
    paths, and of other places (``data_root``) the last part of the path.

    Args:
        cfg (Config): Its config.
        seed (int, optional): Its training seed.
        amp (bool): Whether it runs in bfloat16.
        derivation (Sequence): How it is made of other runs.
        sources (Sequence[str]): The fingerprints of these runs.
    """
    read = {key: make_portable(value, key) for key, value in cfg.to_dict().items() if key in READ_KEYS}
    text = json.dumps([read, seed, amp, list(derivation), list(sources)], sort_keys=True, default=str)
    return f'{__version__} {hashlib.sha256(text.encode()).hexdigest()}'


def fingerprint_trial(cfg: Config, seed: int, amp: bool) -> str:
    """Identify a training that is validated and never tested: test sets do not count."""
    trained = Config({key: value for key, value in cfg.to_dict().items() if not key.startswith('test_')})
    return fingerprint(trained, seed, amp, ['trial'])


def read_version(key: str) -> str:
    """The version of mmcfmask that made a fingerprint; 0.1.0 did not write its own."""
    return key.partition(' ')[0] if ' ' in key else '0.1.0'


def make_portable(part: Any, key: str, is_model: bool = False) -> Any:
    """A part of a config without what differs between machines.

    Args:
        part: The value of ``key``.
        key (str): The last part of a dotted key.
        is_model (bool): Whether every text in it that names a file stands for the file: weights, teachers, embeddings,
            class names.
    """
    is_model = is_model or key in ('model', 'load_from')
    if isinstance(part, dict):
        return {str(name): make_portable(value, name, is_model) for name, value in part.items() if name not in FREE}
    if isinstance(part, (list, tuple)):
        return [make_portable(value, key, is_model) for value in part]
    if not isinstance(part, str) or len(part) >= 4096:
        return part
    path = Path(part).expanduser()
    if is_model and path.is_file():
        return f'SHA-256 {hash_content(path, path.stat().st_mtime_ns)}'
    return path.name if key in PLACES else part


@cache
def hash_content(path: Path, modified: int) -> str:
    """SHA-256 of a file, computed again only if ``modified`` has changed."""
    return describe_checkpoint(str(path))['sha256']
