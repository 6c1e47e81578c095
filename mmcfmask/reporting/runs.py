"""Reading ``metrics.json``, which ``tools/test.py --out`` writes: one file is one run, of one method with one seed, on
several sets."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import NamedTuple

from ..errors import ConfigError, MissingFileError
from ..evaluation.protocol import FORMAT
from ..renamed import update_training_settings

FILE_NAME = 'metrics.json'
# What mmcfmask 0.1.0 wrote.
OLD_METHOD_ENDINGS = {
    ' + gate and second look': ' + k-NN gate and relevance crop',
    ' + gate': ' + k-NN gate',
    ' + second look': ' + relevance crop',
}
OLD_INFERENCE = dict(gate='knn_gate', second_look='crop_scale')
OLD_METRICS = dict(by_start='zero_shot_percent')

PERCENTAGES = ('top1', 'top5', 'mean_per_class', 'ece')


class Run(NamedTuple):
    """One metrics.json.

    Attributes:
        path: The file.
        method: Name of the method.
        seed: Training seed; None if nothing was trained.
        id_set: Name of the in-distribution set.
        sets: ``{set: its entry in the file}``, in the order tested; each has ``metrics``, finite numbers, and at least
            one has ``top1``.
        missing: ``{set: why it was not tested}``.
        content: The whole file, with the names that this version uses.
    """

    path: Path
    method: str
    seed: int | None
    id_set: str
    sets: Mapping[str, Mapping]
    missing: Mapping[str, str]
    content: Mapping

    def metrics(self, name: str) -> Mapping:
        """The metrics of a set; none if it was not tested."""
        return self.sets.get(name, {}).get('metrics', {})


def read_run(path: str | Path, method: str | None = None) -> Run:
    """Read one metrics.json.

    Args:
        path: The file.
        method: Name of the method, in place of the one in the file; a file of tools/wise_ft.py gets " + WiSE-FT"
            appended.

    Raises:
        MissingFileError: There is no such file.
        ConfigError: The file is not JSON, has an unknown format, or lacks what a report needs. The message names the
            file and the key.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f'{path}: there is no such file')
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise ConfigError(f'{path}: not valid JSON ({error}); test again: the file may be incomplete') from None
    if not isinstance(content, dict) or 'format' not in content:
        raise ConfigError(
            f"{path}: 'format' is missing; this is not a file of tools/test.py --out, or a very old one: test again"
        )
    if content['format'] != FORMAT:
        raise ConfigError(f'{path}: format {content["format"]!r}; this version of mmcfmask reads format {FORMAT}')
    name, seed, id_set, sets = (content.get(key) for key in ('method', 'seed', 'id_set', 'sets'))
    if not isinstance(method or name, str) or not (method or name):
        raise ConfigError(f"{path}: 'method' must be a name, got {name!r}")
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
        raise ConfigError(f"{path}: 'seed' must be an integer or null, got {seed!r}")
    if not isinstance(id_set, str):
        raise ConfigError(f"{path}: 'id_set' must be the name of a set, got {id_set!r}")
    if not isinstance(sets, dict) or not sets:
        raise ConfigError(f"{path}: 'sets' must contain the results of at least one set, got {sets!r}")
    for set_name, result in sets.items():
        metrics = result.get('metrics') if isinstance(result, dict) else None
        if not isinstance(metrics, dict):
            raise ConfigError(f'{path}: sets.{set_name}.metrics must contain the metrics of the set, got {metrics!r}')
        for key, value in metrics.items():
            if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
                raise ConfigError(f'{path}: sets.{set_name}.metrics.{key} must be a finite number, got {value!r}')
            if key in PERCENTAGES and not 0 <= value <= 100:
                raise ConfigError(
                    f'{path}: sets.{set_name}.metrics.{key} must be a percentage in 0..100, got {value!r}'
                )
    if not any('top1' in result['metrics'] for result in sets.values()):
        raise ConfigError(f"{path}: no set has the metric 'top1'")
    if method and content.get('wise_ft_alpha') is not None:  # lies in the folder of the run it was made of
        method = f'{method} + WiSE-FT'
    content = _update_names(content)
    return Run(path, method or content['method'], seed, id_set, content['sets'], content.get('missing') or {}, content)


