#!/usr/bin/env python3
"""Time ways to decode, resize and crop images: images per second and core from file to tensor.

    python tools/benchmark_data.py FOLDER                 # any folder of images, read recursively
    python tools/benchmark_data.py FOLDER --images 500 --rounds 5 --out data.json

All ways read the same files in turns, in one process with one thread, so the rates scale with the workers. Differences
are in the 224 x 224 pixels (0-255), compared with torchvision, whose output equals CLIP's own transform.
"""

from __future__ import annotations

import argparse

from mmcfmask_cli import count, file_name, run


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Time decoding, resizing and cropping')
    parser.add_argument('folder', help='folder of images, read recursively')
    parser.add_argument(
        '--images', type=count, default=200, help='maximum number of images, at even distances (default: 200)'
    )
    parser.add_argument(
        '--rounds', type=count, default=3, help='how often each way reads each image; the median counts (default: 3)'
    )
    parser.add_argument('--out', type=file_name, help='write the numbers to this JSON file')
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    from rich.console import Console

    from mmcfmask.benchmarks.reading import benchmark_reading, show_reading
    from mmcfmask.engine.checks.outputs import check_out
    from mmcfmask.files import write_json

    if args.out:
        check_out(args.out)
    result = benchmark_reading(args.folder, args.images, args.rounds)
    show_reading(result, Console())
    if args.out:
        write_json(args.out, result)


if __name__ == '__main__':
    run(main, parse_args())
