"""Reading what ``tools/test.py --out metrics.json`` wrote: one file is one run, a method with one seed on several sets."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Iterable, Mapping
from numbers import Real
from pathlib import Path
from typing import NamedTuple

from ..errors import ConfigError
from ..evaluation.protocol import FORMAT

FILE_NAME = 'metrics.json'
PERCENTAGES = ('top1', 'top5', 'mean_per_class', 'ece')


class Run(NamedTuple):
    """One metrics.json.

    Attributes:
        path: The file.
        method: Name of the method.
        seed: Training seed; None if nothing was trained.
        id_set: Name of the in-distribution set.
        sets: ``{set: what the file says of it}``, in the order tested; ``metrics`` is there and holds finite numbers,
            one set has ``top1``.
        missing: ``{set: why it was not tested}``.
        content: The whole file.
    """

    path: Path
    method: str
    seed: int | None
    id_set: str
    sets: Mapping[str, Mapping]
    missing: Mapping[str, str]
    content: Mapping


def read_run(path: str | Path, method: str | None = None) -> Run:
    """Read one metrics.json.

    Args:
        path: The file.
        method: Name of the method, if not the one in the file; with " + WiSE-FT" behind it for a file of
            tools/wise_ft.py.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not JSON, is of a format this version does not know, or lacks what a report needs. The
            message names the file and the key.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'{path}: no such file')
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise ValueError(f'{path}: not valid JSON ({error}); was the test killed while it wrote? Test again') from None
    if not isinstance(content, dict) or 'format' not in content:
        raise ValueError(
            f"{path}: no 'format' in it: not written by tools/test.py --out, or by an older version; test again"
        )
    if content['format'] != FORMAT:
        raise ValueError(f'{path}: format {content["format"]!r}; this version of mmcfmask reads format {FORMAT}')
    name, seed, id_set, sets = (content.get(key) for key in ('method', 'seed', 'id_set', 'sets'))
    if not isinstance(method or name, str) or not (method or name):
        raise ValueError(f"{path}: 'method' must be a name, got {name!r}")
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
        raise ValueError(f"{path}: 'seed' must be an integer or null, got {seed!r}")
    if not isinstance(id_set, str):
        raise ValueError(f"{path}: 'id_set' must be the name of a set, got {id_set!r}")
    if not isinstance(sets, dict) or not sets:
        raise ValueError(f"{path}: 'sets' must hold the results of at least one set, got {sets!r}")
    for set_name, result in sets.items():
        metrics = result.get('metrics') if isinstance(result, dict) else None
        if not isinstance(metrics, dict):
            raise ValueError(f'{path}: sets.{set_name}.metrics must hold the metrics of the set, got {metrics!r}')
        for key, value in metrics.items():
            if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
                raise ValueError(f'{path}: sets.{set_name}.metrics.{key} must be a finite number, got {value!r}')
            if key in PERCENTAGES and not 0 <= value <= 100:
                raise ValueError(f'{path}: sets.{set_name}.metrics.{key} must be a percentage in 0..100, got {value!r}')
    if not any('top1' in result['metrics'] for result in sets.values()):
        raise ValueError(f"{path}: no set has 'top1' among its metrics")
    if method and content.get('wise_ft_alpha') is not None:  # of a run in whose folder it lies
        method = f'{method} + WiSE-FT'
    return Run(path, method or name, seed, id_set, sets, content.get('missing') or {}, content)


