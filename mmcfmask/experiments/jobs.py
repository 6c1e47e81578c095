"""What a job is: a sequence of commands with one product.

A job is finished when its product exists and was made with the same settings (``key``). :func:`.scheduler.run_jobs`
runs those that are not; how a command is started is up to an :class:`Executor`. A product that is JSON holds its key
itself, so a finished job can be copied to another machine without its other files.
"""

from __future__ import annotations

import json
import re
import shlex
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from ..files import write_text

# The lines of mmengine's log: Epoch(train) [2][10/31] … loss: 0.5, and Epoch(test) [3/4]; and the line of the test loop
# before each set.
TRAIN_LINE = re.compile(r'Epoch\(train\)\s+\[(\d+)\]\[\s*(\d+)/(\d+)\].*? loss: ([\d.]+)')
TEST_LINE = re.compile(r'Epoch\(test\)\s+\[\s*(\d+)/(\d+)\]')
SET_LINE = re.compile(r'INFO - (\S+): \d+ images')


class JobError(Exception):
    """A job cannot go on.

    Args:
        reason (str): Why, in one line.
        details (str, optional): More to show, such as the end of a log.
    """

    def __init__(self, reason: str, details: str | None = None) -> None:
        super().__init__(reason)
        self.details = details


@dataclass
class Command:
    """One process of a job.

    Attributes:
        what (str): What it does, for people: 'fine-tuning', 'testing on'.
        arguments (list[str]): A script and its arguments, without the interpreter.
        log (Path): Where its output goes.
        share (float): Its share of the job's time, roughly.
        epochs (int): Epochs of a training, to tell its progress.
        tolerates (re.Pattern, optional): The command may fail with this at the end of its log; the job goes on.
        failed (bool): Whether it has done so.
    """

    what: str
    arguments: list[str]
    log: Path
    share: float = 1.0
    epochs: int = 1
    tolerates: re.Pattern[str] | None = None
    failed: bool = False


@dataclass(eq=False)
class Job:
    """Work with one product.

    Attributes:
        label (str): Its name, for people.
        product (Path): The file that exists when the job is finished.
        key_file (Path): The file that holds ``key``.
        key (str): Identifies the settings. A product that was made under another key does not count.
        choose (Callable): Returns the settings that jobs it depends on have chosen for it, to be added to its key; None
            as long as they have not.
        basis (str): Identifies what they choose from. It ends the key, and counts only as long as they have not chosen:
            then a product counts, with whatever was chosen for it, if that was from the same.
        commands (Callable): Takes the job and yields its commands. The next one is asked for after the last one has
            succeeded. Raises :class:`JobError` if it cannot go on. The product exists when it ends.
        leftovers (tuple[str, ...]): Patterns of files beside the product to delete when the key has changed.
        depends_on (list[Job]): Jobs that must be finished first.
        group (tuple[str, ...]): Jobs whose groups have a long common beginning take about the same time.
        report (Callable): Returns one line about the finished job.
        serves (bool): It is run only for unfinished jobs that depend on it.
        is_usable (Callable): Whether what other jobs need of the finished job, such as its checkpoint, is there.
        refresh (Callable): Takes the finished job and updates what its product says of the choice.
    """

    label: str
    product: Path
    key_file: Path
    key: str
    commands: Callable[[Job], Iterator[Command]]
    leftovers: tuple[str, ...] = ()
    depends_on: list[Job] = field(default_factory=list)
    group: tuple[str, ...] = ()
    report: Callable[[], str] = lambda: ''
    choose: Callable[[], str | None] = lambda: ''
    basis: str = ''
    serves: bool = False
    is_usable: Callable[[], bool] = lambda: True
    refresh: Callable[[Job], None] = lambda job: None

    @property
    def full_key(self) -> str:
        """The key with what was chosen, as far as it is known, and what it was chosen from."""
        return self.key + (self.choose() or '') + self.basis

    def read_key(self) -> str | None:
        """The full key of what exists, finished or not; None if the job was never started."""
        signed = read_signed_key(self.product) if self.product.suffix == '.json' else None
        if signed is not None or not self.key_file.is_file():
            return signed
        return self.key_file.read_text(encoding='utf-8')

    def is_started(self) -> bool:
        """Whether what exists was made, or started, with the same settings."""
        found, choice = self.read_key(), self.choose()
        if found is None:
            return False
        if choice is None:
            return found.startswith(self.key) and found.endswith(self.basis)
        known = self.key + choice
        return found == known or bool(self.basis) and found.startswith(f'{known} ')

    def is_finished(self) -> bool:
        """Whether the product exists and was made with the same settings."""
        return self.product.is_file() and self.is_started()

    def prepare(self) -> None:
        """Delete an earlier product and what was made with other settings, and write the key."""
        old = [] if self.is_started() else [p for pattern in self.leftovers for p in self.product.parent.glob(pattern)]
        for path in [self.product, *old]:
            path.unlink(missing_ok=True)
        write_text(self.key_file, self.full_key)


