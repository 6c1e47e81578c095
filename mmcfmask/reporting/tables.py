"""Tables of results: rows are methods; columns the ID set, each shift, and the OOD average."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from numbers import Real
from statistics import mean, stdev
from types import MappingProxyType
from typing import NamedTuple, Union

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table
from rich.text import Text

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
    def of(cls, values: Sequence[float]) -> Stat:
        return cls(mean(values), stdev(values) if len(values) > 1 else None, len(values))

    def text(self, digits: int = 1, signed: bool = False) -> str:
        return f'{self.mean:{"+" if signed else ""}.{digits}f}' + (
            '' if self.std is None else f' ± {self.std:.{digits}f}'
        )


class Summary(NamedTuple):
    """What a table shows.

    Attributes:
        id_set: Name of the in-distribution test set; None for a table without one.
        shifts: Names of the distribution shifts, in order.
        rows: ``{method: {column: Stat}}`` with the columns ``id_set``, each shift, and ``'OOD avg'``. What was not
            measured has no entry.
        notes: What the reader must know: of what the OOD average is the mean, who lacks it, what the marks mean.
        marked: ``{(method, column): why}`` of the cells shown with a mark; a note explains each. A set that no method
            was tested on may be there too: it marks the average.
        metric: What is shown.
        extra: Names of further columns at the end, differences in percentage points.
        average: Whether there is a column of the average over shifts.
    """

    id_set: str | None
    shifts: tuple[str, ...]
    rows: dict[str, dict[str, Stat]]
    notes: tuple[str, ...]
    marked: Mapping[tuple[str, str], str] = MappingProxyType({})
    metric: Metric = ACCURACY
    extra: tuple[str, ...] = ()
    average: bool = True

    @property
    def columns(self) -> tuple[str, ...]:
        average = [OOD_AVERAGE] if self.shifts and self.average else []
        return (*([] if self.id_set is None else [self.id_set]), *self.shifts, *average, *self.extra)

    @property
    def seeds(self) -> dict[str, int]:
        """Number of seeds of each method."""
        return {method: max(stat.num for stat in row.values()) for method, row in self.rows.items()}

    def is_best(self, method: str, column: str, digits: int | None = None) -> bool:
        """Whether the method has the best mean of the column, to the precision shown; a method alone in it has not."""
        digits = self.metric.digits if digits is None else digits
        shown = {m: round(row[column].mean, digits) for m, row in self.rows.items() if column in row}
        best = max if self.metric.higher_is_better else min
        return len(shown) > 1 and method in shown and shown[method] == best(shown.values())

    def text(self, method: str, column: str, digits: int | None = None) -> str:
        """A cell, with its mark if it has one."""
        mark = MARK if (method, column) in self.marked else ''
        if column not in self.rows[method]:
            return '–' + mark
        digits = self.metric.digits if digits is None else digits
        return self.rows[method][column].text(digits, self.metric.signed or column in self.extra) + mark


def runs_of(results: Results, metric: Metric = ACCURACY) -> dict[str, list[dict[str, float]]]:
    """``results`` with a list of runs for every method, checked.

    Raises:
        ValueError: If there is no method or run, a value is not a number that the metric can have (0..100 for
            accuracies), or a method has a set for some of its seeds only.
    """
    if not results:
        raise ValueError('results is empty: no method to show')
    runs = {m: [dict(r)] if isinstance(r, Mapping) else [dict(x) for x in r] for m, r in results.items()}
    for method, seeds in runs.items():
        if not seeds or not seeds[0]:
            raise ValueError(f'no results for {method!r}')
        for i, run in enumerate(seeds):
            if run.keys() != seeds[0].keys():
                different = sorted(run.keys() ^ seeds[0].keys())
                raise ValueError(
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
                    raise ValueError(f'{method!r} on {name!r}, run {i}: {expected}, got {value!r}')
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
) -> Summary:
    """Means and standard deviations over seeds, and the OOD average.

    The OOD average is the unweighted mean over the shifts, taken for each seed and then over seeds. A method that lacks
    a shift gets none, and a note says so.

    Args:
        results: ``{method: {dataset: accuracy in percent}}``, or a list of such dicts per method, one per seed.
        id_set: Name of the in-distribution test set; None if there is none.
        shifts: Names of the distribution shifts. Defaults to all other sets, in the order they appear.
        metric: What the values are, if not accuracies.
        marks: ``{method: {set: what is wrong with it}}``, for sets that are incomplete or missing: the cell of the set
            is marked, and so is the OOD average unless it is the in-distribution set. Notes give the reasons.
        average: Whether to take the OOD average.

    Raises:
        ValueError: If results are not well-formed (:func:`runs_of`), or ``id_set`` or a shift was run for no method.
    """
    runs = runs_of(results, metric)
    known = list(dict.fromkeys(name for seeds in runs.values() for name in seeds[0]))
    shifts = tuple(n for n in known if n != id_set) if shifts is None else tuple(shifts)
    sets = (*([] if id_set is None else [id_set]), *shifts)
    missing = [name for name in sets if name not in known]
    if missing:
        raise ValueError(f'no method was tested on {", ".join(missing)}; the results hold {", ".join(known)}')

    rows, notes = {}, []
    average = average and bool(shifts)
    if average:
        notes.append(f'{OOD_AVERAGE}: unweighted mean of {", ".join(shifts)}.')
    for method, seeds in runs.items():
        rows[method] = {n: Stat.of([run[n] for run in seeds]) for n in sets if n in seeds[0]}
        lacking = [n for n in shifts if n not in seeds[0]]
        if average and lacking:
            notes.append(f'{method}: no {OOD_AVERAGE}, not tested on {", ".join(lacking)}.')
        elif average:
            rows[method][OOD_AVERAGE] = Stat.of([mean(run[n] for n in shifts) for run in seeds])
        if not rows[method]:
            del rows[method]
            notes.append(f'{method}: tested on none of these sets.')
    marked, explained = _marks(marks or {}, rows, id_set)
    notes += explained
    if any(stat.std is not None for row in rows.values() for stat in row.values()):
        notes.append('± is the sample standard deviation over seeds.')
    return Summary(id_set, shifts, rows, tuple(notes), marked, metric, average=average)


def _marks(marks, rows, id_set):
    """``{(method, column): why}`` to mark, and a note for each set and reason."""
    marked, methods = {}, {}
    for method, row in rows.items():
        for name, reason in marks.get(method, {}).items():
            marked[method, name] = reason
            methods.setdefault((name, reason), []).append(method)
        wrong = [name for name in marks.get(method, {}) if name != id_set]
        if wrong and OOD_AVERAGE in row:
            marked[method, OOD_AVERAGE] = ', '.join(wrong)
    who = {key: '' if len(names) == len(rows) else f' ({", ".join(names)})' for key, names in methods.items()}
    return marked, [f'{MARK} {name}: {reason}{who[name, reason]}.' for name, reason in methods]


def with_column(
    summary: Summary, name: str, values: Mapping[str, Sequence[float]], note: str, sets: Sequence[str]
) -> Summary:
    """The summary with one more column, of differences in percentage points.

    Args:
        summary: A summary.
        name: Name of the column.
        values: ``{method: one value per seed}``; methods may be left out.
        note: What the column is.
        sets: What it was computed from: where one of these is marked, so is the new cell.
    """
    rows = {m: {**row, name: Stat.of(values[m])} if m in values else row for m, row in summary.rows.items()}
    wrong = {m: [s for s in sets if (m, s) in summary.marked] for m in values}
    marked = {**summary.marked, **{(m, name): ', '.join(w) for m, w in wrong.items() if w}}
    return summary._replace(rows=rows, marked=marked, extra=(*summary.extra, name), notes=(*summary.notes, note))


def results_table(
    results: Results,
    id_set: str | None = 'test',
    shifts: Sequence[str] | None = None,
    title: str | None = None,
    digits: int | None = None,
    notes: Sequence[str] = (),
    highlight: str | None = None,
    first_column: str = 'Method',
    marks: Mapping[str, Mapping[str, str]] | None = None,
) -> Table:
    """The results for the terminal; arguments and errors as in :func:`summarize`.

    The best mean of each column is bold, ties included, if several methods have the column; or the row ``highlight``
    is, where the best of a column must not be looked for. ``–`` stands for what was not measured. ``notes`` are put
    under the table, after its own. ``first_column`` heads the rows.

    Returns:
        rich.table.Table: To be printed with ``rich.print`` or a ``rich.console.Console``.
    """
    return summary_table(
        _with_notes(summarize(results, id_set, shifts, marks=marks), notes), title, digits, highlight, first_column
    )


def summary_table(
    summary: Summary,
    title: str | None = None,
    digits: int | None = None,
    highlight: str | None = None,
    first_column: str = 'Method',
) -> Table:
    """A summary for the terminal, as in :func:`results_table`."""
    header, body = _cells(summary, digits, highlight, first_column)
    table = Table(
        title=title,
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        caption='\n'.join(map(escape, summary.notes)),
        caption_justify='left',
    )
    longest = max(len(row[0][0]) for row in body)
    table.add_column(Text(header[0]), overflow='fold', no_wrap=longest <= 24)  # a path folds, a name does not
    for name in header[1:]:
        # Terminals are narrow: beside "ID (imagenet)" stand "r", "a", "sketch"; the notes have the whole names.
        name = name.removeprefix(f'{summary.id_set}-') if summary.id_set else name
        table.add_column(Text(name), justify='right', overflow='fold')
    for row in body:
        # In a narrow terminal the line breaks before the ±, not after it.
        table.add_row(*(Text(text.replace('± ', '±'), style='bold' if best else '') for text, best in row))
    return table


def to_markdown(
    results: Results,
    id_set: str | None = 'test',
    shifts: Sequence[str] | None = None,
    digits: int | None = None,
    notes: Sequence[str] = (),
    highlight: str | None = None,
    first_column: str = 'Method',
    marks: Mapping[str, Mapping[str, str]] | None = None,
) -> str:
    """The results as a Markdown table with its notes; arguments and errors as in :func:`results_table`."""
    return summary_markdown(
        _with_notes(summarize(results, id_set, shifts, marks=marks), notes), digits, highlight, first_column
    )


def summary_markdown(
    summary: Summary, digits: int | None = None, highlight: str | None = None, first_column: str = 'Method'
) -> str:
    """A summary as a Markdown table with its notes, as in :func:`results_table`."""
    header, body = _cells(summary, digits, highlight, first_column)
    rows = [[f'**{text}**' if best else text for text, best in row] for row in body]
    return markdown_table(header, rows) + ''.join(f'\n{note}\n' for note in summary.notes)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A table in Markdown; the ``left`` first columns are aligned to the left, the others to the right."""

    def line(cells):
        return '| ' + ' | '.join(cell.replace('|', r'\|').replace('\n', ' ') for cell in cells) + ' |'

    align = '|' + '|'.join([':---'] * left + ['---:'] * (len(header) - left)) + '|'
    return '\n'.join([line(header), align, *map(line, rows), ''])


