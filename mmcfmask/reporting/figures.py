"""The figures of a report: which there are, and how to draw each."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from statistics import mean
from typing import NamedTuple

import matplotlib

from .class_change import class_change_figure
from .contents import Contents
from .groups import group_points, group_scatter, read_metrics
from .plots import id_ood_scatter
from .reliability import merge_bins, reliability_diagram
from .runs import collect_metric, list_sets
from .style import SET_NAMES
from .summary import OOD_AVERAGE

SCATTERS, GROUPS = 'ID accuracy against accuracy under shift', 'Weighted average against worst group'
CLASSES, RELIABILITY = 'Change per class', 'Reliability'


class Picture(NamedTuple):
    """A figure that is not drawn yet; ``name`` is its file name without the ending."""

    name: str
    caption: str
    draw: Callable[[], matplotlib.figure.Figure]


def plan_figures(contents: Contents) -> dict[str, list[Picture]]:
    """``{chapter: its figures}``.

    Raises:
        ConfigError: The seeds of a method have different numbers of confidence bins.
    """
    return {
        SCATTERS: plan_scatters(contents),
        GROUPS: plan_groups(contents),
        CLASSES: plan_classes(contents),
        RELIABILITY: plan_reliability(contents),
    }


def plan_scatters(contents: Contents) -> list[Picture]:
    """ID accuracy against the OOD average and against every shift, with the line of the reference models."""
    id_set, shifts = contents.accuracy.id_set, contents.accuracy.shifts
    pictures = []
    for column, points in contents.scatter_points().items():
        line, reference = contents.lines.lines.get(column, (None, None)) if contents.lines else (None, None)
        is_average = column == OOD_AVERAGE
        draw = partial(
            id_ood_scatter,
            points,
            logit=True,
            xlabel=f'{name_set(id_set)} accuracy (%)',
            ylabel=f'Average of {len(shifts)} shifts (%)' if is_average else f'{name_set(column)} accuracy (%)',
            line=line and line.predict,
            reference=reference,
            line_label='reference models',
            looks=contents.looks,
        )
        pictures.append(Picture(f'id_ood_{"average" if is_average else column}', f'{id_set} against {column}', draw))
    return pictures


def plan_groups(contents: Contents) -> list[Picture]:
    """For every set with groups, the weighted average against the worst group."""
    taken: set[str] = set()
    return [
        Picture(f'worst_group_{unique_stem(name, taken)}', name, partial(group_scatter, points, looks=contents.looks))
        for name, points in group_points(read_metrics(contents.methods)).items()
    ]


def plan_classes(contents: Contents) -> list[Picture]:
    """For every set, which classes lost and gained between the two methods compared."""
    taken: set[str] = set()
    return [
        Picture(
            f'class_change_{unique_stem(name, taken)}',
            name,
            partial(class_change_figure, changes, *contents.compare, xlabel=f'{name_set(name)} accuracy (%)'),
        )
        for name, changes in contents.changes.items()
    ]


def merged_reliability(contents: Contents) -> dict[str, dict[str, list[dict]]]:
    """``{method: {set: confidence bins over all seeds}}``.

    Raises:
        ConfigError: The seeds of a method have different numbers of bins.
    """
    merged: dict[str, dict[str, list[dict]]] = {}
    for method, runs in contents.methods.items():
        for name in list_sets(runs):
            seeds = [run.sets[name].get('reliability') for run in runs if name in run.sets]
            if any(seeds):
                merged.setdefault(method, {})[name] = merge_bins([seed for seed in seeds if seed])
    return merged


def plan_reliability(contents: Contents) -> list[Picture]:
    """For every method, a reliability diagram of each set, over all seeds."""
    taken: set[str] = set()
    errors = collect_metric(contents.methods, 'ece')
    pictures = []
    for method, by_set in merged_reliability(contents).items():
        bins = {name_set(name): merged for name, merged in by_set.items()}
        seeds = errors.get(method, [{}])
        notes = {name_set(name): f'ECE {mean(run[name] for run in seeds):.1f}' for name in seeds[0]}
        name = f'reliability_{unique_stem(method, taken)}'
        pictures.append(Picture(name, method, partial(reliability_diagram, bins, notes)))
    return pictures


def name_set(name: str) -> str:
    """What figures call a set."""
    return SET_NAMES.get(name, name)


def unique_stem(name: str, taken: set[str]) -> str:
    """A file name, without an ending, for a method or set that is not ``taken`` yet; it is added to ``taken``."""
    base = re.sub(r'[^\w.-]+', '_', name).strip('._') or 'method'
    candidates = (base if number == 1 else f'{base}_{number}' for number in range(1, len(taken) + 2))
    stem = next(candidate for candidate in candidates if candidate.lower() not in taken)
    taken.add(stem.lower())
    return stem
