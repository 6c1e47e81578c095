#!/usr/bin/env python3
"""Try every image tower of open_clip with random weights, and write the table of docs/towers.md.

    python tools/towers.py                                   # all towers, the smallest of every family first
    python tools/towers.py RN50 ViT-B-16-SigLIP2             # these alone, again
    python tools/towers.py --max-memory 10 --page page.md    # towers that need more than 10 GB are named, not run

Each tower is built in a process of its own, trained for one step per variant with noise for images, and exported. A
tower that crashes or runs out of memory is a row of the table, not the end. A run that was stopped goes on with the
towers that --out lacks. It needs no images, no weights and no GPU.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mmcfmask_cli import count, file_name, run


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Try every image tower of open_clip with random weights',
        epilog='Towers that --out has are kept, unless they are named.',
    )
    parser.add_argument('names', nargs='*', metavar='NAME', help='open_clip names to try (default: all)')
    parser.add_argument(
        '--out',
        type=file_name,
        default='towers.jsonl',
        help='file of results, one JSON object for each tower (default: %(default)s)',
    )
    parser.add_argument('--page', type=file_name, help='write the results as Markdown too')
    parser.add_argument('--batch', type=count, default=2, help='images per step, at least 2 (default: 2)')
    parser.add_argument(
        '--variants-below',
        type=float,
        default=20.0,
        metavar='GFLOP',
        help='train all nine masks x fills if a forward pass of one image costs less, else the headline variant '
        '(default: 20)',
    )
    parser.add_argument(
        '--max-memory',
        type=float,
        metavar='GB',
        help='do not run towers that need more (default: 9/10 of what is free)',
    )
    parser.add_argument(
        '--timeout', type=float, default=1800.0, metavar='SECONDS', help='for one tower (default: 1800)'
    )
    parser.add_argument('--onnx', action='store_true', help='export to ONNX as well')
    args = parser.parse_intermixed_args()
    if args.batch < 2:
        parser.error('--batch 1: a fill takes patches from other images, so a step needs at least 2')
    return args


def main(args: argparse.Namespace) -> None:
    from rich.console import Console

    from mmcfmask.benchmarks.tower_runs import run_towers
    from mmcfmask.engine.checks.outputs import check_out
    from mmcfmask.models.export.graphs import check_onnx

    for path in filter(None, (args.out, args.page)):
        check_out(path)
    if args.onnx:
        check_onnx()
    run_towers(
        str(Path(__file__).parents[1] / 'configs' / 'cfmask_vitb16.py'),
        args.names,
        args.out,
        Console(soft_wrap=True),
        page=args.page,
        batch=args.batch,
        variants_below=args.variants_below,
        max_memory=args.max_memory,
        timeout=args.timeout,
        onnx=args.onnx,
    )


if __name__ == '__main__':
    run(main, parse_args())
