"""Results over seeds: means, standard deviations and the OOD average; :mod:`.tables` shows them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from statistics import mean, stdev
from types import MappingProxyType
from typing import NamedTuple, Union

from ..errors import ConfigError

Accuracies = Mapping[str, float]
Results = Mapping[str, Union[Accuracies, Sequence[Accuracies]]]

OOD_AVERAGE = 'OOD avg'
MARK = '†'


class Metric(NamedTuple):
    """A number that a run has for every set.

    Attributes:
        label: What a table calls it.
        unit: What its numbers are.
        high: The largest value there can be; the smallest is 0.
        higher_is_better: Whether the highest is the best.
        digits: Decimal places shown.
        signed: Whether it is a difference: shown with its sign, of any size.
    """

    label: str
    unit: str
    high: float = 100.0
    higher_is_better: bool = True
    digits: int = 1
    signed: bool = False


# By their names in metrics.json.
METRICS = {
    'top1': Metric('Top-1 accuracy', 'accuracy in percent'),
    'top5': Metric('Top-5 accuracy', 'accuracy in percent'),
    'mean_per_class': Metric('Mean per-class accuracy', 'accuracy in percent'),
    'nll': Metric('Negative log-likelihood', 'nats', math.inf, False, 3),
    'ece': Metric('Expected calibration error', 'percent', 100.0, False),
    'mce': Metric('Mean corruption error', 'percent of the errors of AlexNet', math.inf, False),
}
ACCURACY = METRICS['top1']
EFFECTIVE_ROBUSTNESS = Metric('Effective robustness', 'percentage points', signed=True)


class Stat(NamedTuple):
    """Mean and sample standard deviation over ``num`` seeds; ``std`` is None for one seed."""

    mean: float
    std: float | None
    num: int

    @classmethod
    def over(cls, values: Sequence[float]) -> Stat:
        return cls(mean(values), stdev(values) if len(values) > 1 else None, len(values))

    def text(self, digits: int = 1, signed: bool = False) -> str:
        shown = round(self.mean, digits) + 0.0  # no negative zero
        return f'{shown:{"+" if signed else ""}.{digits}f}' + ('' if self.std is None else f' ± {self.std:.{digits}f}')


class Summary(NamedTuple):
    """What a table shows.

    Attributes:
        id_set: Name of the in-distribution test set; None for a table without one.
        shifts: Names of the distribution shifts, in order.
        rows: ``{method: {column: Stat}}`` with the columns ``id_set``, each shift, and ``'OOD avg'``; without an entry
            for a set that the method was not tested on.
        notes: Notes below the table: the sets in the OOD average, methods without one, and the meaning of the marks.
        marked: ``{(method, column): why}`` of the marked cells; a note explains each. A set without a column can be
            marked too, and then marks the average.
        metric: The metric that the table shows.
        extra: Names of further columns at the end, differences in percentage points.
        average: Whether there is a column of the average over shifts.
        more: Names of columns before these, of other numbers of the same kind as the metric.
        texts: ``{column: {method: text}}`` of columns behind all numbers.
        lower: Names of columns where the lowest number is the best, whatever is best of the metric.
    """

    id_set: str | None
    shifts: tuple[str, ...]
    rows: dict[str, dict[str, Stat]]
    notes: tuple[str, ...]
    marked: Mapping[tuple[str, str], str] = MappingProxyType({})
    metric: Metric = ACCURACY
    extra: tuple[str, ...] = ()
    average: bool = True
    more: tuple[str, ...] = ()
    texts: Mapping[str, Mapping[str, str]] = MappingProxyType({})
    lower: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        average = [OOD_AVERAGE] if self.shifts and self.average else []
        return (*([] if self.id_set is None else [self.id_set]), *self.shifts, *average, *self.more, *self.extra)

    @property
    def seeds(self) -> dict[str, int]:
        """Number of seeds of each method."""
        return {method: max(stat.num for stat in row.values()) for method, row in self.rows.items()}

    def is_best(self, method: str, column: str, digits: int | None = None) -> bool:
        """Whether the method has the best mean of a column that several methods have, to the precision shown."""
        digits = self.metric.digits if digits is None else digits
        shown = {m: round(row[column].mean, digits) for m, row in self.rows.items() if column in row}
        best = max if self.metric.higher_is_better and column not in self.lower else min
        return len(shown) > 1 and method in shown and shown[method] == best(shown.values())

    def text(self, method: str, column: str, digits: int | None = None) -> str:
        """A cell, with its mark if it has one."""
        mark = MARK if (method, column) in self.marked else ''
        if column not in self.rows[method]:
            return '–' + mark
        digits = self.metric.digits if digits is None else digits
        return self.rows[method][column].text(digits, self.metric.signed or column in self.extra) + mark


def check_results(results: Results, metric: Metric = ACCURACY) -> dict[str, list[dict[str, float]]]:
    """Check results and return them with a list of runs for every method.

    Raises:
        ConfigError: There is no method or run; the metric cannot have a value (accuracies are in 0..100); or the seeds
            of a method were tested on different sets.
    """
    if not results:
        raise ConfigError('results is empty: no method to show')
    runs = {m: [dict(r)] if isinstance(r, Mapping) else [dict(x) for x in r] for m, r in results.items()}
    for method, seeds in runs.items():
        if not seeds or not seeds[0]:
            raise ConfigError(f'no results for {method!r}')
        for i, run in enumerate(seeds):
            if run.keys() != seeds[0].keys():
                different = sorted(run.keys() ^ seeds[0].keys())
                raise ConfigError(
                    f'{method!r}: run {i} and run 0 were not tested on the same sets; '
                    f'only one of them has {", ".join(different)}'
                )
            for name, value in run.items():
                low = -math.inf if metric.signed else 0
                if not (isinstance(value, Real) and math.isfinite(value) and low <= value <= metric.high):
                    expected = (
                        'accuracy must be a percentage in 0..100'
                        if metric.high == 100 and not metric.signed
                        else (f'{metric.label} must be a finite number' + ('' if metric.signed else ', not below 0'))
                    )
                    raise ConfigError(f'{method!r} on {name!r}, run {i}: {expected}, got {value!r}')
    return {
        method: [{name: float(value) for name, value in run.items()} for run in seeds] for method, seeds in runs.items()
    }


def summarize(
    results: Results,
    id_set: str | None = 'test',
    shifts: Sequence[str] | None = None,
    metric: Metric = ACCURACY,
    marks: Mapping[str, Mapping[str, str]] | None = None,
    average: bool = True,
    apart: Sequence[str] = (),
    uncounted: Sequence[str] = (),
) -> Summary:
    """Compute means and standard deviations over seeds, and the OOD average.

    The OOD average is the unweighted mean over the shifts of one seed, averaged over seeds. A method that was not
    tested on a shift has no OOD average, and a note says so.

    Args:
        results: ``{method: {dataset: accuracy in percent}}``, or a list of such dicts per method, one per seed.
        id_set: Name of the in-distribution test set; None if there is none.
        shifts: Names of the distribution shifts. Defaults to all other sets, in order of appearance.
        metric: The metric of the values.
        marks: ``{method: {set: what is wrong}}``, for sets that are incomplete or missing. The cell of the set is
            marked, and for a shift the OOD average too. Notes give the reasons.
        average: Whether to compute the OOD average.
        apart: Names of sets, not among the shifts, with a column of their own behind the average.
        uncounted: Names of sets with other measures, whose marks say nothing about the average.

    Raises:
        ConfigError: The results are not valid (:func:`check_results`), or no method was tested on one of the sets.
    """
    runs = check_results(results, metric)
    known = list(dict.fromkeys(name for seeds in runs.values() for name in seeds[0]))
    shifts = tuple(n for n in known if n != id_set and n not in apart) if shifts is None else tuple(shifts)
    sets = (*([] if id_set is None else [id_set]), *shifts, *apart)
    missing = [name for name in sets if name not in known]
    if missing:
        raise ConfigError(f'no method was tested on {", ".join(missing)}; the results have {", ".join(known)}')

    rows, notes = {}, []
    average = average and bool(shifts)
    if average:
        notes.append(f'{OOD_AVERAGE}: unweighted mean of {", ".join(shifts)}.')
    for method, seeds in runs.items():
        rows[method] = {n: Stat.over([run[n] for run in seeds]) for n in sets if n in seeds[0]}
        lacking = [n for n in shifts if n not in seeds[0]]
        if average and lacking:
            notes.append(f'{method}: no {OOD_AVERAGE}, not tested on {", ".join(lacking)}.')
        elif average:
            rows[method][OOD_AVERAGE] = Stat.over([mean(run[n] for n in shifts) for run in seeds])
        if not rows[method]:
            del rows[method]
            notes.append(f'{method}: tested on none of these sets.')
    marked, explained = _marks(marks or {}, rows, (id_set, *apart, *uncounted))
    notes += explained
    if any(stat.std is not None for row in rows.values() for stat in row.values()):
        notes.append('± is the sample standard deviation over seeds.')
    return Summary(id_set, shifts, rows, tuple(notes), marked, metric, average=average, more=tuple(apart))


def _marks(marks, rows, uncounted):
    """The marked cells, ``{(method, column): why}``, and a note for each set and reason."""
    marked, methods = {}, {}
    for method, row in rows.items():
        for name, reason in marks.get(method, {}).items():
            marked[method, name] = reason
            methods.setdefault((name, reason), []).append(method)
        wrong = [name for name in marks.get(method, {}) if name not in uncounted]
        if wrong and OOD_AVERAGE in row:
            marked[method, OOD_AVERAGE] = ', '.join(wrong)
    who = {key: '' if len(names) == len(rows) else f' ({", ".join(names)})' for key, names in methods.items()}
    return marked, [f'{MARK} {name}: {reason}{who[name, reason]}.' for name, reason in methods]


def with_column(
    summary: Summary, name: str, values: Mapping[str, Sequence[float]], note: str, sets: Sequence[str]
) -> Summary:
    """Return the summary with one more column, of differences in percentage points.

    Args:
        summary: A summary.
        name: Name of the column.
        values: ``{method: one value per seed}``; methods may be left out.
        note: What the column is.
        sets: What it was computed from: where one of these is marked, so is the new cell.
    """
    rows = {m: {**row, name: Stat.over(values[m])} if m in values else row for m, row in summary.rows.items()}
    wrong = {m: [s for s in sets if (m, s) in summary.marked] for m in values}
    marked = {**summary.marked, **{(m, name): ', '.join(w) for m, w in wrong.items() if w}}
    return summary._replace(rows=rows, marked=marked, extra=(*summary.extra, name), notes=(*summary.notes, note))
