#!/usr/bin/env python3
"""A page, tables and figures of runs that were tested with ``tools/test.py --out metrics.json``.

    python tools/report.py work_dirs/ft work_dirs/cfmask --out report/   # all metrics.json in and below them
    python tools/report.py Zero-shot=zs/metrics.json FT=work_dirs/ft CFMask=work_dirs/cfmask --compare Zero-shot FT
    python tools/report.py work_dirs --shifts imagenet-r imagenet-a --line my_models.csv

Runs of one method (the name in the file, or NAME=FOLDER) are averaged over seeds. docs/report.md describes the report.
"""

from __future__ import annotations

import argparse

from mmcfmask_cli import file_name, natural, run


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Make tables and figures of tested runs')
    parser.add_argument(
        'runs', nargs='+', metavar='[NAME=]RUN', help='folders with metrics.json in or below them, or such files'
    )
    parser.add_argument('--out', type=file_name, default='report', help='folder for the report (default: %(default)s)')
    parser.add_argument('--shifts', nargs='+', metavar='SET', help='show only these shifts, in this order')
    parser.add_argument(
        '--methods', nargs='+', metavar='NAME', help='show only these methods, in this order (default: as in a study)'
    )
    parser.add_argument(
        '--line',
        metavar='FILE.csv',
        help='accuracies of reference models for effective robustness: a column "model" and one per set '
        '(default: 85 models trained on ImageNet)',
    )
    parser.add_argument(
        '--compare', nargs=2, metavar=('BEFORE', 'AFTER'), help='compare two methods, set by set and class by class'
    )
    parser.add_argument(
        '--examples',
        type=natural,
        default=40,
        metavar='N',
        help='example images per test set in the page, of runs tested with --predictions; 0 for none (default: 40)',
    )
    return parser.parse_intermixed_args()  # runs may follow options


def main(args: argparse.Namespace) -> None:
    from rich.console import Console

    from mmcfmask.reporting import make_report, summary_table

    contents = make_report(args.runs, args.out, args.shifts, args.line, args.compare, args.methods, args.examples)
    console = Console(soft_wrap=True)
    console.print(summary_table(contents.accuracy), soft_wrap=False)
    console.print(
        f'page: {args.out}/index.html\nreport: {args.out}/report.md (also report.json, tables as CSV, figures/ as PNG '
        'and PDF)',
        highlight=False,
    )


if __name__ == '__main__':
    run(main, parse_args())
