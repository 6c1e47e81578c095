"""Accuracy by group (:class:`mmcfmask.evaluation.GroupAccuracy`) and other measures of a set, in tables and figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib

from .grids import Grid
from .plots import id_ood_scatter
from .runs import Run, list_sets
from .style import Look
from .summary import Stat, Summary

# Metrics that some sets have beside or in place of top1, and what tables call them.
COLUMNS = {
    'worst_group': 'Worst group',
    'group_average': 'Weighted avg',
    'macro_f1': 'Macro F1',
    'accuracy': 'Accuracy',
    'worst_factor': 'Worst factor',
    'bg_gap': 'BG-gap',
    'counter_drop': 'Counter drop',
    'shape_bias': 'Shape bias',
    'zero_shot_drop': 'Zero-shot drop',
}
LOWER = ('bg_gap', 'counter_drop', 'zero_shot_drop')  # the lower, the better
NOTES = {
    'worst_group': 'Worst group, weighted average: over the groups of {sets}, the average weighted by the sizes of the '
    'groups in the training set. The accuracy of the set itself is the plain average over its images.',
    'macro_f1': 'Macro F1: mean of the F1 scores of the classes of {sets}.',
    'bg_gap': 'BG-gap: accuracy on Mixed-Same minus Mixed-Rand of {sets}, in percentage points.',
    'counter_drop': 'Counter drop: accuracy on common minus counter of {sets}, in percentage points.',
    'shape_bias': 'Shape bias: answers by shape among those by shape or texture, on {sets}, in percent.',
    'zero_shot_drop': 'Zero-shot drop: accuracy that the pretrained tower has more than the fine-tuned one, with the '
    'class embeddings of {sets}, in percentage points.',
}

Metrics = Mapping[str, Mapping[str, float]]  # {set: {metric: value}} of a run


def read_metrics(methods: Mapping[str, Sequence[Run]]) -> dict[str, list[Metrics]]:
    """The metrics of all runs of each method, by set."""
    return {
        m: [{name: part['metrics'] for name, part in run.sets.items()} for run in runs] for m, runs in methods.items()
    }


def sets_with_groups(metrics: Iterable[Metrics], id_set: str) -> list[str]:
    """Names of the sets, but for the ID set, that have groups. They show how a model depends on the groups of its
    training images, and are no shifts: they do not count in the OOD average.

    Args:
        metrics (Iterable): ``{set: {metric: value}}`` of every run.
        id_set (str): Name of the in-distribution set.
    """
    names = [name for run in metrics for name, values in run.items() if name != id_set and 'worst_group' in values]
    return list(dict.fromkeys(names))


def sets_without_top1(metrics: Iterable[Metrics]) -> list[str]:
    """Names of the sets that ran, but whose measure is another one than ``top1``; they do not count in any average."""
    runs = list(metrics)
    names = dict.fromkeys(name for run in runs for name in run)
    return [name for name in names if not any('top1' in run.get(name, ()) for run in runs)]


def add_group_columns(summary: Summary, methods: Mapping[str, Sequence[Metrics]]) -> Summary:
    """Add the :data:`COLUMNS` of every set of a table, and of sets without ``top1``, which have no other column.

    Args:
        summary (Summary): Of top-1 accuracies.
        methods (Mapping): ``{method: metrics of each run}``. A method gets a number where all its runs have it.
    """
    shown = [name for name in (summary.id_set, *summary.shifts, *summary.more) if name is not None]
    everything = {(name, metric) for runs in methods.values() for run in runs for name in run for metric in run[name]}
    others = sorted({name for name, _ in everything if (name, 'top1') not in everything})
    sets = {
        metric: found
        for metric in COLUMNS
        if (found := [name for name in (*shown, *others) if (name, metric) in everything])
    }
    rows, columns = {method: dict(row) for method, row in summary.rows.items()}, []
    marked, lower = dict(summary.marked), []
    with_columns = [name for name in dict.fromkeys((*shown, *others)) if any(name in found for found in sets.values())]
    for name in with_columns:
        for metric in (metric for metric, found in sets.items() if name in found):
            alone = len(with_columns) == 1 and metric != 'accuracy'
            label = COLUMNS[metric]
            column = label if alone else f'{name}: {label if label[:2].isupper() else label[0].lower() + label[1:]}'
            lower += [column] if metric in LOWER else []
            for method, row in rows.items():
                values = [run[name][metric] for run in methods[method] if metric in run.get(name, ())]
                if values and len(values) == len(methods[method]):
                    row[column] = Stat.over(values)
                    columns.append(column)
                    if (method, name) in marked:
                        marked[method, column] = marked[method, name]
    if not columns:
        return summary
    notes = [NOTES[metric].format(sets=', '.join(found)) for metric, found in sets.items() if metric in NOTES]
    columns = tuple(dict.fromkeys((*summary.more, *columns)))
    return summary._replace(
        rows=rows, more=columns, marked=marked, notes=(*notes, *summary.notes), lower=(*summary.lower, *lower)
    )


def group_points(methods: Mapping[str, Sequence[Metrics]]) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """``{set: {method: (weighted average, worst group) of each run}}``, of the sets and methods that have both."""
    points: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for method, runs in methods.items():
        for name in runs[0]:
            if all({'worst_group', 'group_average'} <= run.get(name, {}).keys() for run in runs):
                pairs = [(run[name]['group_average'], run[name]['worst_group']) for run in runs]
                points.setdefault(name, {})[method] = pairs
    return points


def group_scatter(
    points: Mapping[str, Sequence[tuple[float, float]]],
    size: tuple[float, float] = (3.3, 2.8),
    looks: Mapping[str, Look] | None = None,
) -> matplotlib.figure.Figure:
    """Scatter of the weighted average against the worst group; see :func:`.plots.id_ood_scatter`."""
    return id_ood_scatter(
        points,
        diagonal=False,
        xlabel='Average weighted by training groups (%)',
        ylabel='Accuracy of the worst group (%)',
        size=size,
        looks=looks,
    )


def group_tables(methods: Mapping[str, Sequence[Run]]) -> dict[str, Grid]:
    """``{set: table}`` of the accuracy in every group, a method per row, and the numbers of images."""
    tables = {}
    for name in list_sets(run for runs in methods.values() for run in runs):
        found = {
            m: [run.sets[name]['groups'] for run in runs if 'groups' in run.sets.get(name, ())]
            for m, runs in methods.items()
        }
        found = {method: runs for method, runs in found.items() if runs}
        groups = list(dict.fromkeys(group for runs in found.values() for run in runs for group in run))
        if not groups:
            continue
        rows = [[method, *(_cell(runs, group) for group in groups)] for method, runs in found.items()]
        first: dict[str, Mapping[str, Any]] = {}
        for runs in found.values():
            for run in runs:
                first = {**run, **first}
        counts = [['Test images', *(_count(first[group].get('count')) for group in groups)]]
        if any(first[group].get('train_count') is not None for group in groups):
            counts += [['Training images', *(_count(first[group].get('train_count')) for group in groups)]]
        tables[name] = Grid(['Method', *groups], rows + counts)
    return tables


def _cell(runs: Sequence[Mapping[str, Mapping[str, Any]]], group: str) -> str:
    values = [run[group]['accuracy'] for run in runs if group in run]
    return Stat.over(values).text() if values else '–'


def _count(number: int | None) -> str:
    return '–' if number is None else f'{number:,}'
