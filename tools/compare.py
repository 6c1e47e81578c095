#!/usr/bin/env python3
"""Fine-tune by several methods, test each on the in-distribution set and on every shift, and show them in one table.

    python tools/compare.py                                   # the built-in benchmark: zero-shot, FT, CFMask
    python tools/compare.py --seeds 0 1 2 --out work_dirs/shapes
    python tools/compare.py Zero-shot=configs/pacs/zeroshot_vitb16.py FT=configs/pacs/ft_vitb16.py \\
        CFMask=configs/pacs/cfmask_vitb16.py --out work_dirs/pacs --cfg-options data_root=PATH

A study (tools/study.py) without a study file: finished runs are kept, and a killed one resumes when the command is
given again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from mmcfmask.engine.checks.outputs import check_work_dir
from mmcfmask.engine.options import add_cfg_options, seed
from mmcfmask.errors import one_line
from mmcfmask.experiments.study import Study, run_or_exit
from mmcfmask.output import run_tool

ROOT = Path(__file__).resolve().parents[1]
SHAPES = {
    name: str(ROOT / 'configs' / 'shapes' / f'{config}.py')
    for name, config in {'Zero-shot': 'zeroshot', 'FT': 'ft', 'CFMask': 'cfmask'}.items()
}


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Compare methods in and out of distribution')
    parser.add_argument(
        'methods',
        nargs='*',
        metavar='NAME=CONFIG',
        help='methods (default: zero-shot, FT and CFMask on the built-in '
        'benchmark); one whose config has no train_cfg is tested as it comes',
    )
    parser.add_argument('--seeds', nargs='+', type=seed, default=[0], help='training seeds (default: 0)')
    parser.add_argument('--out', default='work_dirs/quickstart', help='where everything goes (default: %(default)s)')
    parser.add_argument('--amp', action='store_true', help='bfloat16 autocast')
    add_cfg_options(parser, 'of every method')
    args = parser.parse_args(argv)
    for method in args.methods:
        name, _, config = method.partition('=')
        if not name or not Path(config).is_file():
            parser.error(f'{method!r} is not NAME=CONFIG with an existing config file')
    names = [method.partition('=')[0] for method in args.methods]
    if len(set(names)) < len(names):
        parser.error(f'two methods are named {next(name for name in names if names.count(name) > 1)!r}')
    args.methods = dict(method.split('=', 1) for method in args.methods) or SHAPES
    return args


@one_line()
def main(argv=None) -> None:
    args = parse_args(argv)
    study = Study(args.methods, args.out, seeds=args.seeds, overrides=args.cfg_options, amp=args.amp, keep='all')
    check_work_dir(args.out, 'folder', '--out')
    run_or_exit(study, Console())


if __name__ == '__main__':
    run_tool(main)
