#!/usr/bin/env python3
"""Measure relevance maps: how well they find objects that are known, and how much the prediction depends on them.

python tools/mask_quality.py configs/shapes/cfmask.py                     # before fine-tuning
python tools/mask_quality.py configs/shapes/cfmask.py CHECKPOINT          # after
python tools/mask_quality.py configs/pacs/objects_vitb16.py --maps --amp  # several maps, on PACS' drawings
python tools/mask_quality.py configs/pacs/zeroshot_vitb16.py --maps --curves --sets photo --num 100  # no objects needed
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING

from mmcfmask_cli import add_cfg_options, count, file_name, run, seed

if TYPE_CHECKING:
    from rich.table import Table

    from mmcfmask.engine.mask_quality import SetQuality


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Compare relevance maps with objects, and measure what they are for')
    parser.add_argument(
        'config', help='config file whose data sets have gt_mask (configs/shapes, configs/pacs/objects_vitb16.py)'
    )
    parser.add_argument('checkpoint', nargs='?', help='checkpoint file (default: the pretrained model)')
    parser.add_argument(
        '--maps',
        nargs='*',
        metavar='NAME',
        help='compare these maps with that of the config; without names, all (docs/relevance.md)',
    )
    parser.add_argument('--value', type=float, default=0.3, help='threshold of the object mask (default: 0.3)')
    parser.add_argument(
        '--share',
        type=float,
        nargs='+',
        default=[0.3, 0.4, 0.5],
        help='shares of patches of object masks (default: 0.3 0.4 0.5)',
    )
    parser.add_argument(
        '--curves',
        type=count,
        nargs='?',
        const=10,
        default=0,
        metavar='STEPS',
        help='also measure deletion and insertion in so many steps (10), and draw them; needs no objects',
    )
    parser.add_argument(
        '--sets', nargs='+', metavar='NAME', help='sets of the config: train or test sets (default: all)'
    )
    parser.add_argument('--num', type=count, help='number of random images of every set (default: all)')
    parser.add_argument('--seed', type=seed, default=0, help='seed of --num and of the random order of --curves')
    parser.add_argument('--batch-size', type=count, default=100, help='images per batch (default: 100)')
    parser.add_argument('--amp', action='store_true', help='bfloat16 autocast')
    parser.add_argument('--device', help='such as cpu or cuda:0 (default: the GPU if there is one)')
    parser.add_argument(
        '--out', type=file_name, default='map_curves.png', help='picture of the curves (default: %(default)s)'
    )
    add_cfg_options(parser)
    args = parser.parse_intermixed_args()  # the checkpoint may stand behind options
    if not args.out.lower().endswith('.png'):
        parser.error(f'--out {args.out}: the name must end in .png')
    return args


def main(args: argparse.Namespace) -> None:
    from rich.console import Console

    from mmcfmask.engine.checks.outputs import check_out
    from mmcfmask.engine.config import load_config
    from mmcfmask.engine.devices import find_device
    from mmcfmask.engine.mask_quality import MAPS, measure_masks
    from mmcfmask.reporting import map_curves, save_figure

    if args.curves:
        check_out(args.out)
    results = measure_masks(
        load_config(args.config, args.cfg_options),
        args.checkpoint,
        args.value,
        args.batch_size,
        compare=list(MAPS) if args.maps == [] else args.maps or (),
        shares=args.share,
        steps=args.curves,
        sets=args.sets,
        num=args.num,
        seed=args.seed,
        amp=args.amp,
        device=find_device(args.device),
    )
    console = Console(soft_wrap=True)
    console.print(args.checkpoint or 'before fine-tuning', highlight=False)
    for name, result in results.items():
        for table in make_tables(name, result, args.value, args.share):
            console.print(table)
    if args.curves:
        curves = {
            name: {label: (pair[0][:, 0], pair[1][:, 0]) for label, pair in result.curves.items()}
            for name, result in results.items()
        }
        (written,) = save_figure(map_curves(curves), args.out)
        console.print(f'Picture: {written}', highlight=False)


def make_tables(name: str, result: SetQuality, value: float, shares: list[float]) -> Iterator[Table]:
    """The maps of a set, one per row: compared with the objects, and their curves; they fit into 80 columns."""
    title = f'{name}: {result.images} images'
    if result.objects:
        title += f', {result.object_share:.0%} of the patches object, highest IoU in pixels {result.best_iou:.3f}'
        yield make_table(
            title,
            result.maps,
            {
                'ap': ('AP', '.3f'),
                'pointing': ('point\n(%)', '.1f'),
                'iou': (f'IoU\nat {value:g}', '.3f'),
                'masked': (f'masked\nat {value:g}', '.2f'),
                'pixel_iou': ('IoU\npx', '.3f'),
                'threshold_iou': ('best\nIoU', '.3f'),
                'threshold': ('\nat', '.2f'),
                **{f'iou_top_{share:g}': (f'top\n{share:.3g}', '.3f') for share in shares},
            },
        )
    if result.curves:
        headings = {'deletion': 'deletion', 'insertion': 'insertion'}
        headings |= {f'{key}_top1': f'{heading}\ntop-1' for key, heading in headings.items()}
        yield make_table(title, result.maps, {key: (heading, '.3f') for key, heading in headings.items()})


def make_table(title: str, maps: dict[str, dict[str, float]], columns: dict[str, tuple[str, str]]) -> Table:
    """One row per map that has the columns: ``{key: (heading, format)}``."""
    from rich import box
    from rich.table import Table

    table = Table('map', title=title, title_justify='left', box=box.SIMPLE_HEAD, show_edge=False, padding=0)
    for heading, _ in columns.values():
        table.add_column(heading, justify='right', no_wrap=True)
    for label, row in maps.items():
        if columns.keys() <= row.keys():
            table.add_row(label, *(f'{row[key]:{style}}' for key, (_, style) in columns.items()))
    return table


if __name__ == '__main__':
    run(main, parse_args())
