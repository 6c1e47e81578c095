"""The key of a run: what determines its result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from mmengine.config import Config

from .. import __version__
from ..evaluation import describe_checkpoint


def fingerprint(
    cfg: Config, seed: int | None, amp: bool, derivation: Sequence[Any] = (), sources: Sequence[str] = ()
) -> str:
    """Identify the result of a run, as ``'<version of mmcfmask> <SHA-256>'``.

    Args:
        cfg (Config): Its config. The contents of the weights that it names count too.
        seed (int, optional): Its training seed.
        amp (bool): Whether it runs in bfloat16.
        derivation (Sequence): How it is made of other runs.
        sources (Sequence[str]): The fingerprints of these runs.
    """
    files = [hash_content(path, path.stat().st_mtime_ns) for path in list_files([cfg.model, cfg.get('load_from')])]
    text = json.dumps([cfg.to_dict(), files, seed, amp, list(derivation), list(sources)], sort_keys=True, default=str)
    return f'{__version__} {hashlib.sha256(text.encode()).hexdigest()}'


def read_version(key: str) -> str:
    """The version of mmcfmask that made a fingerprint; 0.1.0 did not write its own."""
    return key.partition(' ')[0] if ' ' in key else '0.1.0'


def list_files(part: Any) -> Iterator[Path]:
    """Yield the files that a part of a config names: weights, teachers, embeddings, class names."""
    if isinstance(part, str):
        path = Path(part).expanduser()
        if len(part) < 4096 and path.is_file():
            yield path
    elif isinstance(part, (dict, list, tuple)):
        for value in part.values() if isinstance(part, dict) else part:
            yield from list_files(value)


@cache
def hash_content(path: Path, modified: int) -> str:
    """SHA-256 of a file, computed again only if ``modified`` has changed."""
    return describe_checkpoint(str(path))['sha256']
