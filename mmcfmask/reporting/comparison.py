"""Paired comparison of two methods: the difference over seeds, and its interval over images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import NamedTuple

import numpy as np

from ..evaluation.paired import bootstrap_differences, percentile_interval
from .grids import Grid
from .predictions import BySet
from .runs import Run
from .summary import OOD_AVERAGE, Stat

RESAMPLES = 2000
NOTE = (
    'Difference: percentage points, ± its sample standard deviation over seeds (paired where both have the same '
    f'seeds). Interval: the middle 95 % of {RESAMPLES:,} bootstrap resamples of the test images, the same for both '
    'methods; for the average, every set is resampled by itself. It says nothing of the spread over seeds.'
)


class Comparison(NamedTuple):
    """Difference of two methods on one set, or on the average of the shifts, in percentage points.

    Attributes:
        column: Name of the set, or 'OOD avg'.
        before, after: Accuracies over seeds.
        difference: Over seeds.
        interval: 95 % over images; None without predictions of both methods for the same images.
        images: How many images the interval is over; None without it.
    """

    column: str
    before: Stat
    after: Stat
    difference: Stat
    interval: tuple[float, float] | None
    images: int | None


def compare_methods(
    methods: Mapping[str, Sequence[Run]],
    predictions: BySet,
    before: str,
    after: str,
    sets: Sequence[str],
    shifts: Sequence[str] = (),
) -> list[Comparison]:
    """Compare the top-1 accuracies of two methods on each of ``sets`` that both have, and on the average of ``shifts``.

    Args:
        methods: ``{method: runs}``.
        predictions: Of :func:`.predictions.gather_predictions`.
        before, after: Names of the methods.
        sets: Names of the sets, in order.
        shifts: Names of the shifts in the average; with fewer than two there is none.
    """
    draws: dict[str, np.ndarray] = {}
    images: dict[str, int] = {}
    rows, names = [], list(methods)
    # The earlier method is always the first of the two, so that both directions have the same interval.
    sign = 1 if names.index(before) < names.index(after) else -1
    columns = {name: [name] for name in sets} | ({OOD_AVERAGE: list(shifts)} if len(shifts) > 1 else {})
    for column, over in columns.items():
        values = [_values(methods[method], over) for method in (before, after)]
        if not all(values):
            continue
        for name in over:
            pair = [predictions.get(name, {}).get(method) for method in (before, after)]
            if name not in draws and all(pair) and pair[0].first.paths == pair[1].first.paths:
                seed = list(columns).index(name)  # sets are drawn independently
                first, second = (part.correct for part in pair[::sign])
                draws[name] = sign * bootstrap_differences(first, second, RESAMPLES, seed)[1]
                images[name] = pair[0].correct.shape[1]
        known = all(name in draws for name in over)
        interval = percentile_interval(np.mean([draws[name] for name in over], axis=0)) if known else None
        stats = [Stat.over(list(part.values())) for part in values]
        number = sum(images[name] for name in over) if known else None
        rows.append(Comparison(column, *stats, difference_over_seeds(*values), interval, number))
    return rows


def _values(runs: Sequence[Run], over: Sequence[str]) -> dict[int | None, float]:
    """{seed: accuracy, averaged over sets}; empty if a run lacks one."""
    if not all('top1' in run.sets.get(name, {}).get('metrics', ()) for run in runs for name in over):
        return {}
    return {run.seed: mean(run.sets[name]['metrics']['top1'] for name in over) for run in runs}


def difference_over_seeds(before: Mapping[int | None, float], after: Mapping[int | None, float]) -> Stat:
    """Mean and standard deviation of after − before.

    With the same seeds, of the differences of each seed. With others, the means differ by the same amount, and the
    variances of two independent methods add up; a method of one run adds none, and two of one run each have none.

    Args:
        before, after: ``{seed: accuracy}``.
    """
    if before.keys() == after.keys():
        return Stat.over([after[seed] - before[seed] for seed in after])
    stats = [Stat.over(list(values.values())) for values in (before, after)]
    known = [stat.std for stat in stats if stat.std is not None]
    std = sum(sd**2 for sd in known) ** 0.5 if known else None
    return Stat(stats[1].mean - stats[0].mean, std, max(stat.num for stat in stats))


def comparison_grid(rows: Sequence[Comparison], before: str, after: str) -> Grid:
    """Paired comparison as a table, a set per row."""
    header = ['Set', before, after, 'Difference', '95 % interval over images', 'Images']
    cells = [
        [
            row.column,
            row.before.text(),
            row.after.text(),
            row.difference.text(signed=True),
            interval_text(row),
            '–' if row.images is None else f'{row.images:,}',
        ]
        for row in rows
    ]
    return Grid(header, cells)


def interval_text(row: Comparison) -> str:
    """The interval of a comparison in words."""
    if row.interval is None:
        return '–'
    low, high = (round(end, 1) + 0.0 for end in row.interval)  # no negative zero
    return f'{low:+.1f} to {high:+.1f}'


def comparison_dict(row: Comparison) -> dict:
    """A paired comparison as a dict that ``json.dumps`` takes, at full precision."""
    stats = {key: dict(mean=stat.mean, std=stat.std) for key, stat in row._asdict().items() if isinstance(stat, Stat)}
    return dict(row._asdict(), **stats)
