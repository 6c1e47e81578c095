"""Effective robustness of tested methods: how far they are above the line of reference models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import NamedTuple

import numpy as np

from ..errors import ConfigError
from ..evaluation import effective_robustness, read_reference_models, reference_line, reference_points
from ..evaluation.effective_robustness import REFERENCE_MODELS, Line, measured_sets
from .runs import Run, collect_metric
from .summary import EFFECTIVE_ROBUSTNESS, MARK, OOD_AVERAGE, Stat, Summary, with_column


class Lines(NamedTuple):
    """Lines fitted on reference models.

    Attributes:
        source: Where the models are from.
        models: Number of models.
        lines: ``{shift or OOD average: (line, accuracies it was fitted on)}``, the accuracies (N, 2) in percent.
    """

    source: str
    models: int
    lines: dict[str, tuple[Line, np.ndarray]]


def fit_lines(path: str | None, id_set: str, shifts: Sequence[str]) -> Lines:
    """Fit lines for each shift, and for their average, that the reference models were measured on.

    Args:
        path: CSV file of reference models; None for the one in the package.
        id_set: Name of the in-distribution set.
        shifts: Names of the shifts.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not valid, a given file has none of the sets, or no line fits.
    """
    models = read_reference_models(path or REFERENCE_MODELS)
    known = measured_sets(models)
    have = [shift for shift in shifts if shift in known] if id_set in known else []
    if path and not have:
        raise ConfigError(
            f'{path}: its columns must be the in-distribution set {id_set!r} and at least one of the shifts '
            f'{", ".join(shifts)}; it has {", ".join(known)}'
        )
    columns = {shift: [shift] for shift in have} | (
        {OOD_AVERAGE: list(shifts)} if have and have == list(shifts) else {}
    )
    try:
        lines = {
            c: (reference_line(models, id_set, s), reference_points(models, id_set, s)) for c, s in columns.items()
        }
    except ValueError as error:
        raise ConfigError(f'{path or REFERENCE_MODELS}: {error}') from None
    return Lines(path or 'trained on ImageNet only, Taori et al. 2020', len(models), lines)


def add_effective_robustness(
    accuracy: Summary, methods: Mapping[str, list[Run]], lines: Lines
) -> tuple[Summary, Summary | None]:
    """Compute effective robustness.

    Returns:
        The table of accuracies with one more column, the effective robustness of the OOD average, and the table of
        effective robustness on every shift. Without reference models of these sets: ``accuracy`` and None.
    """
    id_set, values = accuracy.id_set, {}
    notes = [
        f'Percentage points above the line fitted on {lines.models} reference models ({lines.source}). {OOD_AVERAGE}: '
        'above the line of the average accuracy.'
    ]
    for method, runs in collect_metric(methods, 'top1').items():
        values[method] = [
            {
                column: float(effective_robustness(run[id_set], mean(run[shift] for shift in needed), line))
                for column, (line, _) in lines.lines.items()
                if (needed := accuracy.shifts if column == OOD_AVERAGE else [column])
                and {id_set, *needed} <= run.keys()
            }
            for run in runs
        ]
        low, high = next(iter(lines.lines.values()))[0].id_range if lines.lines else (0, 100)
        outside = [run[id_set] for run in runs if id_set in run and not low <= run[id_set] <= high]
        if values[method][0] and outside:
            notes.append(
                f'{method}: ID accuracy {outside[0]:.1f} is outside the {low:.1f} to {high:.1f} of the reference '
                'models; the line is extrapolated.'
            )
    values = {method: runs for method, runs in values.items() if runs[0]}
    if not values:
        return accuracy, None
    shifts = tuple(name for name in accuracy.shifts if name in lines.lines)
    rows = {m: {column: Stat.over([run[column] for run in runs]) for column in runs[0]} for m, runs in values.items()}
    # A difference is marked if one of its two accuracies is.
    marked = {
        (m, c): ', '.join(wrong)
        for m, row in rows.items()
        for c in row
        if (wrong := [name for name in (id_set, c) if (m, name) in accuracy.marked])
    }
    notes += [note for note in accuracy.notes if note.startswith((MARK, '±'))]
    table = Summary(None, shifts, rows, tuple(notes), marked, EFFECTIVE_ROBUSTNESS, average=OOD_AVERAGE in lines.lines)
    averages = {m: [run[OOD_AVERAGE] for run in runs] for m, runs in values.items() if OOD_AVERAGE in runs[0]}
    if averages:
        note = (
            f'Eff. rob.: effective robustness, percentage points of the {OOD_AVERAGE} above what the ID accuracy '
            'predicts (next table).'
        )
        accuracy = with_column(accuracy, 'Eff. rob.', averages, note, (id_set, OOD_AVERAGE))
    return accuracy, table
