"""The numbers that the scripts of the page draw, out of the contents of a report."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..class_change import class_accuracies
from ..comparison import compare_methods, interval_text
from ..contents import Contents
from ..figures import merged_reliability, name_set
from ..groups import group_points, read_metrics
from ..summary import OOD_AVERAGE, Stat, Summary

SYMBOLS = dict(
    zip('os^DvPX', ('circle', 'square', 'triangle-up', 'diamond', 'triangle-down', 'cross', 'x'))
)  # matplotlib's markers as Plotly's
LINE_POINTS = 60


def page_data(contents: Contents, examples: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Everything that the scripts need, as values that ``json.dumps`` takes. Methods are indices into ``methods``.

    Args:
        contents (Contents): Of a report.
        examples: Of :func:`mmcfmask.reporting.examples.collect_examples`.
    """
    place = {method: index for index, method in enumerate(contents.methods)}
    return dict(
        methods=[dict(name=m, color=look.color, symbol=SYMBOLS[look.marker]) for m, look in contents.looks.items()],
        names={name: name_set(name) for name in contents.sets},
        id_set=contents.accuracy.id_set,
        average=OOD_AVERAGE,
        shifts=list(contents.accuracy.shifts),
        scatter=scatter_data(contents, place),
        accuracy=summary_data(contents.accuracy, place, [*contents.sets, OOD_AVERAGE]),
        robustness=summary_data(contents.robustness, place) if contents.robustness else None,
        groups={
            name: {place[m]: point_data(pairs) for m, pairs in points.items()}
            for name, points in group_points(read_metrics(contents.methods)).items()
        },
        reliability=reliability_data(contents, place),
        classes=class_data(contents, place),
        pairs=pair_data(contents, place),
        examples={
            name: [dict(e, predicted={place[m]: p for m, p in e['predicted'].items()}) for e in items]
            for name, items in examples.items()
        },
        seeds={place[m]: p.seed for methods in contents.predictions.values() for m, p in methods.items()},
        compare=[place[method] for method in contents.compare] if contents.compare else None,
    )


def scatter_data(contents: Contents, place: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    """Points, WiSE-FT curves, and the line and points of the reference models, by shift or average."""
    data = {}
    for column, points in contents.scatter_points().items():
        entry: dict[str, Any] = dict(
            points={place[m]: point_data(pairs) for m, pairs in points.items()},
            curves={place[m]: round_all(line) for m, line in contents.curve_points(column).items()},
        )
        line, reference = contents.lines.lines.get(column, (None, None)) if contents.lines else (None, None)
        if line is not None:
            x = np.linspace(1, 99, LINE_POINTS)
            entry['line'] = round_all(np.stack([x, line.predict(x)], axis=1).tolist())
            entry['reference'] = round_all(np.asarray(reference).tolist())
        data[column] = entry
    return data


def point_data(pairs: Sequence[tuple[float, float]]) -> dict[str, list]:
    """``runs``: (x, y) of each run; ``x`` and ``y``: mean, standard deviation, and both as text."""
    x, y = (Stat.over(values) for values in zip(*pairs))
    return dict(runs=round_all(list(pairs)), x=stat_data(x), y=stat_data(y))


def stat_data(stat: Stat, signed: bool = False) -> list:
    """Mean, standard deviation (None for one seed), and both as text, as in every table."""
    return [*round_all([stat.mean, stat.std]), stat.text(signed=signed)]


def summary_data(
    summary: Summary, place: Mapping[str, int], columns: Sequence[str] | None = None
) -> dict[str, dict[int, list]]:
    """``{column: {method: [mean, standard deviation, text]}}``."""
    return {
        column: {
            place[m]: stat_data(row[column], summary.metric.signed) for m, row in summary.rows.items() if column in row
        }
        for column in (summary.columns if columns is None else columns)
    }


def reliability_data(contents: Contents, place: Mapping[str, int]) -> dict[str, dict[int, list[list[float]]]]:
    """``{set: {method: (confidence, accuracy, count) of the bins that are not empty}}``, fractions."""
    data: dict[str, dict[int, list[list[float]]]] = {name: {} for name in contents.sets}
    for method, by_set in merged_reliability(contents).items():
        for name, bins in by_set.items():
            filled = [[b['confidence'], b['accuracy'], b['count']] for b in bins if b['count']]
            if filled:
                data.setdefault(name, {})[place[method]] = round_all(filled, 4)
    return {name: methods for name, methods in data.items() if methods}


def class_data(contents: Contents, place: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    """Accuracy of every class by set: ``names``, ``counts``, and ``accuracy`` ``{method: one per name}``."""
    accuracies = {m: class_accuracies(runs) for m, runs in contents.methods.items()}
    data = {}
    for name in contents.sets:
        have = {m: found[name] for m, found in accuracies.items() if found.get(name)}
        if not have:
            continue
        names = list(dict.fromkeys(c for found in have.values() for c in found))
        counts: dict[str, int] = {}
        for method in have:
            counts = {**(contents.methods[method][0].sets[name].get('per_class_count') or {}), **counts}
        data[name] = dict(
            names=names,
            counts=[counts.get(c) for c in names],
            accuracy={place[m]: round_all([found.get(c) for c in names], 3) for m, found in have.items()},
        )
    return data


def pair_data(contents: Contents, place: Mapping[str, int]) -> dict[str, dict[str, list]]:
    """``{'before-after': {column: [difference, low, high, images, text of the difference, text of the interval]}}`` of
    every two methods, the earlier in the order before the later."""
    data = {}
    sets, shifts = contents.sets, contents.accuracy.shifts
    for before, after in itertools.combinations(contents.methods, 2):
        rows = {}
        for row in compare_methods(contents.methods, contents.predictions, before, after, sets, shifts):
            numbers = round_all([row.difference.mean, *(row.interval or (None, None))])
            rows[row.column] = [*numbers, row.images, row.difference.text(signed=True), interval_text(row)]
        data[f'{place[before]}-{place[after]}'] = rows
    return data


def round_all(value: Any, digits: int = 3) -> Any:
    """Numbers in nested lists with fewer digits, which are enough to draw and keep the page small."""
    if isinstance(value, (list, tuple)):
        return [round_all(part, digits) for part in value]
    return round(value, digits) if isinstance(value, float) else value
