#!/usr/bin/env python3
"""Publish a trained model: weights, config, results and a model card, in a folder or on the Hugging Face hub.

    python tools/publish.py work_dirs/cfmask_vitb16 --to published/           # the best checkpoint of a run
    python tools/publish.py best.pth --to hf://user/name --formats open_clip hf

A published folder, or hf://user/name, takes the place of CONFIG and CHECKPOINT in test, predict, wise-ft and export:

    python tools/test.py hf://user/name hf://user/name
"""

import argparse

from mmcfmask_cli import file_name, run

FORMATS = ('open_clip', 'hf', 'torch', 'onnx-classifier')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Publish a trained model with its card')
    parser.add_argument('run', type=file_name, help='checkpoint file, or work dir of a training: its best checkpoint')
    parser.add_argument(
        '--to', required=True, type=file_name, help='new folder, or hf://user/name: a repository of the hub'
    )
    parser.add_argument(
        '--formats',
        nargs='+',
        default=[],
        choices=FORMATS,
        help='add the files of tools/export.py for these libraries (default: none)',
    )
    parser.add_argument(
        '--metrics',
        type=file_name,
        metavar='FILE.json',
        help='results of tools/test.py for the card (default: metrics.json beside the checkpoint)',
    )
    parser.add_argument('--private', action='store_true', help='make the repository of the hub a private one')
    return parser.parse_intermixed_args()


def main(args: argparse.Namespace) -> None:
    from mmcfmask.engine.run_publish import run_publish

    run_publish(args.run, to=args.to, formats=args.formats, metrics=args.metrics, private=args.private, show=True)


if __name__ == '__main__':
    run(main, parse_args())