def summaries_csv(summaries: Sequence[Summary]) -> str:
    """Summaries as one CSV table, full precision: metric, method, seeds, mean and sd of every column, notes.

    Cells of what was not measured, and of the sd of one seed, are empty. The notes of a row say which of its sets are
    not whole.
    """
    columns = list(dict.fromkeys(column for summary in summaries for column in summary.columns))
    file = io.StringIO()
    writer = csv.writer(file, lineterminator='\n')
    writer.writerow(
        ['metric', 'method', 'seeds', *(cell for column in columns for cell in (column, f'{column} sd')), 'notes']
    )
    for summary in summaries:
        for method, row in summary.rows.items():
            stats = [row.get(column) for column in columns]
            cells = (
                '' if value is None else f'{value:.6g}'
                for stat in stats
                for value in (stat[:2] if stat else (None, None))
            )
            notes = [
                f'{MARK} {name}: {why}'
                for (m, name), why in summary.marked.items()
                if m == method and name not in (OOD_AVERAGE, *summary.extra)
            ]
            writer.writerow([summary.metric.label, method, summary.seeds[method], *cells, '; '.join(notes)])
    return file.getvalue()


def to_json(results: Results, id_set: str | None = 'test', shifts: Sequence[str] | None = None) -> str:
    """The results as JSON; arguments and errors as in :func:`summarize`.

    It holds ``id_set``, ``shifts``, ``notes`` and under ``methods`` for every method its ``runs`` as given and, at full
    precision, ``mean`` and ``std`` per column; ``null`` stands for what was not measured or has one seed only.
    """
    summary = summary_dict(summarize(results, id_set, shifts))
    for method, runs in runs_of(results).items():
        nothing = dict.fromkeys(summary['columns'])
        summary['methods'].setdefault(method, dict(seeds=len(runs), mean=nothing, std=nothing))['runs'] = runs
    return json.dumps(summary, indent=2, ensure_ascii=False) + '\n'


