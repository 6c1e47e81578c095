"""Runs jobs, several at once.

A failure stops only the jobs that depend on it. If this process is killed, its commands end too, and the same call
resumes the work.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import mean

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from .durations import Durations, add_duration, read_durations
from .jobs import Executor, Job, JobError, RunningJob

COLUMNS = (
    TextColumn('{task.description}', markup=False),
    BarColumn(),
    TextColumn('{task.percentage:>3.0f} %'),
    TimeElapsedColumn(),
    TextColumn('{task.fields[left]}'),
)


def run_jobs(
    jobs: Sequence[Job], console: Console, executor: Executor, refresh: float = 0.5, history: Path | None = None
) -> dict[str, str]:
    """Run all jobs that are not finished (:func:`find_pending`), as many at once as the executor has slots.

    Prints each job that ends; on a terminal it shows progress bars and an estimate of the time left as well. A failure
    stops only the jobs that depend on it.

    Args:
        jobs (Sequence[Job]): In the order to start them, but after the jobs that they depend on.
        console (Console): Where to print.
        executor (Executor): Starts the commands.
        refresh (float): Seconds between two looks at the processes.
        history (Path, optional): The folder that keeps how long jobs took, for the estimate.

    Returns:
        dict[str, str]: Label to reason, of the jobs that failed.

    Raises:
        KeyboardInterrupt: Ctrl-C or SIGTERM; the processes have ended.
    """
    waiting = find_pending(jobs)
    for job in jobs:
        if job not in waiting and job.is_finished():
            console.print(f'{job.label}: kept from {job.product.parent}', highlight=False, markup=False, soft_wrap=True)
    if not waiting:
        return {}
    with interrupt_on_sigterm(), Progress(*COLUMNS, console=console, auto_refresh=False) as bars:
        queue = _Queue(waiting, console, executor, bars, history)
        try:
            while queue.waiting or queue.active:
                queue.start_ready()
                queue.poll_active()
                queue.show()
                if queue.active:
                    time.sleep(refresh)
        finally:
            for running in queue.active:
                running.stop()
    return queue.failed


def find_pending(jobs: Sequence[Job]) -> list[Job]:
    """The jobs to run: those that are not finished, and what they need.

    A finished job is run again if one of them needs what it no longer has, such as its checkpoint. A job that only
    serves others is left out if all of these are finished.
    """
    found = [job for job in jobs if not job.is_finished() and not job.serves]
    for job in found:  # it grows
        found += [
            other for other in job.depends_on if other not in found and not (other.is_finished() and other.is_usable())
        ]
    return [job for job in jobs if job in found]


class _Queue:
    """The jobs of one call of :func:`run_jobs`."""

    def __init__(
        self, jobs: list[Job], console: Console, executor: Executor, bars: Progress, history: Path | None
    ) -> None:
        self.waiting = jobs
        self.again = [job for job in jobs if job.is_finished()]  # for what they no longer have
        self.total = len(jobs)
        self.active: list[RunningJob] = []
        self.failed: dict[str, str] = {}
        self.history = history
        self.durations = read_durations(history) if history else []
        self.console = console
        self.executor = executor
        self.bars = bars
        self.overall = bars.add_task('', total=1, left='', visible=len(jobs) > 1)
        self.tasks: dict[str, TaskID] = {}

    def start_ready(self) -> None:
        """Start the jobs for which there is a slot, and fail those that depend on a failure."""
        for job in list(self.waiting):
            pending = [*self.waiting, *(running.job for running in self.active)]
            for other in job.depends_on:  # a tuned run that was finished, until its trials chose another setting
                if other not in pending and not other.is_finished() and other.label not in self.failed:
                    self.waiting.append(other)
                    pending.append(other)
                    self.total += 1
            broken = [other.label for other in job.depends_on if other.label in self.failed]
            if broken:
                self.waiting.remove(job)
                self.fail(job, JobError(f'it depends on {", ".join(broken)}, which failed'))
            elif len(self.active) < self.executor.slots and all(
                other not in pending and other.is_finished() for other in job.depends_on
            ):
                self.waiting.remove(job)
                if job.is_finished() and job not in self.again:  # as another job has just chosen
                    self.console.print(f'{job.label}: kept', highlight=False, markup=False, soft_wrap=True)
                    continue
                slot = min(set(range(self.executor.slots)) - {running.slot for running in self.active})
                try:
                    self.active.append(RunningJob(job, slot, self.executor))
                except (JobError, OSError) as error:
                    self.fail(job, error)
                else:
                    self.tasks[job.label] = self.bars.add_task(job.label, total=1, left='')

    def poll_active(self) -> None:
        """Look at the running jobs; remove those that have ended."""
        for running in list(self.active):
            job = running.job
            try:
                if not running.poll():
                    text = f'{job.label}: {running.command.what}{running.message}'
                    self.bars.update(self.tasks[job.label], completed=running.progress, description=text)
                    continue
                if not job.product.is_file():
                    raise JobError(f'it ended, but did not write {job.product}')
                text = f'{job.label}: {job.report()} ({format_time(running.seconds)})'
            except (JobError, OSError, ValueError) as error:
                running.stop()
                self.fail(job, error)
            else:
                self.note_duration(running)
                self.console.print(text, highlight=False, markup=False, soft_wrap=True)
            self.active.remove(running)
            self.bars.remove_task(self.tasks.pop(job.label))

    def note_duration(self, running: RunningJob) -> None:
        if not running.resumed:
            self.durations.append((running.job.group, running.seconds))
            if self.history:
                add_duration(self.history, running.job.group, running.seconds)

    def fail(self, job: Job, error: Exception) -> None:
        self.failed[job.label] = str(error)
        style = dict(markup=False, highlight=False, soft_wrap=True)
        self.console.print(f'{job.label}: failed: {error}', style='bold red', **style)
        if details := getattr(error, 'details', None):
            self.console.print(details, **style)

    def show(self) -> None:
        """Update the overall progress bar."""
        done = self.total - len(self.waiting) - len(self.active)
        left = time_left(self.waiting, self.active, self.durations, self.executor.slots)
        self.bars.update(
            self.overall,
            completed=(done + sum(running.progress for running in self.active)) / self.total,
            description=f'{done} of {self.total} done' + (f', {len(self.failed)} failed' if self.failed else ''),
            left=f'about {format_time(left)} left' if left else '',
        )
        self.bars.refresh()


def time_left(waiting: Sequence[Job], active: Sequence[RunningJob], durations: Durations, slots: int) -> float | None:
    """Estimate the seconds until all jobs are done; None while nothing is known.

    Args:
        waiting, active: The jobs that are not finished.
        durations: (group, seconds) of the finished jobs. A job is expected to take as long as the mean of those that
            share the longest beginning of its group.
        slots: Jobs at once.
    """
    known = list(durations)
    for running in active:
        remaining = running.estimate_remaining()
        if remaining is not None:
            known.append((running.job.group, running.seconds + remaining))
    if not known:
        return None

    def expect(group: tuple[str, ...]) -> float:
        for common in range(len(group), -1, -1):
            if similar := [seconds for other, seconds in known if other[:common] == group[:common]]:
                return mean(similar)
        raise AssertionError('known is not empty')

    left = sum(expect(job.group) for job in waiting)
    for running in active:
        remaining = running.estimate_remaining()
        left += max(0.0, expect(running.job.group) - running.seconds) if remaining is None else remaining
    return left / min(slots, len(waiting) + len(active)) if left else 0.0


@contextmanager
def interrupt_on_sigterm() -> Iterator[None]:
    """Inside the context SIGTERM raises KeyboardInterrupt, so that the processes are ended."""
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


def format_time(seconds: float) -> str:
    """Write seconds as '45 s', '12 min' or '3 h 20 min'."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f'{seconds:.0f} s'
    return f'{minutes} min' if minutes < 60 else f'{minutes // 60} h {minutes % 60:02d} min'
