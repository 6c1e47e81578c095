"""The report on tested runs: a page, Markdown, JSON, CSV and figures in one folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.progress import track

from ..files import json_text, write_text
from .class_change import changes_csv
from .comparison import comparison_dict
from .contents import Contents, describe_methods, gather_contents
from .figures import Picture, plan_figures
from .markdown import report_markdown
from .runs import Run, group_runs
from .style import save_figure
from .tables import summaries_csv, summary_dict
from .web import EXAMPLES, render_page

PAGE = 'index.html'


def make_report(
    sources: Sequence[str],
    out: str | Path,
    shifts: Sequence[str] | None = None,
    line_file: str | None = None,
    compare: Sequence[str] | None = None,
    methods: Sequence[str] | None = None,
    examples: int = EXAMPLES,
) -> Contents:
    """Write a report on tested runs: ``index.html``, ``report.md``, ``report.json``, tables as CSV, and ``figures/`` as
    PNG and PDF.

    Nothing is written unless all runs can be read and compared.

    Args:
        sources: Folders and files with runs, see :func:`mmcfmask.reporting.runs.find_runs`.
        out: Folder of the report.
        shifts: Names of shifts, in order; None for all.
        line_file: CSV file of reference models for effective robustness; None for the one in the package.
        compare: Names of two methods to compare class by class.
        methods: Names of methods to show, in order; None for all.
        examples: Example images per set in the page, where predictions for single images are there.

    Returns:
        Contents: The numbers of the report.

    Raises:
        MissingFileError: A file or folder does not exist.
        ConfigError: A file is not valid, the runs are not comparable, or a name is unknown.
        StorageError: The report cannot be written.
    """
    contents = gather_contents(sources, shifts, line_file, compare, methods)
    write_report(contents, plan_figures(contents), Path(out), examples)
    return contents


def write_report(
    contents: Contents, figures: Mapping[str, Sequence[Picture]], out: Path, examples: int = EXAMPLES
) -> None:
    """Draw the figures and write all files; delete files of an earlier report that this one does not have."""
    pictures = [picture for chapter in figures.values() for picture in chapter]
    for picture in track(pictures, 'drawing figures', transient=True):
        save_figure(picture.draw(), out / 'figures' / f'{picture.name}.png', pdf=True)
    files = {
        PAGE: render_page(contents, examples),
        'report.md': report_markdown(contents, figures),
        'report.json': report_json(contents),
        'accuracy.csv': summaries_csv([contents.accuracy]),
        'metrics.csv': summaries_csv(contents.others) if contents.others else None,
        'effective_robustness.csv': summaries_csv([contents.robustness]) if contents.robustness else None,
        'class_change.csv': changes_csv(contents.changes, contents.runs[0].id_set) if contents.changes else None,
    }
    for name, text in files.items():
        if text is not None:
            write_text(out / name, text)
        else:
            (out / name).unlink(missing_ok=True)


def write_page(path: Path, methods: Mapping[str, list[Run]], panels: Sequence[Path] = (), title: str = '') -> None:
    """Write the page alone, of runs in the order given.

    Args:
        path: The file.
        methods: ``{method: runs}``.
        panels: Pictures of counterfactual images.
        title: Of the page.

    Raises:
        ConfigError: The runs are not comparable.
        StorageError: The file cannot be written.
    """
    runs = [run._replace(method=method) for method, seeds in methods.items() for run in seeds]
    contents = describe_methods(group_runs(runs), panels=panels)
    write_text(path, render_page(contents, title=title or 'Report'))


def report_json(contents: Contents) -> str:
    """The report as JSON, with the content of the runs except for their long lists."""
    long = ('per_class', 'per_class_count', 'reliability')
    lines, compare = contents.lines, contents.compare
    runs = [
        dict(
            run.content,
            method=run.method,
            file=str(run.path),
            sets={name: {k: v for k, v in result.items() if k not in long} for name, result in run.sets.items()},
        )
        for run in contents.runs
    ]
    everything = dict(
        id_set=contents.runs[0].id_set,
        shifts=list(contents.accuracy.shifts),
        notes=contents.notes,
        accuracy=summary_dict(contents.accuracy),
        effective_robustness=summary_dict(contents.robustness) if lines else None,
        lines=dict(source=lines.source, **{c: line._asdict() for c, (line, _) in lines.lines.items()})
        if lines
        else None,
        metrics={summary.metric.label: summary_dict(summary) for summary in contents.others},
        class_change=dict(
            before=compare[0],
            after=compare[1],
            sets={name: [dict(c._asdict(), change=c.change) for c in rows] for name, rows in contents.changes.items()},
            comparison=[comparison_dict(row) for row in contents.comparison],
        )
        if compare
        else None,
        runs=runs,
    )
    return json_text(everything, indent=1)