class Process(Protocol):
    """A started command."""

    def poll(self) -> int | None:
        """Return the exit code, or None while the command runs."""

    def stop(self) -> None:
        """End the command, and wait until it has ended."""


class Executor(Protocol):
    """Starts commands somewhere: on this machine (:class:`.local.LocalExecutor`), or on a cluster.

    Attributes:
        slots (int): Number of commands that may run at once.
    """

    slots: int

    def start(self, command: Command, slot: int) -> Process:
        """Start a command whose output goes to ``command.log``; ``slot`` (from 0) is free of other commands."""


class RunningJob:
    """A job at work in one slot of an executor."""

    def __init__(self, job: Job, slot: int, executor: Executor) -> None:
        self.job = job
        self.slot = slot
        self.executor = executor
        self.started = time.monotonic()
        self.first_progress: float | None = None  # when it was first known: a resumed training does not start at 0
        self.done = 0.0  # share of the commands that have ended
        self.within = 0.0  # progress of the current command
        self.message = ''
        self.process: Process | None = None
        self.log = None
        self.resumed = job.is_started()
        job.prepare()
        self.commands = job.commands(job)
        self._start_next()

    def _start_next(self) -> bool:
        """Start the next command; False if there is none."""
        command = next(self.commands, None)
        if command is None:
            return False
        self.command, self.within, self.message = command, 0.0, ''
        command.log.parent.mkdir(parents=True, exist_ok=True)
        command.log.write_bytes(b'')
        self.process = self.executor.start(command, self.slot)
        self.log = command.log.open(encoding='utf-8', errors='replace')
        return True

    @property
    def progress(self) -> float:
        """Share of the job that is done, from 0 to 1."""
        return min(1.0, self.done + self.command.share * self.within)

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    def poll(self) -> bool:
        """Read the log, and start the next command if one has ended; True when the job is finished.

        Raises:
            JobError: A command failed.
        """
        if self.process is None:
            return True
        code = self.process.poll()
        for line in self.log:  # the new lines
            self.within, self.message = read_progress(line, self.command.epochs, self.within, self.message)
        if self.first_progress is None and self.within:
            self.first_progress = self.progress
        if code is None:
            return False
        self.log.close()
        tolerated = self.command.tolerates
        if code and not (tolerated and tolerated.search(read_tail(self.command.log))):
            raise JobError(
                f'{self.command.what} failed, see {self.command.log}',
                f'{shlex.join(self.command.arguments)}\n{read_tail(self.command.log)}',
            )
        self.command.failed = bool(code)
        self.done += self.command.share
        return not self._start_next()

    def estimate_remaining(self) -> float | None:
        """Seconds left, by the progress so far; None if there is too little of it."""
        if self.first_progress is None or self.progress - self.first_progress <= 0.02:
            return None
        return self.seconds * (1 - self.progress) / (self.progress - self.first_progress)

    def stop(self) -> None:
        """End the current command, and wait until it has ended."""
        if self.process is not None:
            self.process.stop()
        if self.log is not None:
            self.log.close()


def read_signed_key(product: Path) -> str | None:
    """The key in a product that is JSON; None if there is none."""
    try:
        content = json.loads(product.read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return None
    key = content.get('key') if isinstance(content, dict) else None
    return key if isinstance(key, str) else None


def read_progress(line: str, epochs: int, progress: float, message: str) -> tuple[float, str]:
    """The progress of a command (0 to 1) and what it does, after a line of its log."""
    if match := TRAIN_LINE.search(line):
        epoch, step, steps = map(int, match.groups()[:3])
        return ((epoch - 1) * steps + step) / (epochs * steps), f' loss {match[4]}'
    if match := SET_LINE.search(line):
        return progress, f' {match[1]}'
    if match := TEST_LINE.search(line):
        return int(match[1]) / int(match[2]), message
    return progress, message


def read_tail(log: Path, lines: int = 25) -> str:
    """The last lines of a log."""
    return ''.join(log.read_text(encoding='utf-8', errors='replace').splitlines(keepends=True)[-lines:])
