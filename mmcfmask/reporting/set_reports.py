"""What :func:`mmcfmask.datasets.checks.check_sets` found, as a table."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..datasets.checks import SetReport

STYLES = dict(complete='green', incomplete='yellow', wrong='bold red', missing='dim')


def show_set_reports(reports: Sequence[SetReport], console: Console) -> None:
    """Print a table of sets, and below it where they are and what is wrong or missing.

    The table fits into 80 columns; in fewer columns no name of a set is cut.
    """
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for column in ('set', 'images', 'published', 'classes', 'read', 'status'):
        table.add_column(column, justify='left' if column in ('set', 'status') else 'right', no_wrap=True)
    table.columns[0].min_width = max(len(report.name) for report in reports)
    for report in reports:
        there = report.status != 'missing'
        table.add_row(
            report.name,
            f'{report.images:,}' if there else '–',
            f'{report.published_images:,}',
            f'{report.classes} of {report.published_classes}' if there else '–',
            str(report.decoded) if there else '–',
            f'[{STYLES[report.status]}]{report.status}[/]',
        )
    console.print(table)
    console.print()
    lines = {}  # a message about several sets is printed once
    for report in reports:
        for words in [*([f'in {report.folder}'] if report.folder else []), *report.words()]:
            lines.setdefault(words, []).append(report.name)
    for words, names in lines.items():
        console.print(f'[bold]{", ".join(names)}[/]: {escape(words)}', highlight=False, soft_wrap=True)


def all_complete(reports: Sequence[SetReport]) -> bool:
    """Whether there is any set, and no set is incomplete or wrong; sets may be missing."""
    statuses = {report.status for report in reports}
    return {'complete'} <= statuses <= {'complete', 'missing'}
