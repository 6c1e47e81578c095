#!/usr/bin/env python3
"""Pre-train the small CLIP of the built-in benchmark from scratch, on a CPU, and write its weights.

    python tools/pretrain_shapes_clip.py
    python tools/pretrain_shapes_clip.py --eval-only     # zero-shot accuracies of the weights in --out

The pretraining split is rendered once into the work dir. The same command resumes an interrupted run.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from mmcfmask_cli import count, run, seed


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        '--work-dir', type=Path, default=Path('work_dirs/shapes_clip'), help='folder for images and checkpoints'
    )
    parser.add_argument('--out', type=Path, help='file for the weights (default: the one in the package)')
    parser.add_argument('--images', type=count, help='images to render (default: the whole split)')
    parser.add_argument('--epochs', type=count, default=6)
    parser.add_argument('--batch-size', type=count, default=64)
    parser.add_argument('--lr', type=float, default=5e-4)
    parser.add_argument('--weight-decay', type=float, default=0.1)
    parser.add_argument('--warmup', type=int, default=300, help='warm-up steps')
    parser.add_argument('--seed', type=seed, default=0)
    parser.add_argument('--workers', type=count, default=os.cpu_count(), help='processes that render')
    parser.add_argument('--compile', action='store_true', help='torch.compile the image tower (needs a C++ compiler)')
    parser.add_argument('--eval-only', action='store_true', help='do not train')
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    from mmcfmask.engine.shapes_clip import Settings, evaluate, pretrain

    if not args.eval_only:
        settings = Settings(
            epochs=args.epochs,
            batch_size=args.batch_size,
            lr=args.lr,
            weight_decay=args.weight_decay,
            warmup=args.warmup,
            seed=args.seed,
        )
        settings.images = args.images or settings.images
        path = pretrain(settings, args.work_dir, args.out, args.workers, args.compile)
        print(f'wrote {path} ({path.stat().st_size / 1e6:.1f} MB)')
    for split, accuracy in evaluate(args.out).items():
        print(f'zero-shot {split:7s} {accuracy:5.1f}')


if __name__ == '__main__':
    run(main, parse_args())
