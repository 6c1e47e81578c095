"""Runs the commands of jobs as processes of this machine."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable

import torch

from .jobs import Command

PR_SET_PDEATHSIG = 1


class LocalExecutor:
    """Starts commands on this machine, ``slots`` at once; several GPUs take turns.

    Args:
        slots (int): Number of commands at once.
    """

    def __init__(self, slots: int = 1) -> None:
        self.slots = slots

    def start(self, command: Command, slot: int) -> LocalProcess:
        """Start a command; see :class:`.jobs.Executor`."""
        return LocalProcess(command, make_environment(slot, self.slots))


class LocalProcess:
    """A started command; see :class:`.jobs.Process`."""

    def __init__(self, command: Command, environment: dict[str, str]) -> None:
        with command.log.open('ab') as output:
            self.process = subprocess.Popen(
                [sys.executable, '-u', *command.arguments],
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=environment,
                preexec_fn=end_with_parent(),
            )

    def poll(self) -> int | None:
        return self.process.poll()

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def make_environment(slot: int, slots: int) -> dict[str, str]:
    """The environment of a command: one of several GPUs, or a share of the cores if there is no GPU."""
    environment = dict(os.environ)
    gpus = torch.cuda.device_count()
    if gpus > 1:
        visible = environment.get('CUDA_VISIBLE_DEVICES')
        names = visible.split(',') if visible else [str(i) for i in range(gpus)]
        environment['CUDA_VISIBLE_DEVICES'] = names[slot % len(names)]
    elif not gpus and slots > 1:
        environment.setdefault('OMP_NUM_THREADS', str(max(1, (os.cpu_count() or 1) // slots)))
    return environment


def end_with_parent() -> Callable[[], None] | None:
    """What a child process calls first, so that it ends when this one is killed; None if the system is not Linux."""
    if not sys.platform.startswith('linux'):
        return None
    libc = ctypes.CDLL(None)
    return lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
