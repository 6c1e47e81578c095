#!/usr/bin/env python3
"""Check which of ImageNet and its shifts are under a folder, whether they are what was published, and where to get the
others.

    python tools/check_data.py DATA_ROOT [--sets imagenet-r imagenet-a …] [--sample 1000 | --all] [--json]

DATA_ROOT: a folder with all sets under the names of their archives as unpacked, or ImageNet's own with the others in or
    beside it.
Exits with 1 if a set that is there is incomplete or wrong, or if there is none.
"""

import argparse
import json
from dataclasses import asdict

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from mmcfmask.datasets.checks import SetReport, check_sets
from mmcfmask.datasets.layouts import SETS
from mmcfmask.engine.options import count
from mmcfmask.output import run_tool

STYLES = dict(complete='green', incomplete='yellow', wrong='bold red', missing='dim')


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Check the data of ImageNet and its shifts')
    parser.add_argument('data_root', help='folder of all sets, or of ImageNet')
    parser.add_argument(
        '--sets', nargs='+', choices=list(SETS), metavar='SET', help=f'some of {", ".join(SETS)} (default: all)'
    )
    parser.add_argument('--sample', type=count, default=100, help='images of each set to decode (default: 100)')
    parser.add_argument('--all', action='store_true', help='decode all images')
    parser.add_argument('--json', action='store_true', help='print JSON instead of a table')
    return parser.parse_args(argv)


def show(reports: list[SetReport], console: Console) -> None:
    """A table, and below it where the sets are and what is wrong or missing, in words. Fits in 80 columns; no name is
    cut in fewer."""
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
    lines = {}  # what is said of several sets is said once
    for report in reports:
        for words in [*([f'in {report.folder}'] if report.folder else []), *report.words()]:
            lines.setdefault(words, []).append(report.name)
    for words, names in lines.items():
        console.print(f'[bold]{", ".join(names)}[/]: {escape(words)}', highlight=False, soft_wrap=True)


def main(argv=None) -> int:
    args = parse_args(argv)
    progress = Console(stderr=True)
    try:
        reports = check_sets(
            args.data_root,
            args.sets,
            None if args.all else args.sample,
            watch=lambda items, number, what: track(
                items, what, number, console=progress, transient=True, disable=not progress.is_terminal
            ),
        )  # it would leave blank lines
    except FileNotFoundError as error:
        raise SystemExit(str(error)) from None
    if args.json:
        print(json.dumps([dict(asdict(report), status=report.status) for report in reports], indent=2))
    else:
        show(reports, Console())
    there = [report for report in reports if report.status != 'missing']
    return int(not there or any(report.status != 'complete' for report in there))


if __name__ == '__main__':
    run_tool(main)