def _update_names(content: dict) -> dict:
    """The content of a valid file, with the names of mmcfmask 0.1.0 replaced by the names of this version."""
    content = dict(content)
    training, versions = content.get('training'), content.get('versions')
    if isinstance(training, dict) and isinstance(versions, dict) and versions.get('mmcfmask') == '0.1.0':
        content['training'] = update_training_settings(training)
    if content.get('inference'):
        content['inference'] = {OLD_INFERENCE.get(key, key): value for key, value in content['inference'].items()}
        for old, new in OLD_METHOD_ENDINGS.items():
            if str(content.get('method')).endswith(old):
                content['method'] = content['method'].removesuffix(old) + new
    content['sets'] = {
        name: {**result, 'metrics': {OLD_METRICS.get(key, key): value for key, value in result['metrics'].items()}}
        for name, result in content['sets'].items()
    }
    return content


def find_runs(sources: Iterable[str | Path]) -> list[Run]:
    """Read all runs in some folders and files.

    Args:
        sources: Folders, whose every ``metrics.json``, at any depth, is read, and files of any name. ``NAME=`` before
            a folder or file sets the name of the method. A file found twice counts once.

    Raises:
        MissingFileError: A source does not exist, or a folder contains no metrics.json.
        ConfigError: A file is not a run (:func:`read_run`).
    """
    runs = {}
    for source in sources:
        method, path = split_source(source)
        if path.is_dir():
            files = sorted(path.rglob(FILE_NAME))
            if not files:
                raise MissingFileError(
                    f'{path}: no {FILE_NAME} in or below this folder; tools/test.py --out FOLDER/{FILE_NAME} writes one'
                )
        elif path.is_file():
            files = [path]
        else:
            raise MissingFileError(f'{path}: there is no such folder or file')
        for file in files:
            runs.setdefault((file.resolve(), method), read_run(file, method))
    return list(runs.values())


def split_source(source: str | Path) -> tuple[str | None, Path]:
    """The name of the method, if there is one, and the folder or file of ``[NAME=]PATH``.

    Raises:
        ConfigError: The name or the path is empty.
    """
    path = Path(source)
    if path.exists() or '=' not in str(source):
        return None, path
    method, _, rest = str(source).partition('=')
    if not method or not rest:
        raise ConfigError(f'{source!r} is not NAME=FOLDER')
    return method, Path(rest)


