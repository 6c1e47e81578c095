#!/usr/bin/env python3
"""Check ImageNet, its shifts and other benchmarks under a folder: which are complete, and where to get the others.

    python tools/check_data.py DATA_ROOT [--sets imagenet-r imagenet-a …] [--sample 1000 | --all] [--json]

DATA_ROOT is a folder with all sets under the names of their unpacked archives, or the folder of ImageNet with the
others in or beside it. The exit code is 1 if a set is incomplete or wrong, or if there is no set.
"""

from __future__ import annotations

import argparse

from mmcfmask_cli import count, run


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Check the data of ImageNet, its shifts and other benchmarks')
    parser.add_argument('data_root', help='folder of all sets, or of ImageNet')
    parser.add_argument('--sets', nargs='+', metavar='SET', help='only these sets, such as imagenet-r (default: all)')
    parser.add_argument('--sample', type=count, default=100, help='images of each set to decode (default: 100)')
    parser.add_argument('--all', action='store_true', help='decode all images')
    parser.add_argument('--json', action='store_true', help='print JSON instead of a table')
    return parser.parse_args()


def main(args: argparse.Namespace) -> int:
    import json
    from dataclasses import asdict

    from rich.console import Console
    from rich.progress import track

    from mmcfmask.datasets.checks import check_sets
    from mmcfmask.reporting import all_complete, show_set_reports

    progress = Console(stderr=True)
    reports = check_sets(
        args.data_root,
        args.sets,
        None if args.all else args.sample,
        watch=lambda items, number, what: track(  # without a terminal it would print blank lines
            items, what, number, console=progress, transient=True, disable=not progress.is_terminal
        ),
    )
    if args.json:
        print(json.dumps([dict(asdict(report), status=report.status) for report in reports], indent=2))
    else:
        show_set_reports(reports, Console())
    return int(not all_complete(reports))


if __name__ == '__main__':
    run(main, parse_args())
