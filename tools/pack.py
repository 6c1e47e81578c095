#!/usr/bin/env python3
"""Pack a folder data set into shards for WebDataset, which large storage reads faster than many small files.

    python tools/pack.py FOLDER OUT [--shard-size 512] [--seed 0]

FOLDER holds one folder per class, or ImageNet's flat validation images. Data sets read OUT in its place: the classes,
the labels and the parts of a hold-out are the same. A killed run continues; at the end all shards are compared with the
images.
"""

from __future__ import annotations

import argparse

from mmcfmask_cli import count, file_name, run, seed


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Pack a folder data set into shards (tar files) for WebDataset')
    parser.add_argument('folder', type=file_name, help='one folder per class, such as data/imagenet/train')
    parser.add_argument('out', type=file_name, help='folder for the shards')
    parser.add_argument('--shard-size', type=count, default=512, metavar='MB', help='size of a shard (default: 512)')
    parser.add_argument('--seed', type=seed, default=0, help='of the order of the images (default: 0)')
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.progress import track

    from mmcfmask.datasets.shards.packing import pack, plan_shards

    progress = Console(stderr=True)
    plan = plan_shards(args.folder, args.shard_size, args.seed)
    pack(
        plan,
        args.out,
        watch=lambda items, number, what: track(  # without a terminal it would print blank lines
            items, what, number, console=progress, disable=not progress.is_terminal
        ),
    )
    images = sum(map(len, plan.shards.values()))
    print(f'{images:,} images are in {len(plan.shards):,} shards in {args.out}, and equal those in {args.folder}')


if __name__ == '__main__':
    run(main, parse_args())
