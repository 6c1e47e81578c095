#!/usr/bin/env python3
"""Test a model on its in-distribution set and on the distribution shifts of the config.

    python tools/test.py CONFIG [CHECKPOINT]                               # every set of the config with data
    python tools/test.py CONFIG CHECKPOINT --shifts imagenet-r imagenet-a  # these, or an error
    python tools/test.py CONFIG CHECKPOINT --out metrics.json --predictions predictions/

Without a checkpoint this tests zero-shot CLIP.
"""

import argparse

from mmcfmask_cli import add_relevance_crop, add_renamed, add_run_arguments, add_test_arguments, file_name, run


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Test a model in and out of distribution')
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', nargs='?', help='checkpoint file (default: test zero-shot CLIP)')
    add_test_arguments(parser)
    parser.add_argument(
        '--knn-gate',
        action='store_true',
        help='let zero-shot CLIP answer for images unlike the training images of the class that the fine-tuned model '
        'predicts (model.knn_gate)',
    )
    add_renamed(parser, '--gate', '--knn-gate')
    parser.add_argument(
        '--vrf',
        action='store_true',
        help='mix the answers of the fine-tuned model and of zero-shot CLIP, by the distance to training images that '
        'only fine-tuning got right (VRF; model.knn_gate)',
    )
    add_relevance_crop(
        parser,
        'predict from the mean logits of an image and of its part relevant for the predicted class, SCALE times '
        'as large (model.crop_scale)',
    )
    parser.add_argument('--out', type=file_name, metavar='FILE.json', help='write metrics and protocol to this file')
    parser.add_argument(
        '--predictions', type=file_name, metavar='DIR', help='write the prediction for every image to DIR/<set>.csv'
    )
    add_run_arguments(parser)
    return parser.parse_intermixed_args()  # the checkpoint may follow options


def main(args: argparse.Namespace) -> None:
    from mmcfmask.engine.run_test import run_test
    from mmcfmask.errors import one_line

    with one_line(args.config):
        run_test(
            args.config,
            args.checkpoint,
            args.cfg_options,
            shifts=args.shifts,
            knn_gate=args.knn_gate,
            vrf=args.vrf,
            crop_scale=args.relevance_crop,
            skip_broken=args.skip_broken,
            out=args.out,
            predictions=args.predictions,
            work_dir=args.work_dir,
            amp=args.amp,
            launcher=args.launcher,
            local_rank=args.local_rank,
            show=True,
        )


if __name__ == '__main__':
    run(main, parse_args())
