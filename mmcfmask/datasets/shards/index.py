"""Which images shards hold: read from the shards once, then from a file beside them."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track

from ...errors import StorageError
from ...files import atomic_write
from .samples import Sample
from .tables import read_table
from .tars import file_name, read_tar

VERSION = 1
THREADS = 8  # the time goes into waiting for the storage


@dataclass
class Index:
    """All images of some shards, in the order of the shards.

    Attributes:
        samples: One per image.
        files: Number of the shard of each image, (N,) int64.
        class_names: Of the class indices, where the shards have them.
    """

    samples: list[Sample]
    files: np.ndarray
    class_names: list[str] | None


def read_index(files: Sequence[Path], field: str | None = None) -> Index:
    """The index of shards. It is kept beside the first of them or, if nothing may be written there, in the cache folder
    (``MMCFMASK_CACHE``, ``~/.cache/mmcfmask``), and made again if a shard has changed in size or time.

    Args:
        files: The shards.
        field: As of :func:`mmcfmask.datasets.shards.tars.read_tar` and
            :func:`mmcfmask.datasets.shards.tables.read_table`.
    """
    stats = [os.stat(file) for file in files]
    about = [VERSION, field, [[file.name, stat.st_size, stat.st_mtime_ns] for file, stat in zip(files, stats)]]
    key = hashlib.sha256(json.dumps([field, [file.name for file in files]]).encode()).hexdigest()[:12]
    cache = Path(os.environ.get('MMCFMASK_CACHE') or '~/.cache/mmcfmask').expanduser()
    folder = hashlib.sha256(os.path.realpath(files[0].parent).encode()).hexdigest()[:12]
    places = [files[0].with_name(f'.mmcfmask-{key}.npz'), cache / f'shards-{folder}-{key}.npz']
    for place in places:
        index = _load(place, about)
        if index is not None:
            return index
    index = make_index(files, field)
    for place in places:
        try:
            _save(place, about, index)
        except StorageError:
            continue
        break
    return index


def make_index(files: Sequence[Path], field: str | None = None) -> Index:
    """Read the index from the shards; shows progress on a terminal."""
    console = Console(stderr=True)
    with ThreadPoolExecutor(THREADS) as pool:
        parts = pool.map(lambda file: _read(file, field), files)
        shown = track(
            parts,
            f'Listing {files[0].parent}',
            len(files),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        found = list(shown)
    samples = [sample for part, _ in found for sample in part]
    numbers = np.repeat(np.arange(len(files)), [len(part) for part, _ in found])
    return Index(samples, numbers, next((names for _, names in found if names), None))


def _read(file: Path, field: str | None) -> tuple[list[Sample], list[str] | None]:
    if file.suffix.lower() != '.tar':
        return read_table(file, field)
    return [sample._replace(name=file_name(sample.name)) for sample in read_tar(file, field)], None


def _save(path: Path, about: list, index: Index) -> None:
    names, labels, first, second = zip(*index.samples) if index.samples else ((), (), (), ())
    with atomic_write(path) as file:
        np.savez(
            file,
            about=_pack([json.dumps(about), json.dumps(index.class_names)]),
            names=_pack(names),
            labels=_pack(labels),
            places=np.array([first, second], np.int64),
            files=index.files,
        )


def _load(path: Path, about: list) -> Index | None:
    """The index in a file; None if there is none, or one of other shards."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            written, class_names = map(json.loads, _unpack(stored['about']))
            if written != about:
                return None
            first, second = stored['places'].tolist()
            samples = list(map(Sample, _unpack(stored['names']), _unpack(stored['labels']), first, second))
            return Index(samples, stored['files'], class_names)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _pack(texts: Sequence[str]) -> np.ndarray:
    return np.frombuffer('\0'.join(texts).encode('utf-8', 'surrogateescape'), np.uint8)


def _unpack(array: np.ndarray) -> list[str]:
    return array.tobytes().decode('utf-8', 'surrogateescape').split('\0')
