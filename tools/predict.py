#!/usr/bin/env python3
"""Predict the classes of images without labels, and write them to a CSV file.

    python tools/predict.py CONFIG CHECKPOINT photos/ --out predictions.csv
    python tools/predict.py CONFIG CHECKPOINT photo.jpg --top 5

Images that cannot be read are named, and have an error in place of a class. CHECKPOINT may be "none": zero-shot CLIP.
"""

import argparse

from mmcfmask_cli import add_cfg_options, count, file_name, run

SHOWN = 20


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Predict the classes of images without labels')
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file, or "none": the pretrained weights')
    parser.add_argument('images', type=file_name, help='image file, or folder; sub-folders count')
    parser.add_argument('--out', type=file_name, metavar='FILE.csv', help='write path, class, probability and error')
    parser.add_argument('--top', type=count, default=1, metavar='K', help='the K likeliest classes (default: 1)')
    parser.add_argument('--batch-size', type=count, default=64, metavar='N', help='images at once (default: 64)')
    parser.add_argument('--device', help='such as cpu or cuda:1 (default: the GPU if there is one)')
    parser.add_argument('--amp', action='store_true', help='bfloat16 autocast')
    add_cfg_options(parser)
    return parser.parse_args()


def main(args: argparse.Namespace) -> int:
    from mmcfmask.engine.run_predict import run_predict

    found = run_predict(
        args.config,
        None if args.checkpoint == 'none' else args.checkpoint,
        args.images,
        args.cfg_options,
        out=args.out,
        top=args.top,
        batch_size=args.batch_size,
        device=args.device,
        amp=args.amp,
    )
    broken = [row for row in found if row['error']]
    for row in () if args.out else [row for row in found if not row['error']]:
        likeliest = (f'{name} {value:.3f}' for name, value in zip(row['classes'], row['probabilities']))
        print(f'{row["path"]}: {", ".join(likeliest)}')
    for row in broken[:SHOWN]:
        print(row['error'])
    if len(broken) > SHOWN:
        print(f'… and {len(broken) - SHOWN:,} more' + (f', all in {args.out}' if args.out else ''))
    if args.out:
        print(f'{args.out}: {len(found) - len(broken):,} images, {len(broken):,} that cannot be read')
    return 1 if len(broken) == len(found) else 0


if __name__ == '__main__':
    run(main, parse_args())
