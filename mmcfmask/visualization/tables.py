"""Tables of results: rows are methods; columns the ID set, each shift, and the OOD average."""
from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from numbers import Real
from statistics import mean, stdev
from typing import NamedTuple, Union

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table
from rich.text import Text

Accuracies = Mapping[str, float]
Results = Mapping[str, Union[Accuracies, Sequence[Accuracies]]]

OOD_AVERAGE = 'OOD avg'


class Stat(NamedTuple):
    """Mean and sample standard deviation over ``num`` seeds; ``std`` is None for one seed."""
    mean: float
    std: float | None
    num: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Stat:
        return cls(mean(values), stdev(values) if len(values) > 1 else None, len(values))

    def text(self, digits: int = 1) -> str:
        return f'{self.mean:.{digits}f}' + ('' if self.std is None else f' ± {self.std:.{digits}f}')


class Summary(NamedTuple):
    """What the tables show.

    Attributes:
        id_set: Name of the in-distribution test set; None if it was not tested.
        shifts: Names of the distribution shifts, in order.
        rows: ``{method: {column: Stat}}`` with the columns ``id_set``, each shift, and ``'OOD avg'``. What was not
            measured has no entry.
        notes: What the reader must know: of what the OOD average is the mean, and who lacks it.
    """
    id_set: str | None
    shifts: tuple[str, ...]
    rows: dict[str, dict[str, Stat]]
    notes: tuple[str, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        return (*([] if self.id_set is None else [self.id_set]), *self.shifts, *([OOD_AVERAGE] if self.shifts else []))

    @property
    def seeds(self) -> dict[str, int]:
        """Number of seeds of each method."""
        return {method: max(stat.num for stat in row.values()) for method, row in self.rows.items()}

    def is_best(self, method: str, column: str, digits: int = 1) -> bool:
        """Whether the method has the highest mean of the column, to the precision shown."""
        shown = {m: round(row[column].mean, digits) for m, row in self.rows.items() if column in row}
        return method in shown and shown[method] == max(shown.values())


def runs_of(results: Results) -> dict[str, list[dict[str, float]]]:
    """``results`` with a list of runs for every method, checked.

    Raises:
        ValueError: If there is no method or run, a value is not a number in 0..100, or a method has a set for some of
            its seeds only.
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
                raise ValueError(f'{method!r}: run {i} and run 0 were not tested on the same sets; '
                                 f'only one of them has {", ".join(different)}')
            for name, value in run.items():
                if not (isinstance(value, Real) and math.isfinite(value) and 0 <= value <= 100):
                    raise ValueError(f'{method!r} on {name!r}, run {i}: accuracy must be a percentage in 0..100, '
                                     f'got {value!r}')
    return {method: [{name: float(value) for name, value in run.items()} for run in seeds] for method, seeds in runs.items()}


def summarize(results: Results, id_set: str | None = 'test', shifts: Sequence[str] | None = None) -> Summary:
    """Means and standard deviations over seeds, and the OOD average.

    The OOD average is the unweighted mean over the shifts, taken for each seed and then over seeds. A method that lacks
    a shift gets none, and a note says so.

    Args:
        results: ``{method: {dataset: accuracy in percent}}``, or a list of such dicts per method, one per seed.
        id_set: Name of the in-distribution test set; None if it was not tested.
        shifts: Names of the distribution shifts. Defaults to all other sets, in the order they appear.

    Raises:
        ValueError: If results are not well-formed (:func:`runs_of`), or ``id_set`` or a shift was run for no method.
    """
    runs = runs_of(results)
    known = list(dict.fromkeys(name for seeds in runs.values() for name in seeds[0]))
    shifts = tuple(n for n in known if n != id_set) if shifts is None else tuple(shifts)
    ids = () if id_set is None else (id_set, )
    missing = [name for name in (*ids, *shifts) if name not in known]
    if missing:
        raise ValueError(f'no method was tested on {", ".join(missing)}; the results hold {", ".join(known)}')

    rows, notes = {}, []
    if shifts:
        notes.append(f'{OOD_AVERAGE}: unweighted mean of {", ".join(shifts)}.')
    for method, seeds in runs.items():
        rows[method] = {n: Stat.of([run[n] for run in seeds]) for n in (*ids, *shifts) if n in seeds[0]}
        lacking = [n for n in shifts if n not in seeds[0]]
        if lacking:
            notes.append(f'{method}: no {OOD_AVERAGE}, not tested on {", ".join(lacking)}.')
        elif shifts:
            rows[method][OOD_AVERAGE] = Stat.of([mean(run[n] for n in shifts) for run in seeds])
        if not rows[method]:
            del rows[method]
            notes.append(f'{method}: tested on none of these sets.')
    if any(stat.std is not None for row in rows.values() for stat in row.values()):
        notes.append('± is the sample standard deviation over seeds.')
    return Summary(id_set, shifts, rows, tuple(notes))


def results_table(results: Results,
                  id_set: str | None = 'test',
                  shifts: Sequence[str] | None = None,
                  title: str | None = None,
                  digits: int = 1,
                  notes: Sequence[str] = (),
                  highlight: str | None = None,
                  first_column: str = 'Method') -> Table:
    """The results for the terminal; arguments and errors as in :func:`summarize`.

    The best mean of each column is bold, ties included; or the row ``highlight`` is, where the best of a column must not be looked for.
    ``–`` stands for what was not measured. ``notes`` are put under the table, after its own. ``first_column`` heads the rows.

    Returns:
        rich.table.Table: To be printed with ``rich.print`` or a ``rich.console.Console``.
    """
    header, body, own_notes = _cells(summarize(results, id_set, shifts), digits, highlight, first_column)
    table = Table(title=title, box=SIMPLE_HEAD, caption='\n'.join(map(escape, [*own_notes, *notes])), caption_justify='left')
    longest = max(len(row[0][0]) for row in body)
    table.add_column(Text(header[0]), overflow='fold', min_width=min(longest, 24))  # a path folds, a name does not
    for name in header[1:]:
        table.add_column(Text(name), justify='right')
    for row in body:
        # In a narrow terminal the line breaks before the ±, not after it.
        table.add_row(*(Text(text.replace('± ', '±'), style='bold' if best else '') for text, best in row))
    return table


def to_markdown(results: Results,
                id_set: str | None = 'test',
                shifts: Sequence[str] | None = None,
                digits: int = 1,
                notes: Sequence[str] = (),
                highlight: str | None = None,
                first_column: str = 'Method') -> str:
    """The results as a Markdown table with its notes; arguments and errors as in :func:`results_table`."""
    header, body, own_notes = _cells(summarize(results, id_set, shifts), digits, highlight, first_column)

    def line(cells):
        return '| ' + ' | '.join(cell.replace('|', r'\|') for cell in cells) + ' |'

    lines = [line(header), '|' + '|'.join([':---'] + ['---:'] * (len(header) - 1)) + '|']
    lines += [line(f'**{text}**' if best else text for text, best in row) for row in body]
    return '\n'.join([*lines, '', '\n\n'.join([*own_notes, *notes]), ''])


def to_json(results: Results, id_set: str | None = 'test', shifts: Sequence[str] | None = None) -> str:
    """The results as JSON; arguments and errors as in :func:`summarize`.

    It holds ``id_set``, ``shifts``, ``notes`` and under ``methods`` for every method its ``runs`` as given and, at full
    precision, ``mean`` and ``std`` per column; ``null`` stands for what was not measured or has one seed only.
    """
    summary = summarize(results, id_set, shifts)
    methods = {}
    for method, runs in runs_of(results).items():
        row = summary.rows.get(method, {})
        methods[method] = dict(
            seeds=len(runs),
            mean={column: row[column].mean if column in row else None for column in summary.columns},
            std={column: row[column].std if column in row else None for column in summary.columns},
            runs=runs)
    return json.dumps(
        dict(
            unit='accuracy in percent',
            id_set=summary.id_set,
            shifts=list(summary.shifts),
            notes=list(summary.notes),
            methods=methods),
        indent=2,
        ensure_ascii=False) + '\n'


def _cells(summary, digits, highlight, first_column):
    """Header, rows of (text, is bold), notes."""
    several = max(summary.seeds.values()) > 1
    columns = summary.columns
    header = [first_column, *(['Seeds'] if several else []), *(f'ID ({c})' if c == summary.id_set else c for c in columns)]
    body = []
    for method, row in summary.rows.items():
        bold = {c: summary.is_best(method, c, digits) if highlight is None else method == highlight for c in columns}
        cells = [(row[c].text(digits), bold[c]) if c in row else ('–', False) for c in columns]
        body.append([(method, False), *([(str(summary.seeds[method]), False)] if several else []), *cells])
    return header, body, list(summary.notes)
