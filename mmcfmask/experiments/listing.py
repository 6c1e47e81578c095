"""What ``--list`` shows: all runs with their states, and how long the rest takes."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from .. import __version__
from .durations import Durations
from .fingerprint import read_version
from .jobs import Job
from .plan import Plan
from .scheduler import find_pending, format_time, time_left


def describe_state(job: Job, pending: Sequence[Job]) -> str:
    """The state of a job: finished, started, to do, unneeded (only finished jobs depend on it), or the version of
    mmcfmask that ran it if it is another one."""
    if job.is_finished():
        return 'to do' if job in pending else 'finished'
    if (key := job.read_key()) is not None and read_version(key) != __version__:
        return f'of {read_version(key)}'
    if job not in pending:
        return 'unneeded'
    return 'started' if job.is_started() else 'to do'


def print_states(console: Console, plan: Plan, jobs: Sequence[Job], durations: Durations) -> None:
    """Print a table for each data set, with the state of every run by method and seed, and what is left in all.

    Args:
        console (Console): Where to print.
        plan (Plan): The study.
        jobs (Sequence[Job]): The jobs of the chosen methods, their trials, and the pictures.
        durations (Durations): Of the jobs that were finished so far.
    """
    pending = find_pending(jobs)
    for dataset in plan.datasets:
        methods = {
            name: {seed: job for seed, job in runs.items() if job in jobs}
            for (of_dataset, name), runs in plan.runs.items()
            if of_dataset == dataset
        }
        seeds = list(dict.fromkeys(seed for runs in methods.values() for seed in runs if seed is not None))
        trials = {name: list_trials(plan, dataset, name) for name in methods}
        tuned = any(trials.values())
        table = Table('method', *(['trials'] if tuned else []), *(f'seed {seed}' for seed in seeds), title=dataset)
        for name, runs in methods.items():
            if not runs:
                continue
            done = sum(job.is_finished() for job in trials[name])
            states = {seed: describe_state(job, pending) for seed, job in runs.items()}
            cells = [states.get(seed, '') for seed in seeds]
            if None in states:  # one run for all seeds
                cells[:1] = [states[None]]
            table.add_row(name, *([f'{done} of {len(trials[name])}' if trials[name] else ''] if tuned else []), *cells)
        console.print(table)
    left = time_left(pending, (), durations, 1) if pending else 0.0
    console.print(
        f'{len(jobs) - len(pending)} of {len(jobs)} runs, trials and pictures need no work, {len(pending)} are left'
        + (f': about {format_time(left)}, one after the other' if left else ''),
        highlight=False,
    )


def list_trials(plan: Plan, dataset: str, method: str) -> list[Job]:
    """The trials that a method has of its own."""
    tuned = plan.tuned.get((dataset, method))
    return tuned.tuning.trials if tuned and tuned.tuning.method == method else []
