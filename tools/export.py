#!/usr/bin/env python3
"""Export a fine-tuned model to open_clip, transformers, mmpretrain, torch.export or ONNX, with a model card.

    python tools/export.py CONFIG CHECKPOINT --to open_clip --out exported/          # image and text tower
    python tools/export.py CONFIG CHECKPOINT --to hf --part classifier --out exported/
    python tools/export.py CONFIG CHECKPOINT --to onnx-classifier --out exported/

Without a checkpoint this exports the pretrained model.
"""

import argparse

from mmcfmask_cli import add_cfg_options, file_name, run

FORMATS = ('open_clip', 'hf', 'mmpretrain', 'torch', 'onnx', 'onnx-classifier')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Export a model to another library, with a model card')
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', nargs='?', help='checkpoint file (default: the pretrained weights)')
    parser.add_argument(
        '--to',
        required=True,
        choices=FORMATS,
        help='open_clip; hf: transformers, for CLIP ViTs and SigLIP; mmpretrain: its VisionTransformer; torch: '
        'torch.export; onnx: image features; onnx-classifier: logits',
    )
    parser.add_argument('--out', required=True, type=file_name, metavar='DIR', help='folder for the model and its card')
    parser.add_argument(
        '--part',
        choices=['full', 'image', 'classifier'],
        help='image and text tower, image tower alone, or image tower and classifier (default: full for open_clip and '
        'hf, classifier for torch)',
    )
    parser.add_argument(
        '--metrics',
        type=file_name,
        metavar='FILE.json',
        help='results of tools/test.py for the card (default: metrics.json beside the checkpoint)',
    )
    add_cfg_options(parser)
    return parser.parse_intermixed_args()  # the checkpoint may follow options


def main(args: argparse.Namespace) -> None:
    from mmcfmask.engine.run_export import run_export
    from mmcfmask.errors import one_line

    with one_line(args.config):
        run_export(
            args.config,
            args.checkpoint,
            args.cfg_options,
            to=args.to,
            out=args.out,
            part=args.part,
            metrics=args.metrics,
            show=True,
        )


if __name__ == '__main__':
    run(main, parse_args())
