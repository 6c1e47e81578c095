"""Tables of results: rows are methods; columns the ID set, each shift, and the OOD average."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from .summary import MARK, OOD_AVERAGE, Results, Summary, check_results, summarize


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
    """The results as a table for the terminal; arguments and errors as in :func:`summarize`.

    The best mean of each column is bold, ties included, if several methods have the column. With ``highlight``, the row
    of this name is bold instead. ``–`` means not measured. ``notes`` follow the notes of the table. ``first_column`` is
    the heading of the first column.

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
    """A summary as a table for the terminal, see :func:`results_table`."""
    header, body = table_cells(summary, digits, highlight, first_column)
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
        # Terminals are narrow: the columns are "ID (imagenet)", "r", "a", "sketch"; the notes have the full names.
        name = name.removeprefix(f'{summary.id_set}-') if summary.id_set else name
        table.add_column(Text(name), justify='right', overflow='fold')
    for row in body:
        # A narrow terminal breaks the line before the ±, not after it.
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
    """A summary as a Markdown table with its notes, see :func:`results_table`."""
    header, body = table_cells(summary, digits, highlight, first_column)
    rows = [[f'**{text}**' if best else text for text, best in row] for row in body]
    return markdown_table(header, rows) + ''.join(f'\n{note}\n' for note in summary.notes)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A Markdown table; the first ``left`` columns are aligned to the left, the others to the right."""

    def line(cells):
        return '| ' + ' | '.join(cell.replace('|', r'\|').replace('\n', ' ') for cell in cells) + ' |'

    align = '|' + '|'.join([':---'] * left + ['---:'] * (len(header) - left)) + '|'
    return '\n'.join([line(header), align, *map(line, rows), ''])


def summaries_csv(summaries: Sequence[Summary]) -> str:
    """Summaries as one CSV table: metric, method, seeds, mean and standard deviation (sd) of every column, notes.

    A cell is empty if nothing was measured, and for the sd of one seed. The notes of a row name its incomplete sets.
    """
    columns = list(dict.fromkeys(column for summary in summaries for column in summary.columns))
    texts = list(dict.fromkeys(column for summary in summaries for column in summary.texts))
    file = io.StringIO()
    writer = csv.writer(file, lineterminator='\n')
    writer.writerow(
        [
            *('metric', 'method', 'seeds'),
            *(cell for column in columns for cell in (column, f'{column} sd')),
            *texts,
            'notes',
        ]
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
                if m == method and name not in (OOD_AVERAGE, *summary.more, *summary.extra)
            ]
            words = [summary.texts.get(column, {}).get(method, '') for column in texts]
            writer.writerow([summary.metric.label, method, summary.seeds[method], *cells, *words, '; '.join(notes)])
    return file.getvalue()


def to_json(results: Results, id_set: str | None = 'test', shifts: Sequence[str] | None = None) -> str:
    """The results as JSON; arguments and errors as in :func:`summarize`.

    Its keys are ``id_set``, ``shifts``, ``notes`` and ``methods``. Every method has its ``runs`` as given, and ``mean``
    and ``std`` per column at full precision; ``null`` means not measured, or the ``std`` of one seed.
    """
    return summary_json(summarize(results, id_set, shifts), results)


def summary_json(table: Summary, results: Results) -> str:
    """A summary as JSON with the results that it was made of, see :func:`to_json`."""
    summary = summary_dict(table)
    for method, runs in check_results(results).items():
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
                **(
                    {'texts': texts}
                    if (texts := {c: t[method] for c, t in summary.texts.items() if method in t})
                    else {}
                ),
            )
            for method, row in summary.rows.items()
        },
    )


def _with_notes(summary, notes):
    return summary._replace(notes=(*summary.notes, *notes))


def table_cells(
    summary: Summary, digits: int | None = None, highlight: str | None = None, first_column: str = 'Method'
) -> tuple[list[str], list[list[tuple[str, bool]]]]:
    """Header, and rows of (text, is bold), of a table of a summary."""
    several = max(summary.seeds.values()) > 1
    header = [
        first_column,
        *(['Seeds'] if several else []),
        *(f'ID ({column})' if column == summary.id_set else column for column in summary.columns),
        *summary.texts,
    ]
    body = []
    for method in summary.rows:
        bold = {
            c: summary.is_best(method, c, digits) if highlight is None else method == highlight for c in summary.columns
        }
        cells = [(summary.text(method, c, digits), bold[c]) for c in summary.columns]
        cells += [(texts.get(method, '–'), False) for texts in summary.texts.values()]
        body.append([(method, False), *([(str(summary.seeds[method]), False)] if several else []), *cells])
    return header, body
