"""Long work as jobs: each runs the package's tools in processes of their own, is kept once it is finished, and fails
alone.

A job whose product is there, made with the same settings (``key``), is not run again. Several run at once where asked.
If this process is killed, those it started end too, and the same call goes on later.
"""

from __future__ import annotations

import ctypes
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from ..files import write_text

# What mmengine's logger prints: Epoch(train) [2][10/31] … loss: 0.5, and Epoch(test) [3/4]; and the test loop before
# each set.
TRAIN_LINE = re.compile(r'Epoch\(train\)\s+\[(\d+)\]\[\s*(\d+)/(\d+)\].*? loss: ([\d.]+)')
TEST_LINE = re.compile(r'Epoch\(test\)\s+\[\s*(\d+)/(\d+)\]')
SET_LINE = re.compile(r'INFO - (\S+): \d+ images')
PR_SET_PDEATHSIG = 1


class JobError(Exception):
    """A job cannot go on; the message says why.

    Args:
        reason (str): One line.
        details (str, optional): What to show beside it.
    """

    def __init__(self, reason: str, details: str | None = None) -> None:
        super().__init__(reason)
        self.details = details


@dataclass
class Step:
    """One process of a job.

    Attributes:
        what (str): What it does, for people: 'fine-tuning', 'testing on'.
        command (list[str]): A tool and its arguments, without the interpreter.
        log (Path): Where its output goes.
        share (float): Its share of the job's time, roughly.
        epochs (int): Of a training, to tell how far it is.
    """

    what: str
    command: list[str]
    log: Path
    share: float = 1.0
    epochs: int = 1


@dataclass
class Job:
    """Work with one product.

    Attributes:
        label (str): Its name, for people.
        product (Path): The file that exists when it is finished.
        key_file (Path): Where ``key`` is kept.
        key (str): What determines the product. A product of another key is no product.
        steps (Callable): Given the job, its steps one by one; each has succeeded when the next is asked for. Raises
            :class:`JobError` where it cannot go on. When it ends, the product is there.
        leftovers (tuple[str, ...]): Patterns of files beside the product that are of no use under another key.
        needs (list[Job]): Jobs that must be finished before.
        kind (tuple[str, ...]): Jobs with a long common beginning take about as long.
        report (Callable): One line about the finished job.
    """

    label: str
    product: Path
    key_file: Path
    key: str
    steps: Callable[[Job], Iterator[Step]]
    leftovers: tuple[str, ...] = ()
    needs: list[Job] = field(default_factory=list)
    kind: tuple[str, ...] = ()
    report: Callable[[], str] = lambda: ''

    def has_key(self) -> bool:
        """Whether what is there was made, or begun, with the same settings."""
        return self.key_file.is_file() and self.key_file.read_text() == self.key

    def is_finished(self) -> bool:
        return self.product.is_file() and self.has_key()

    def begin(self) -> None:
        """Forget what was made with other settings."""
        if not self.has_key():
            for old in [
                self.product,
                *(path for pattern in self.leftovers for path in self.product.parent.glob(pattern)),
            ]:
                old.unlink(missing_ok=True)
            write_text(self.key_file, self.key)