def find_runs(sources: Iterable[str | Path]) -> list[Run]:
    """All runs of some folders and files.

    Args:
        sources: A folder, in which and under which every ``metrics.json`` is read, or a file of any name; ``NAME=``
            before it names the method of its runs, otherwise the files do. A file found twice counts once.

    Raises:
        FileNotFoundError: If something is not there, or a folder has no metrics.json in it or below.
        ValueError: If a file cannot be read as a run (:func:`read_run`).
    """
    runs = {}
    for source in sources:
        method, path = None, Path(source)
        if not path.exists() and '=' in str(source):
            method, _, rest = str(source).partition('=')
            path = Path(rest)
            if not method or not rest:
                raise ValueError(f'{source!r} is not NAME=FOLDER')
        if path.is_dir():
            files = sorted(path.rglob(FILE_NAME))
            if not files:
                raise FileNotFoundError(
                    f'{path}: no {FILE_NAME} in it or below; tools/test.py writes one with --out FOLDER/{FILE_NAME}'
                )
        elif path.is_file():
            files = [path]
        else:
            raise FileNotFoundError(f'{path}: no such folder or file')
        for file in files:
            runs.setdefault((file.resolve(), method), read_run(file, method))
    return list(runs.values())


def group_runs(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """``{method: its runs, by seed}``, checked to be comparable.

    Raises:
        ConfigError: If a method has a seed twice, or runs that differ in more than the seed; if runs have different
            in-distribution sets, or a set of the same name has another number of classes in another run.
    """
    methods: dict[str, list[Run]] = {}
    for run in runs:
        methods.setdefault(run.method, []).append(run)
    everything = [run for group in methods.values() for run in group]
    for method, group in methods.items():
        advice = 'leave one out, or name them apart: NAME=FOLDER'
        seeds: dict[int | None, Run] = {}
        for run in group:
            if run.seed in seeds:
                seed = 'without a seed' if run.seed is None else f'with seed {run.seed}'
                more = f' ({difference})' if (difference := more_than_the_seed(seeds[run.seed], run)) else ''
                raise ConfigError(
                    f'two runs of {method!r} {seed}: {seeds[run.seed].path} and {run.path}{more}; {advice}'
                )
            seeds[run.seed] = run
        group.sort(key=lambda run: (run.seed is not None, run.seed))
        for run in group[1:]:
            if difference := more_than_the_seed(group[0], run):
                raise ConfigError(
                    f'{method!r}: {group[0].path} and {run.path} differ in more than the seed ({difference}), so that '
                    f'they are no seeds of one method; {advice}'
                )
    first = everything[0]
    for run in everything:
        if run.id_set != first.id_set:
            raise ValueError(
                f'different in-distribution sets: {first.id_set!r} ({first.path}) and {run.id_set!r} ({run.path}); '
                'make a report for each'
            )
    for name in sets_of(everything):
        classes = {run.sets[name].get('classes'): run for run in reversed(everything) if name in run.sets}
        if len(classes) > 1:
            where = ', '.join(f'{number} in {run.path}' for number, run in reversed(classes.items()))
            raise ValueError(
                f'{name!r} is not the same set everywhere: its number of classes is {where}; make a report for each'
            )
    return methods


def more_than_the_seed(one: Run, other: Run) -> str | None:
    """What two runs differ in besides the seed, in words; None where there is nothing that their files tell."""
    ours, theirs = one.content, other.content
    if bool(ours.get('checkpoint')) != bool(theirs.get('checkpoint')):
        return f'{(one if theirs.get("checkpoint") else other).path} was tested without a checkpoint'
    if one.seed != other.seed and None in (one.seed, other.seed):
        return f'{(one if one.seed is None else other).path} has no seed'
    pairs = {key: (ours.get(key), theirs.get(key)) for key in ('wise_ft_alpha', 'soup')}
    pairs.update(
        {
            'with --amp': (ours.get('amp', False), theirs.get('amp', False)),
            'inference': (ours.get('inference') or {}, theirs.get('inference') or {}),
        }
    )
    trained = [content.get('training') for content in (ours, theirs)]
    if all(isinstance(settings, dict) for settings in trained):
        pairs.update({key: tuple(settings.get(key) for settings in trained) for key in {**trained[0], **trained[1]}})
    for name in one.sets.keys() & other.sets.keys():
        pairs[f'dataset of {name}'] = one.sets[name].get('dataset'), other.sets[name].get('dataset')
        pairs[f'transform of {name}'] = transform_of(one.sets[name]), transform_of(other.sets[name])
    return next((f'{key}: {a} and {b}' for key, (a, b) in pairs.items() if a != b), None)


def sets_of(runs: Iterable[Run]) -> tuple[str, ...]:
    """Names of the sets that any run was tested on, in the order they appear."""
    return tuple(dict.fromkeys(name for run in runs for name in run.sets))


def metric_of(methods: Mapping[str, list[Run]], key: str) -> dict[str, list[dict[str, float]]]:
    """``{method: [{set: value} of each run]}`` of one metric, which :func:`mmcfmask.reporting.summarize` takes.

    Sets and methods that lack the metric are left out.

    Raises:
        ValueError: If the runs of one method do not have it for the same sets.
    """
    values = {
        m: [{name: float(s['metrics'][key]) for name, s in run.sets.items() if key in s['metrics']} for run in runs]
        for m, runs in methods.items()
    }
    for method, seeds in values.items():
        first = methods[method][0]
        for run, value in zip(methods[method], seeds):
            if value.keys() != seeds[0].keys():
                different = ', '.join(sorted(value.keys() ^ seeds[0].keys()))
                raise ValueError(
                    f'{method!r}: {key} on {different} is in only one of {first.path} and {run.path}; '
                    'test all seeds on the same sets, or choose sets with --shifts'
                )
    return {m: seeds for m, seeds in values.items() if seeds[0]}


def find_problems(runs: Iterable[Run]) -> dict[str, str]:
    """``{set: what is wrong with it}`` of the runs of one method: missing, not whole, or with images left out; with
    counts."""
    problems: dict[str, list[str]] = {}
    for run in runs:
        for name, why in run.missing.items():
            problems.setdefault(name, []).append('not tested, ' + textwrap.shorten(why, 200, placeholder=' …'))
        for name, result in run.sets.items():
            if what := _problem(result):
                problems.setdefault(name, []).append(what)
    return {name: '; '.join(dict.fromkeys(what)) for name, what in problems.items()}


def _problem(result: Mapping) -> str | None:
    if result.get('notes'):  # the counts are in them
        return '; '.join(map(str, result['notes']))
    images, published = result.get('images'), result.get('published_images')
    classes, published_classes = result.get('classes'), result.get('published_classes')
    parts = []
    if published is not None and images != published:
        parts.append(f'{images:,} images, {published:,} are published')
    if published_classes is not None and classes != published_classes:
        parts.append(f'{classes:,} classes, {published_classes:,} are published')
    if not parts and result.get('complete') is False:
        parts.append('incomplete')
    if skipped := result.get('skipped'):
        parts.append(f'{skipped:,} unreadable image{"s" if skipped > 1 else ""} left out')
    return ', '.join(parts) or None


def transform_of(result: Mapping) -> str:
    """How images of a set were transformed, without the step that packs them, which changes no pixel."""
    return ' → '.join(step for step in map(str, result.get('transform') or []) if not step.startswith('PackInputs'))


def differences_of(runs: Iterable[Run]) -> list[str]:
    """What makes numbers on a set of the same name not comparable between runs: other images or another transform."""
    notes, runs = [], list(runs)
    for name in sets_of(runs):
        for key, what in (('images', 'numbers of images'), ('dataset', 'datasets'), ('transform', 'transforms')):
            values: dict[str, list[str]] = {}
            for run in runs:
                if name in run.sets and run.sets[name].get(key) is not None:
                    value = run.sets[name][key]
                    text = (
                        transform_of(run.sets[name])
                        if key == 'transform'
                        else f'{value:,}'
                        if isinstance(value, int)
                        else str(value)
                    )
                    values.setdefault(text, []).append(
                        run.method if run.seed is None else f'{run.method} seed {run.seed}'
                    )
            if len(values) > 1:
                notes.append(
                    f'{name}: different {what}: '
                    + '; '.join(f'{text} ({", ".join(who)})' for text, who in values.items())
                    + '.'
                )
    return notes