def summary_dict(summary: Summary) -> dict:
    """A summary as a dict that ``json.dumps`` takes."""
    return dict(
        unit=summary.metric.unit,
        id_set=summary.id_set,
        shifts=list(summary.shifts),
        columns=list(summary.columns),
        notes=list(summary.notes),
        methods={
            method: dict(
                seeds=summary.seeds[method],
                mean={column: row[column].mean if column in row else None for column in summary.columns},
                std={column: row[column].std if column in row else None for column in summary.columns},
                marked={name: why for (m, name), why in summary.marked.items() if m == method},
            )
            for method, row in summary.rows.items()
        },
    )


def _with_notes(summary, notes):
    return summary._replace(notes=(*summary.notes, *notes))


def _cells(summary, digits, highlight, first_column):
    """Header, rows of (text, is bold)."""
    several = max(summary.seeds.values()) > 1
    header = [
        first_column,
        *(['Seeds'] if several else []),
        *(f'ID ({column})' if column == summary.id_set else column for column in summary.columns),
    ]
    body = []
    for method in summary.rows:
        bold = {
            c: summary.is_best(method, c, digits) if highlight is None else method == highlight for c in summary.columns
        }
        cells = [(summary.text(method, c, digits), bold[c]) for c in summary.columns]
        body.append([(method, False), *([(str(summary.seeds[method]), False)] if several else []), *cells])
    return header, body
