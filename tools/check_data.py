#!/usr/bin/env python3
"""Check which of ImageNet and its shifts are under a folder, whether they are what was published, and where to get the others.

    python tools/check_data.py DATA_ROOT [--sets imagenet-r imagenet-a …] [--sample 1000 | --all] [--json]

DATA_ROOT: a folder with all sets under the names of their archives as unpacked, or ImageNet's own with the others in or beside it.
Exits with 1 if a set that is there is incomplete or wrong, or if there is none.
"""
import argparse
import json
import sys
from dataclasses import asdict

from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from mmcfmask.datasets.checks import SetReport, check_sets
from mmcfmask.datasets.layouts import SETS

STYLES = dict(complete='green', incomplete='yellow', wrong='bold red', missing='dim')


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Check the data of ImageNet and its shifts')
    parser.add_argument('data_root', help='folder of all sets, or of ImageNet')
    parser.add_argument('--sets', nargs='+', choices=list(SETS), metavar='SET', help=f'some of {", ".join(SETS)} (default: all)')
    parser.add_argument('--sample', type=int, default=100, help='images of each set to decode (default: 100)')
    parser.add_argument('--all', action='store_true', help='decode all images')
    parser.add_argument('--json', action='store_true', help='print JSON instead of a table')
    return parser.parse_args(argv)


def show(reports: list[SetReport], console: Console) -> None:
    """A table, and below it what is wrong or missing in words."""
    table = Table('set', 'images', 'published', 'classes', 'read', 'status', 'folder')
    for column in table.columns[1:5]:
        column.justify = 'right'
    for report in reports:
        there = report.status != 'missing'
        table.add_row(
            report.name, f'{report.images:,}' if there else '–', f'{report.published_images:,}',
            f'{report.classes} of {report.published_classes}' if there else '–', str(report.decoded) if there else '–',
            f'[{STYLES[report.status]}]{report.status}[/]', escape(report.folder or ''))
    console.print(table)
    for report in reports:
        for words in report.words():
            console.print(f'[bold]{report.name}[/]: {escape(words)}', highlight=False, soft_wrap=True)


def main(argv=None) -> int:
    args = parse_args(argv)
    progress = Console(stderr=True)
    try:
        reports = check_sets(
            args.data_root,
            args.sets,
            None if args.all else args.sample,
            watch=lambda items, number, what: track(items, what, number, console=progress, transient=True))
    except FileNotFoundError as error:
        raise SystemExit(str(error)) from None
    if args.json:
        print(json.dumps([dict(asdict(report), status=report.status) for report in reports], indent=2))
    else:
        show(reports, Console())
    there = [report for report in reports if report.status != 'missing']
    return int(not there or any(report.status != 'complete' for report in there))


if __name__ == '__main__':
    sys.exit(main())
