"""Work that the processes of a distributed run share. Without a process group, each function works for one process."""

from __future__ import annotations

import atexit
import hashlib
import os
import pickle
import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from filelock import FileLock
from mmengine.dist import all_gather, broadcast_object_list, get_dist_info, is_main_process
from torch import Tensor

from .files import atomic_write

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

Result = TypeVar('Result')


def on_main(function: Callable[[], Result]) -> Result:
    """Call a function in the main process alone; all processes get its result, or raise its error.

    All processes must call this at the same place.
    """
    outcome: list[Any] = [None, None]
    if is_main_process():
        try:
            outcome[0] = function()
        except Exception as error:
            if get_dist_info()[1] == 1:
                raise
            outcome[1] = error
    broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def own_share(items: Sequence[Result]) -> list[Result]:
    """The items of this process, every ``world_size``-th. All processes have the same number of items: the last ones
    may start again from the first item."""
    rank, processes = get_dist_info()
    rows = -(-len(items) // processes)
    return [items[(row * processes + rank) % len(items)] for row in range(rows)]


def gather_shares(share: Tensor, items: int) -> Tensor:
    """Join what the processes computed from their :func:`own_share`.

    Args:
        share (Tensor): (ceil(items / processes), ...), a row for each item of this process.
        items (int): The number of items of all processes.

    Returns:
        Tensor: (items, ...), in the order of the items, the same in all processes.
    """
    if get_dist_info()[1] == 1:
        return share
    return torch.stack(all_gather(share), dim=1).flatten(0, 1)[:items]


def usable_cores() -> int:
    """The number of cores that this process may use; a scheduler, a container or taskset may allow only some."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def cores_per_process(processes: int | None = None) -> int:
    """The cores of this machine for each process of the job, at least 1.

    Args:
        processes (int, optional): Processes of the job; launchers that say how many run on this machine are believed.
            None: those of the process group.
    """
    processes = get_dist_info()[1] if processes is None else processes
    local = int(os.environ.get('LOCAL_WORLD_SIZE', os.environ.get('SLURM_NTASKS_PER_NODE', processes)))
    return max(usable_cores() // local, 1)


def on_node(key: str, function: Callable[[], Result]) -> Result:
    """Call a function in one process of this machine; the others of the same launcher get its result from a file.

    Whichever process comes first does the work, and later ones wait for it, so not all need to call this. Arrays in the
    result are read-only memory maps of that file, which all processes share. With one process, or if the result cannot
    be written, each process calls the function itself.

    Args:
        key (str): Says all that the result depends on.
        function (Callable): Its result can be pickled; an error is raised in every process.
    """
    folder = _node_folder()
    if folder is None:
        return function()
    path = folder / hashlib.sha256(key.encode(errors='surrogateescape')).hexdigest()[:24]
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        lock = FileLock(f'{path}.lock').acquire()
    except OSError:
        return function()
    with lock:
        if path.exists():
            return _read_arrays(path)
        result = function()
        try:
            _write_arrays(path, result)
        except (OSError, pickle.PicklingError, TypeError, AttributeError):
            return result
        return _read_arrays(path)


def _write_arrays(path: Path, value: Any) -> None:
    """Pickle a value so that its arrays can be memory-mapped: lengths, the pickle, and the bytes of each array."""
    buffers: list[pickle.PickleBuffer] = []
    text = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    parts = [memoryview(text), *(buffer.raw() for buffer in buffers)]
    with atomic_write(path) as file:
        lengths = np.array([len(parts), *map(len, parts)], np.int64)
        for part in (lengths, *parts):
            file.write(part)


def _read_arrays(path: Path) -> Any:
    content = np.memmap(path, np.uint8, 'r')
    count = int(content[:8].view(np.int64)[0])
    bounds = np.cumsum([8 * (count + 1), *content[8 : 8 * (count + 1)].view(np.int64)])
    text, *buffers = (content[start:end] for start, end in zip(bounds, bounds[1:]))
    return pickle.loads(text.tobytes(), buffers=buffers)


@cache
def _node_folder() -> Path | None:
    """A temporary folder of the processes that one launcher started on this machine; None for a single process.

    They have the same parent process. Every process holds a lock in the folder, which ends with the process: the last
    one removes the folder, and the next run removes those of killed runs.
    """
    sizes = [os.environ.get(name, '1') for name in ('WORLD_SIZE', 'SLURM_NTASKS', 'OMPI_COMM_WORLD_SIZE')]
    if fcntl is None or all(size == '1' for size in sizes):
        return None
    run = [os.environ.get(name) for name in ('MASTER_PORT', 'TORCHELASTIC_RESTART_COUNT', 'SLURM_STEP_ID')]
    name = hashlib.sha256(repr([os.getppid(), run]).encode()).hexdigest()[:12]
    top = Path(tempfile.gettempdir())
    folder = top / f'mmcfmask-{os.getuid()}-{name}'
    try:
        with FileLock(top / f'mmcfmask-{os.getuid()}.lock'):
            for old in top.glob(f'mmcfmask-{os.getuid()}-*'):
                _remove_unused(old)
            folder.mkdir(mode=0o700, exist_ok=True)
            if folder.stat().st_uid != os.getuid():  # whoever made it could put anything into it
                return None
            file = open(folder / 'in_use', 'wb')  # noqa: SIM115  open as long as the process lives
            fcntl.flock(file, fcntl.LOCK_SH)
    except OSError:
        return None

    def leave(pid: int = os.getpid()) -> None:
        if os.getpid() == pid:  # not a data worker
            file.close()
            _remove_unused(folder)

    atexit.register(leave)
    return folder


def _remove_unused(folder: Path) -> None:
    """Remove a folder of :func:`_node_folder` unless a process holds its lock."""
    with suppress(OSError), open(folder / 'in_use', 'rb') as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
