#!/usr/bin/env python3
"""WiSE-FT: test interpolations (1 − α) θ0 + α θ1 of the pretrained weights θ0 of a config and a fine-tuned checkpoint
θ1, on every test set.

    python tools/wise_ft.py CONFIG CHECKPOINT                              # α = 0, 0.1, …, 1
    python tools/wise_ft.py CONFIG CHECKPOINT --alphas 0 0.5 1 --shifts imagenet-r
    python tools/wise_ft.py CONFIG CHECKPOINT --save 0.5                   # also write the checkpoint at α = 0.5

It reads every image once for all α. Report α = 0.5: an α chosen by its accuracy on a shift is not a result.
"""

import argparse

from mmcfmask_cli import add_run_arguments, add_test_arguments, file_name, run


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Interpolate between pretrained and fine-tuned weights')
    parser.add_argument('config', help='config file; its model without a checkpoint is α = 0')
    parser.add_argument('checkpoint', help='checkpoint file, α = 1')
    parser.add_argument(
        '--alphas',
        nargs='+',
        default=['0:1:0.1'],
        metavar='ALPHA',
        help='numbers, or FIRST:LAST:STEP (default: 0:1:0.1)',
    )
    parser.add_argument('--save', type=float, metavar='ALPHA', help='write the checkpoint at this α')
    parser.add_argument(
        '--out',
        type=file_name,
        metavar='DIR',
        help='folder for the table, the curve and the checkpoint (default: <work dir>/wise_ft)',
    )
    parser.add_argument(
        '--predictions',
        type=file_name,
        metavar='DIR',
        help='write the prediction for every image at α = 0.5 to DIR/<set>.csv',
    )
    add_test_arguments(parser)
    add_run_arguments(parser, amp='bfloat16 autocast; weights are still interpolated in float32')
    return parser.parse_intermixed_args()  # the checkpoint may follow options


def main(args: argparse.Namespace) -> None:
    from mmcfmask.engine.run_wise_ft import run_wise_ft
    from mmcfmask.errors import one_line

    with one_line(args.config):
        run_wise_ft(
            args.config,
            args.checkpoint,
            args.cfg_options,
            alphas=args.alphas,
            save=args.save,
            out=args.out,
            predictions=args.predictions,
            shifts=args.shifts,
            skip_broken=args.skip_broken,
            work_dir=args.work_dir,
            amp=args.amp,
            launcher=args.launcher,
            local_rank=args.local_rank,
            show=True,
        )


if __name__ == '__main__':
    run(main, parse_args())
