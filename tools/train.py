#!/usr/bin/env python3
"""Train a model.

python tools/train.py CONFIG [--work-dir DIR] [--resume [auto|PATH]] [--amp] [--seed N] [--cfg-options …]
"""

import argparse

from mmcfmask_cli import add_run_arguments, count, run, seed


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Train a model')
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        help='resume from the checkpoint PATH, or from the latest one in the work dir (auto)',
        metavar='PATH',
    )
    parser.add_argument('--seed', type=seed, help='seed of all random numbers (default: the value of the config)')
    parser.add_argument('--no-validate', action='store_true', help='do not evaluate during training')
    parser.add_argument(
        '--fsdp', action='store_true', help='split model, gradients and optimizer over all processes (FSDP2)'
    )
    parser.add_argument(
        '--track',
        nargs='+',
        default=[],
        choices=['tensorboard', 'wandb', 'mlflow'],
        help='log metrics, losses and pictures of counterfactual images there too',
    )
    parser.add_argument(
        '--profile',
        nargs='?',
        const=10,
        type=count,
        metavar='STEPS',
        help='write a trace of the first batches (default: 10) to trace.json in the work dir, for ui.perfetto.dev',
    )
    parser.add_argument('--verbose', action='store_true', help='show the environment and all settings')
    add_run_arguments(parser, work_dir='folder for logs and checkpoints')
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    from mmcfmask.engine.run_training import run_training
    from mmcfmask.errors import one_line

    with one_line(args.config):
        run_training(
            args.config,
            args.cfg_options,
            work_dir=args.work_dir,
            resume=args.resume,
            seed=args.seed,
            amp=args.amp,
            validate=not args.no_validate,
            launcher=args.launcher,
            local_rank=args.local_rank,
            fsdp=args.fsdp,
            track=args.track,
            profile=args.profile,
            verbose=args.verbose,
        )


if __name__ == '__main__':
    run(main, parse_args())
