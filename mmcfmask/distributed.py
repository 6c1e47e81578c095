"""Work that the processes of a distributed run share. Without a process group, each function works for one process."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from mmengine.dist import all_gather, broadcast_object_list, get_dist_info, is_main_process
from torch import Tensor

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