class RunningJob:
    """A job at work."""

    def __init__(self, job: Job, slot: int, environment: dict[str, str]) -> None:
        self.job = job
        self.slot = slot
        self.environment = environment
        self.started = time.monotonic()
        self.first_seen: float | None = None  # progress when it was first known: a resumed training does not begin at 0
        self.before = 0.0  # share of the steps done
        self.within = 0.0  # progress of the step at hand
        self.message = ''
        self.process: subprocess.Popen | None = None
        self.file = None
        job.begin()
        self.iterator = job.steps(job)
        self._next()

    def _next(self) -> bool:
        """Start the next step; False if there is none."""
        step = next(self.iterator, None)
        if step is None:
            return False
        self.step, self.within, self.message = step, 0.0, ''
        step.log.parent.mkdir(parents=True, exist_ok=True)
        with step.log.open('wb') as output:
            self.process = subprocess.Popen(
                [sys.executable, '-u', *step.command],
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=self.environment,
                preexec_fn=end_with_parent(),
            )
        self.file = step.log.open(encoding='utf-8', errors='replace')
        return True

    @property
    def progress(self) -> float:
        return min(1.0, self.before + self.step.share * self.within)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def poll(self) -> bool:
        """Look at the process and go on to the next step; True when the job is finished.

        Raises:
            JobError: The step failed.
        """
        if self.process is None:
            return True
        returned = self.process.poll()
        for line in self.file:  # what was written since
            self._read(line)
        if self.first_seen is None and self.within:
            self.first_seen = self.progress
        if returned is None:
            return False
        self.file.close()
        if returned:
            raise JobError(
                f'{self.step.what} failed, see {self.step.log}',
                f'{shlex.join(self.step.command)}\n{tail(self.step.log)}',
            )
        self.before += self.step.share
        return not self._next()

    def _read(self, line: str) -> None:
        if match := TRAIN_LINE.search(line):
            epoch, step, steps = map(int, match.groups()[:3])
            self.within = ((epoch - 1) * steps + step) / (self.step.epochs * steps)
            self.message = f' loss {match[4]}'
        elif match := SET_LINE.search(line):
            self.message = f' {match[1]}'
        elif match := TEST_LINE.search(line):
            self.within = int(match[1]) / int(match[2])

    def remaining(self) -> float | None:
        """Seconds left, by the progress so far; None if that is too little to tell."""
        gained = self.progress - (self.first_seen or 0)
        return self.seconds * (1 - self.progress) / gained if self.first_seen is not None and gained > 0.02 else None

    def stop(self) -> None:
        """End the process, and wait until it has ended."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        if self.file is not None:
            self.file.close()


def end_with_parent() -> Callable[[], None] | None:
    """What a child process does first, so that it ends when this one is killed; None where the system cannot (it is
    Linux that can)."""
    if not sys.platform.startswith('linux'):
        return None
    libc = ctypes.CDLL(None)
    return lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def tail(log: Path, lines: int = 25) -> str:
    return ''.join(log.read_text(encoding='utf-8', errors='replace').splitlines(keepends=True)[-lines:])


def run_jobs(jobs: Sequence[Job], console: Console, slots: int = 1, refresh: float = 0.5) -> dict[str, str]:
    """Run all jobs that are not finished, ``slots`` at once.

    Finished ones, failures and their reasons are printed as they come; on a terminal there are progress bars and an
    estimate of the time left as well. A failure does not stop the others, only those that need it.

    Args:
        jobs (Sequence[Job]): In the order to begin them, but after what they need.
        console (Console): Where to print.
        slots (int): Jobs at once. With several GPUs they take turns.
        refresh (float): Seconds between two looks at the processes.

    Returns:
        dict[str, str]: Label to reason, of the jobs that failed.

    Raises:
        KeyboardInterrupt: Ctrl-C or SIGTERM; the processes have ended.
    """
    failed: dict[str, str] = {}
    waiting: list[Job] = []
    for job in jobs:
        if job.is_finished():
            console.print(f'{job.label}: kept from {job.product.parent}', highlight=False, markup=False, soft_wrap=True)
        else:
            waiting.append(job)
    total, active, durations = len(waiting), [], []
    if not waiting:
        return failed
    columns = (
        TextColumn('{task.description}', markup=False),
        BarColumn(),
        TextColumn('{task.percentage:>3.0f} %'),
        TimeElapsedColumn(),
        TextColumn('{task.fields[left]}'),
    )
    with interrupt_on_sigterm(), Progress(*columns, console=console, auto_refresh=False) as bars:
        overall = bars.add_task('', total=1, left='', visible=len(jobs) > 1)
        tasks = {}

        def fail(job: Job, error: Exception) -> None:
            failed[job.label] = str(error)
            console.print(
                f'{job.label}: failed: {error}', style='bold red', markup=False, highlight=False, soft_wrap=True
            )
            if details := getattr(error, 'details', None):
                console.print(details, markup=False, highlight=False, soft_wrap=True)

        try:
            while waiting or active:
                for job in list(waiting):
                    broken = [need.label for need in job.needs if need.label in failed]
                    if broken:
                        waiting.remove(job)
                        fail(job, JobError(f'it needs {", ".join(broken)}, which failed'))
                    elif len(active) < slots and all(need.is_finished() for need in job.needs):
                        waiting.remove(job)
                        slot = min(set(range(slots)) - {running.slot for running in active})
                        try:
                            active.append(RunningJob(job, slot, environment_of(slot, slots)))
                        except (JobError, OSError) as error:
                            fail(job, error)
                            continue
                        tasks[job.label] = bars.add_task(job.label, total=1, left='')
                for running in list(active):
                    job = running.job
                    try:
                        finished = running.poll()
                    except (JobError, OSError, ValueError) as error:
                        running.stop()
                        fail(job, error)
                    else:
                        bars.update(
                            tasks[job.label],
                            completed=running.progress,
                            description=f'{job.label}: {running.step.what}{running.message}',
                        )
                        if not finished:
                            continue
                        if not job.product.is_file():
                            fail(job, JobError(f'it ended, but did not write {job.product}'))
                        else:
                            durations.append((job.kind, running.seconds))
                            console.print(
                                f'{job.label}: {job.report()} ({clock(running.seconds)})',
                                highlight=False,
                                markup=False,
                                soft_wrap=True,
                            )
                    active.remove(running)
                    bars.remove_task(tasks.pop(job.label))
                done = total - len(waiting) - len(active)
                left = time_left(waiting, active, durations, slots)
                bars.update(
                    overall,
                    completed=(done + sum(running.progress for running in active)) / total,
                    description=f'{done} of {total} done' + (f', {len(failed)} of them failed' if failed else ''),
                    left=f'about {clock(left)} left' if left else '',
                )
                bars.refresh()
                if active:
                    time.sleep(refresh)
        finally:
            for running in active:
                running.stop()
    return failed


def time_left(
    waiting: Sequence[Job], active: Sequence[RunningJob], durations: Sequence[tuple[tuple[str, ...], float]], slots: int
) -> float | None:
    """Seconds until all is done; None while nothing is known.

    Args:
        waiting, active: What is to be done.
        durations: (kind, seconds) of what was done. A job is taken to last as long as those that share most of its
            kind.
        slots: Jobs at once.
    """
    known = list(durations)
    left = 0.0
    for running in active:
        remaining = running.remaining()
        if remaining is not None:
            known.append((running.job.kind, running.seconds + remaining))

    def expected(kind: tuple[str, ...]) -> float:
        for common in range(len(kind), -1, -1):
            if similar := [seconds for other, seconds in known if other[:common] == kind[:common]]:
                return mean(similar)
        raise AssertionError('known is not empty')

    if not known:
        return None
    for running in active:
        remaining = running.remaining()
        left += max(0.0, expected(running.job.kind) - running.seconds) if remaining is None else remaining
    left += sum(expected(job.kind) for job in waiting)
    return left / min(slots, len(waiting) + len(active)) if left else 0.0


def environment_of(slot: int, slots: int) -> dict[str, str]:
    """Environment of a job's processes: their GPU where there are several, their share of the cores where there is
    none."""
    environment = dict(os.environ)
    gpus = torch.cuda.device_count()
    if gpus > 1:
        visible = environment.get('CUDA_VISIBLE_DEVICES')
        names = visible.split(',') if visible else [str(i) for i in range(gpus)]
        environment['CUDA_VISIBLE_DEVICES'] = names[slot % len(names)]
    elif not gpus and slots > 1:
        environment.setdefault('OMP_NUM_THREADS', str(max(1, (os.cpu_count() or 1) // slots)))
    return environment


@contextmanager
def interrupt_on_sigterm() -> Iterator[None]:
    """Inside the context SIGTERM is a KeyboardInterrupt, so that processes are ended."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def clock(seconds: float) -> str:
    """'45 s', '12 min', '3 h 20 min'."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f'{seconds:.0f} s'
    return f'{minutes} min' if minutes < 60 else f'{minutes // 60} h {minutes % 60:02d} min'