def group_runs(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Group runs by method.

    Returns:
        dict[str, list[Run]]: ``{method: its runs, sorted by seed}``.

    Raises:
        ConfigError: Two runs of a method have the same seed or differ in more than the seed; the runs have different
            in-distribution sets; or a set has another number of classes in another run.
    """
    methods: dict[str, list[Run]] = {}
    for run in runs:
        methods.setdefault(run.method, []).append(run)
    everything = [run for group in methods.values() for run in group]
    for method, group in methods.items():
        advice = 'leave one out, or give them different names: NAME=FOLDER'
        seeds: dict[int | None, Run] = {}
        for run in group:
            if run.seed in seeds:
                seed = 'without a seed' if run.seed is None else f'with seed {run.seed}'
                more = f' ({difference})' if (difference := find_difference(seeds[run.seed], run)) else ''
                raise ConfigError(
                    f'two runs of {method!r} {seed}: {seeds[run.seed].path} and {run.path}{more}; {advice}'
                )
            seeds[run.seed] = run
        group.sort(key=lambda run: (run.seed is not None, run.seed))
        for run in group[1:]:
            if difference := find_difference(group[0], run):
                raise ConfigError(
                    f'{method!r}: {group[0].path} and {run.path} differ in more than the seed ({difference}), so they '
                    f'cannot be averaged; {advice}'
                )
    first = everything[0]
    for run in everything:
        if run.id_set != first.id_set:
            raise ConfigError(
                f'different in-distribution sets: {first.id_set!r} ({first.path}) and {run.id_set!r} ({run.path}); '
                'make a separate report for each'
            )
    for name in list_sets(everything):
        classes = {run.sets[name].get('classes'): run for run in reversed(everything) if name in run.sets}
        if len(classes) > 1:
            where = ', '.join(f'{number} in {run.path}' for number, run in reversed(classes.items()))
            raise ConfigError(
                f'{name!r} is not the same set in all runs: its number of classes is {where}; '
                'make a separate report for each'
            )
    return methods


def find_difference(one: Run, other: Run) -> str | None:
    """What two runs differ in besides the seed, in words; None if their files show no difference."""
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
        pairs[f'transform of {name}'] = describe_transform(one.sets[name]), describe_transform(other.sets[name])
    difference = next((f'{key}: {a} and {b}' for key, (a, b) in pairs.items() if a != b), None)
    old = [run.path for run, settings in zip((one, other), trained) if 'model.auxiliary' in (settings or ())]
    if difference and len(old) == 1:
        difference += f'; mmcfmask 0.1.0 wrote {old[0]}: test its checkpoint again'
    return difference


def list_sets(runs: Iterable[Run]) -> tuple[str, ...]:
    """Names of the sets that any run was tested on, in order of appearance."""
    return tuple(dict.fromkeys(name for run in runs for name in run.sets))


def collect_metric(methods: Mapping[str, list[Run]], key: str) -> dict[str, list[dict[str, float]]]:
    """Take one metric out of all runs.

    Returns:
        ``{method: [{set: value} of each run]}``, as :func:`mmcfmask.reporting.summarize` takes it, without the sets and
        methods that lack the metric.

    Raises:
        ConfigError: The runs of one method have the metric on different sets.
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
                raise ConfigError(
                    f'{method!r}: {key} on {different} is in only one of {first.path} and {run.path}; '
                    'test all seeds on the same sets, or choose sets with --shifts'
                )
    return {m: seeds for m, seeds in values.items() if seeds[0]}


def find_problems(runs: Iterable[Run]) -> dict[str, str]:
    """Find the sets that the runs of one method were not tested on, or not on all published images.

    Returns:
        ``{set: what is wrong}``, with counts.
    """
    problems: dict[str, list[str]] = {}
    for run in runs:
        for name, why in run.missing.items():
            problems.setdefault(name, []).append('not tested, ' + textwrap.shorten(why, 200, placeholder=' …'))
        for name, result in run.sets.items():
            if what := _problem(result):
                problems.setdefault(name, []).append(what)
    return {name: '; '.join(dict.fromkeys(what)) for name, what in problems.items()}


def _problem(result: Mapping) -> str | None:
    if result.get('notes'):  # with counts
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


def describe_transform(result: Mapping) -> str:
    """The transforms of a set's images in order, without PackInputs, which changes no pixel."""
    return ' → '.join(step for step in map(str, result.get('transform') or []) if not step.startswith('PackInputs'))


def find_differences(runs: Iterable[Run]) -> list[str]:
    """Find what makes accuracies on one set not comparable between runs: other images or another transform."""
    notes, runs = [], list(runs)
    for name in list_sets(runs):
        for key, what in (('images', 'numbers of images'), ('dataset', 'datasets'), ('transform', 'transforms')):
            values: dict[str, list[str]] = {}
            for run in runs:
                if name in run.sets and run.sets[name].get(key) is not None:
                    value = run.sets[name][key]
                    text = (
                        describe_transform(run.sets[name])
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


def keep_shifts(runs: Sequence[Run], shifts: Sequence[str]) -> list[Run]:
    """Reduce runs to the in-distribution set and some shifts, in the order given.

    Raises:
        ConfigError: No run was tested on one of the shifts, or a run on none of these sets.
    """
    known = [name for name in list_sets(runs) if name not in {run.id_set for run in runs}]
    if unknown := [name for name in shifts if name not in known]:
        raise ConfigError(
            f'--shifts: no run was tested on {", ".join(unknown)}; the runs have {", ".join(known) or "no shifts"}'
        )
    reduced = []
    for run in runs:
        wanted = (run.id_set, *shifts)
        sets = {name: run.sets[name] for name in wanted if name in run.sets}
        if not sets:
            raise ConfigError(f'{run.path}: tested on none of {", ".join(wanted)}')
        missing = {name: why for name, why in run.missing.items() if name in wanted}
        reduced.append(run._replace(sets=sets, missing=missing))
    return reduced
