"""All image towers of open_clip, one after the other, each in a process of its own."""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import resource
from collections.abc import Callable, Iterable, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from threading import Thread
from typing import Any

import open_clip
import timm
import torch
from rich.console import Console
from rich.progress import track

from ..errors import ConfigError
from ..files import write_text
from ..messages import near_names
from . import tower_trials
from .tower_page import find_family, make_page, problems
from .training import describe_machine

# Reasons not to run a tower.
NOT_REACHED = 'the run was stopped before'
TOO_LARGE = 'needs more memory than was allowed'


def run_towers(
    config: str,
    names: Sequence[str],
    out: str,
    console: Console,
    *,
    page: str | None = None,
    batch: int = 2,
    variants_below: float = 20.0,
    max_memory: float | None = None,
    timeout: float = 1800.0,
    onnx: bool = False,
) -> list[dict[str, Any]]:
    """Try towers, and write the records and the page after each. Towers that ``out`` has are kept, so a run that was
    killed goes on where it was; towers that are named are tried again.

    Args:
        config: Path of ``configs/cfmask_vitb16.py``.
        names: open_clip names. Empty: all.
        out: The file of JSON lines, one for each tower.
        console: For progress.
        page: The page to write, if any.
        batch: Images per step.
        variants_below: Towers with less work (Gflop of a forward pass of one image) train all nine variants, others the
            headline variant.
        max_memory: Gigabytes that a tower may need. None: nine tenths of what is free.
        timeout: Seconds for one tower.
        onnx: Export to ONNX as well.

    Returns:
        list[dict]: The records of all towers in ``out``.

    Raises:
        ConfigError: A name that open_clip does not have, or a file that holds something else.
        StorageError: A file cannot be written.
    """
    limit = max_memory or 0.9 * free_memory()
    records = read_records(out)
    todo = [group for group in find_groups(names) if names or not is_done(records.get(group[0]), limit)]
    groups = {group[0]: group for group in todo}
    for name in track(groups, 'Estimating', console=console, transient=True):
        known = {key: records.get(name, {}).get(key) for key in tower_trials.ESTIMATED}
        needs = guarded(tower_trials.estimate, name=name, batch=batch) if None in known.values() else known
        records[name] = dict(name=name, names=groups[name], batch=batch, **needs, skipped=NOT_REACHED)
    write(records, out, page)
    for number, name in enumerate(order(groups, records), 1):
        record = records[name]
        del record['skipped']
        if record.get('memory', 0) > limit:
            record['skipped'] = f'{TOO_LARGE}: {record["memory"]:.0f} GB'
        elif 'built' not in record:
            every = record['gflop'] < variants_below
            trial = dict(config=config, name=name, batch=batch, all_variants=every, onnx=onnx)
            record.update(in_process(timeout, limit, trial), versions=versions())
        write(records, out, page)
        console.print(f'{number}/{len(groups)} {name}: {summary(record)}', highlight=False)
    return list(records.values())


def order(names: Iterable[str], records: dict[str, dict[str, Any]]) -> list[str]:
    """The names of towers: first the smallest of every family of which none was tried, then from small to large."""
    names = sorted(names, key=lambda name: records[name].get('gflop', 0))
    families = {find_family(name) for name, record in records.items() if 'built' in record}
    first = []
    for name in names:
        if find_family(name) not in families:
            families.add(find_family(name))
            first.append(name)
    return first + [name for name in names if name not in first]


def write(records: dict[str, dict[str, Any]], out: str, page: str | None) -> None:
    """Write the records, from the smallest tower to the largest, and the page."""
    ordered = sorted(records.values(), key=lambda record: (record.get('gflop', 0), record['name']))
    write_text(out, ''.join(json.dumps(record) + '\n' for record in ordered))
    if page:
        write_text(page, make_page(ordered))


def find_groups(names: Sequence[str]) -> list[list[str]]:
    """The groups of :func:`.tower_trials.list_towers` that hold ``names``; all of them without names."""
    groups = tower_trials.list_towers()
    known = [name for group in groups for name in group]
    for name in names:
        if name not in known:
            raise ConfigError(f'open_clip has no model {name!r}.{near_names(name, known)}')
    return [group for group in groups if not names or set(names) & set(group)]


def read_records(path: str) -> dict[str, dict[str, Any]]:
    """The records of a file of JSON lines by tower; none if there is no file.

    Raises:
        ConfigError: The file holds something else.
    """
    if not Path(path).exists():
        return {}
    try:
        records = [json.loads(line) for line in Path(path).read_text(encoding='utf-8').splitlines()]
        return {record['name']: record for record in records}
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f'{path} has no records of towers, one JSON object a line: name another with --out'
        ) from error


def is_done(record: dict[str, Any] | None, limit: float) -> bool:
    """Whether a tower needs no other trial: it was tried, or needs more than ``limit`` gigabytes as before."""
    if record is None or record.get('skipped') == NOT_REACHED:
        return False
    return 'skipped' not in record or record['memory'] > limit


def in_process(timeout: float, limit: float, arguments: dict[str, Any]) -> dict[str, Any]:
    """Call :func:`.tower_trials.try_tower` in a process of its own, so that its end is not ours.

    Args:
        timeout: Seconds after which it is killed.
        limit: Gigabytes after which the process gets no more memory: rather an error there than the end of another.
        arguments: Of the function.

    Returns:
        dict: What it returns, or ``dict(built='failed: …')``.
    """
    context = multiprocessing.get_context('forkserver')  # imports torch once
    context.set_forkserver_preload([tower_trials.__name__])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_try_tower, args=(sender, limit, arguments), daemon=True)
    process.start()
    sender.close()
    try:
        if receiver.poll(timeout):
            return receiver.recv()
        return dict(built=f'failed: no result within {timeout:g} seconds')
    except EOFError:
        process.join()
        return dict(built=f'failed: its process ended with exit code {process.exitcode} (-9: perhaps out of memory)')
    finally:
        process.kill()
        process.join()


def _try_tower(sender: Connection, limit: float, arguments: dict[str, Any]) -> None:
    Thread(target=_end_with_parent, daemon=True).start()
    resource.setrlimit(resource.RLIMIT_DATA, (int(limit * 1e9), resource.RLIM_INFINITY))
    sender.send(guarded(tower_trials.try_tower, **arguments))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def guarded(function: Callable[..., dict[str, Any]], **arguments: Any) -> dict[str, Any]:
    """What a function returns, or ``dict(built='failed: …')``."""
    results: list[dict[str, Any]] = []
    found = tower_trials.outcome(lambda: results.append(function(**arguments)))
    return results[0] if results else dict(built=found)


def free_memory() -> float:
    """Gigabytes that are free, or would be if needed."""
    lines = Path('/proc/meminfo').read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith('MemAvailable:')) * 1024 / 1e9


def versions() -> dict[str, str]:
    """What a result depends on."""
    return dict(
        open_clip=open_clip.__version__,
        timm=timm.__version__,
        torch=torch.__version__,
        python=platform.python_version(),
        device=describe_machine(torch.device('cpu'))['device'],
    )


def summary(record: dict[str, Any]) -> str:
    """A trial in one line."""
    if 'skipped' in record:
        return f'not run: {record["skipped"]}'
    found = '; '.join(problems(record))
    if found or 'seconds' not in record:
        return found
    return f'{record["pooling"]}, {len(record["variants"])} variants, {record["seconds"]:.1f} s per image'
