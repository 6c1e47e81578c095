#!/usr/bin/env python3
"""Fine-tune by several methods, test each on the in-distribution set and on every shift, and show them in one table.

    python tools/compare.py                                   # the built-in benchmark: zero-shot, FT, CFMask
    python tools/compare.py --seeds 0 1 2 --out work_dirs/shapes
    python tools/compare.py Zero-shot=configs/pacs/zeroshot_vitb16.py FT=configs/pacs/ft_vitb16.py \\
        CFMask=configs/pacs/cfmask_vitb16.py --out work_dirs/pacs --cfg-options data_root=PATH

It is a study (tools/study.py) without a study file: finished runs are kept, and the same command resumes an
interrupted one.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mmcfmask_cli import add_cfg_options, file_name, run, seed

CONFIGS = Path(__file__).resolve().parents[1] / 'configs' / 'shapes'
SHAPES = {'Zero-shot': 'zeroshot.py', 'FT': 'ft.py', 'CFMask': 'cfmask.py'}


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Compare methods in and out of distribution')
    parser.add_argument(
        'methods',
        nargs='*',
        metavar='NAME=CONFIG',
        help='methods (default: zero-shot, FT and CFMask on the built-in benchmark); one whose config has no train_cfg '
        'is only tested',
    )
    parser.add_argument('--seeds', nargs='+', type=seed, default=[0], help='training seeds (default: 0)')
    parser.add_argument(
        '--out', type=file_name, default='work_dirs/quickstart', help='folder of all results (default: %(default)s)'
    )
    parser.add_argument('--amp', action='store_true', help='bfloat16 autocast')
    add_cfg_options(parser, 'of every method')
    args = parser.parse_args(argv)
    methods = {}
    for method in args.methods:
        name, _, config = method.partition('=')
        if not name or '::' not in config and not Path(config).is_file():
            parser.error(f'{method!r} is not NAME=CONFIG with an existing config file')
        if name in methods:
            parser.error(f'two methods are named {name!r}')
        methods[name] = config
    args.methods = methods or {name: str(CONFIGS / file) for name, file in SHAPES.items()}
    return args


def main(args: argparse.Namespace) -> int:
    from mmcfmask.experiments.study import compare

    return compare(args.methods, args.out, args.seeds, args.amp, args.cfg_options)


if __name__ == '__main__':
    run(main, parse_args())
