"""Renders the page: tables as HTML, and data, scripts and styles within it."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ..comparison import NOTE as COMPARISON_NOTE
from ..contents import Contents
from ..examples import collect_examples, encode_panel
from ..grids import Grid, corruptions_grid, lines_grid, sets_grid
from ..groups import group_tables
from ..runs import Run, describe_transform
from ..summary import Summary
from ..tables import table_cells
from .data import page_data

FOLDER = Path(__file__).parent
SCRIPTS = ('state.js', 'charts.js', 'compare.js')
EXAMPLES = 40  # images per set


class Cell(NamedTuple):
    """A cell of a table.

    Attributes:
        text: What it shows.
        value: What it is sorted by; None for its text.
        best: Whether it is the best of its column.
        why: What its mark means.
    """

    text: str
    value: float | None = None
    best: bool = False
    why: str = ''


class HtmlTable(NamedTuple):
    """A table of the page.

    Attributes:
        caption: What it shows.
        header: Names of the columns.
        rows: Cells; the first is the name of the row.
        left: How many columns are words.
        notes: Sentences below it.
        methods: Whether its rows are methods.
    """

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    left: int = 1
    notes: Sequence[str] = ()
    methods: bool = False


def render_page(contents: Contents, examples: int = EXAMPLES, title: str = 'Report') -> str:
    """The page, as HTML.

    Args:
        contents (Contents): Of a report.
        examples (int): Example images per set, where predictions for single images are there.
        title (str): Of the page.
    """
    found, notes = collect_examples(contents.predictions, examples)
    panels = describe_panels(contents.panels, notes)
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    tables = [summary_table(summary) for summary in (contents.accuracy, *contents.others)]
    lines = contents.lines
    return environment.get_template('page.html.j2').render(
        title=title,
        contents=contents,
        notes=[*contents.notes, *notes],
        tables=tables,
        robustness=summary_table(contents.robustness) if contents.robustness else None,
        reference=grid_table('Lines of the reference models', lines_grid(lines)) if lines else None,
        groups={
            name: grid_table(f'Accuracy in the groups of {name} (%)', grid, list(contents.methods))
            for name, grid in group_tables(contents.methods).items()
        },
        corruptions=grid_table('Error relative to AlexNet (%; lower is better)', corruptions)
        if (corruptions := corruptions_grid(contents.methods))
        else None,
        panels=panels,
        sets=grid_table('Sets', sets_grid(contents.runs)),
        runs=[dict(run=run, facts=run_facts(run), training=training_facts(run)) for run in contents.runs],
        comparison_note=COMPARISON_NOTE,
        data=script_json(page_data(contents, found)),
        style=(FOLDER / 'page.css').read_text(encoding='utf-8'),
        plotly=gzip.decompress((FOLDER / 'plotly-basic.min.js.gz').read_bytes()).decode(),
        script='\n'.join((FOLDER / name).read_text(encoding='utf-8') for name in SCRIPTS),
    )


def script_json(value: Any) -> str:
    """JSON that no HTML parser takes for the end of a script."""
    text = json.dumps(value, separators=(',', ':'))  # ASCII
    return text.replace('<', '\\u003c').replace('>', '\\u003e').replace('&', '\\u0026')


def summary_table(summary: Summary) -> HtmlTable:
    """A table of a summary, with the numbers to sort it by."""
    header, body = table_cells(summary)
    values = {f'ID ({c})' if c == summary.id_set else c: c for c in summary.columns}
    rows = []
    for row in body:
        method, cells = row[0][0], []
        for name, (text, best) in zip(header, row):
            column = values.get(name)
            stat = summary.rows[method].get(column) if column else None
            cells.append(Cell(text, stat.mean if stat else None, best, summary.marked.get((method, column), '')))
        rows.append(cells)
    metric = summary.metric
    better = '' if metric.higher_is_better else '; lower is better'
    return HtmlTable(f'{metric.label} ({metric.unit}{better})', header, rows, notes=summary.notes, methods=True)


def grid_table(caption: str, grid: Grid, methods: Sequence[str] = ()) -> HtmlTable:
    """A grid; ``methods`` names them if its rows are methods."""
    rows = [[Cell(text) for text in row] for row in grid.rows]
    return HtmlTable(caption, grid.header, rows, grid.left, methods=bool(methods))


def describe_panels(paths: Sequence[Path], notes: list[str]) -> list[dict[str, Any]]:
    """Pictures of counterfactual images for the template; adds a note for each that cannot be read."""
    panels = []
    for path in paths:
        try:
            url, (width, height) = encode_panel(path)
        except OSError as error:
            notes.append(f'{path} is left out: {error}.')
            continue
        name = path.stem.removeprefix('counterfactuals').strip('_').replace('_', ' ')
        panels.append(dict(url=url, width=width, height=height, name=name, path=str(path)))
    return panels


def run_facts(run: Run) -> dict[str, str]:
    """Where the numbers of a run come from: command, config, checkpoint, protocol and versions."""
    content = run.content
    checkpoint, tuned = content.get('checkpoint') or {}, content.get('tuned') or {}
    facts = {
        'Command': content.get('command') or 'not recorded',
        'File': run.path,
        'Config': content.get('config'),
        'Checkpoint': checkpoint.get('path', 'none: the pretrained weights'),
        'SHA-256': checkpoint.get('sha256'),
        'Chosen by': content.get('selected_by'),
        'Tuned': ', '.join(f'{key} = {value}' for key, value in (tuned.get('chosen') or {}).items()),
        'WiSE-FT α': content.get('wise_ft_alpha'),
        'Soup': content.get('soup'),
        'Inference': _words(content.get('inference')),
        'Precision': 'bfloat16' if content.get('amp') else 'float32',
        'In distribution': run.id_set,
        'Tested on': '; '.join(f'{name}: {_protocol(result)}' for name, result in run.sets.items()),
        'Not tested': '; '.join(f'{name}: {why}' for name, why in run.missing.items()),
        'Versions': _words(content.get('versions')),
    }
    return {name: str(value) for name, value in facts.items() if value not in (None, '')}


def training_facts(run: Run) -> dict[str, str]:
    """Settings of the training that wrote the checkpoint."""
    return dict(run.content.get('training') or {})


def _words(values: Mapping[str, Any] | None) -> str:
    return ', '.join(f'{name} {value}' for name, value in (values or {}).items() if value not in (None, False))


def _protocol(result: Mapping[str, Any]) -> str:
    images, published = result.get('images'), result.get('published_images')
    count = 'images unknown' if images is None else f'{images:,} images'
    if published is not None:
        count += ', as published' if images == published else f' of {published:,}'
    transform = describe_transform(result)
    return count + (f', {transform}' if transform else '')
