#!/usr/bin/env python3
"""Measure how well the relevance map finds the object, on the built-in benchmark, whose objects are known.

python tools/mask_quality.py configs/shapes/cfmask.py                     # before fine-tuning
python tools/mask_quality.py configs/shapes/cfmask.py CHECKPOINT          # after
"""

from __future__ import annotations

import argparse

from mmcfmask_cli import add_cfg_options, count, run


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Compare the object mask with the object')
    parser.add_argument('config', help='config file whose data sets have gt_mask (configs/shapes)')
    parser.add_argument('checkpoint', nargs='?', help='checkpoint file (default: the pretrained model)')
    parser.add_argument('--value', type=float, default=0.3, help='threshold of the object mask (default: 0.3)')
    parser.add_argument('--batch-size', type=count, default=100, help='images per batch (default: 100)')
    add_cfg_options(parser)
    return parser.parse_intermixed_args()  # the checkpoint may stand behind options


def main(args: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.table import Table

    from mmcfmask.engine.config import load_config
    from mmcfmask.engine.mask_quality import measure_masks

    cfg = load_config(args.config, args.cfg_options)
    results = measure_masks(cfg, args.checkpoint, args.value, args.batch_size)
    title = args.checkpoint or 'before fine-tuning'
    table = Table('set', 'images', 'IoU', 'highest possible', 'pointing game (%)', title=title)
    for name, row in results.items():
        numbers = (f'{row["iou"]:.3f}', f'{row["best_iou"]:.3f}', f'{row["pointing"]:.1f}')
        table.add_row(name, str(row['images']), *numbers)
    Console().print(table)


if __name__ == '__main__':
    run(main, parse_args())
