"""Disk cache of embeddings and features."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from mmengine.dist import is_main_process
from mmengine.logging import print_log
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from ...datasets.shards import file_of
from ...distributed import on_main
from ...errors import StorageError
from ...files import atomic_write, remove_leftovers


@contextmanager
def evaluating(classifier: nn.Module) -> Iterator[None]:
    """Inside the context, the classifier is on the fastest device and in eval mode."""
    home, training = next(classifier.parameters()).device, classifier.training
    classifier.to(fastest_device()).eval()
    try:
        yield
    finally:
        classifier.to(home).train(training)


def cached(key: dict, compute: Callable[[], Tensor], cache_dir: str | None = None) -> Tensor:
    """The result of ``compute()``, read from disk if it was computed before under an equal ``key``.

    Files are written atomically. One run computes while others wait; a damaged file is computed again. The processes of
    a distributed run call this together: the main process reads and writes the file, and all call ``compute``, which
    may share the work between them.

    Raises:
        StorageError: The cache folder cannot be written.
    """
    text = json.dumps(key, sort_keys=True, default=repr)
    folder = Path(cache_dir or os.environ.get('MMCFMASK_CACHE') or '~/.cache/mmcfmask').expanduser()
    path = folder / f'{key["type"]}-{hashlib.sha256(text.encode()).hexdigest()[:32]}.safetensors'
    with ExitStack() as stack:

        def read_or_lock() -> Tensor | None:
            weights = _read(path)
            if weights is None:
                stack.enter_context(_locked(path))
                weights = _read(path)  # what another run wrote meanwhile
            return weights

        weights = on_main(read_or_lock)
        if weights is None:
            weights = compute().contiguous()
            if is_main_process():
                _write(path, weights, text)
    return weights


def _locked(path: Path) -> AbstractContextManager:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(path.with_suffix('.lock')).acquire()
    except OSError as error:
        raise StorageError(
            f'The cache folder {path.parent} for class embeddings cannot be written ({error}): set cache_dir of '
            'class_weights or the environment variable MMCFMASK_CACHE.'
        ) from error


def _write(path: Path, weights: Tensor, key: str) -> None:
    try:
        remove_leftovers(path.parent)
        with atomic_write(path) as file:
            file.write(save({'weight': weights}, metadata={'key': key, 'sha256': _hash_tensor(weights)}))
    except StorageError as error:  # the result is not lost
        print_log(f'{error}; this run continues, the next one computes it again.', 'current', level=logging.WARNING)


def _read(path: Path) -> Tensor | None:
    try:
        with safe_open(path, 'pt') as file:
            weight, checksum = file.get_tensor('weight'), (file.metadata() or {}).get('sha256')
    except FileNotFoundError:
        return None
    except (OSError, KeyError, SafetensorError) as error:
        wrong = str(error)
    else:
        if checksum in (None, _hash_tensor(weight)) and weight.isfinite().all():  # version 0.1 wrote no checksum
            return weight
        wrong = 'its checksum is wrong, or it holds numbers that are not finite'
    print_log(f'{path} is damaged ({wrong}) and is computed again.', 'current', level=logging.WARNING)
    return None


def fastest_device() -> torch.device:
    return torch.device('cuda' if torch.cuda.is_available() else 'cpu')


def _hash_tensor(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.numpy().tobytes()).hexdigest()


def hash_state(module: nn.Module) -> str:
    digest = hashlib.sha256()
    update_digest(digest, {name: value.cpu().numpy() for name, value in module.state_dict().items()})
    return digest.hexdigest()


def update_digest(digest: Any, info: dict) -> None:
    """Feed a flat dict of arrays and plain values, and size and time of the file it names, to a hash."""
    for name, value in sorted(info.items()):
        if isinstance(value, np.ndarray):
            digest.update(f'{name} {value.dtype} {value.shape}'.encode())
            digest.update(np.ascontiguousarray(value).tobytes())
        else:
            digest.update(f'{name} {value!r}'.encode())
    if 'img_path' in info and os.path.isfile(file := file_of(info['img_path'])):
        stat = os.stat(file)
        digest.update(f'{stat.st_size} {stat.st_mtime_ns}'.encode())
