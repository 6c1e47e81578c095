#!/usr/bin/env python3
"""Average the weights of several fine-tuned models into one checkpoint.

    python tools/soup.py CONFIG CHECKPOINTS... --out soup.pth            # all of them
    python tools/soup.py CONFIG CHECKPOINTS... --out soup.pth --greedy   # those that help on the held-out images
    python tools/soup.py CONFIG CHECKPOINTS... --out soup.pth --greedy --ties paper  # ties as in the publication
    python tools/soup.py CONFIG CHECKPOINTS... --out soup.pth --stock    # Model Stock: towards the pretrained weights

The models share a config and pretrained weights, and differ in seed, epoch or hyper-parameters. The greedy soup uses
the images of ``val_dataloader``, which are held out of the training set, never a test set or a shift.
"""

import argparse

from mmcfmask_cli import add_cfg_options, file_name, run


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Average the weights of several fine-tuned models')
    parser.add_argument('config', help='config file that the models were trained with')
    parser.add_argument('checkpoints', nargs='+', help='checkpoint files')
    parser.add_argument('--out', type=file_name, required=True, help='the checkpoint to write')
    parser.add_argument(
        '--greedy', action='store_true', help='add a model only if the soup does not get worse on the held-out images'
    )
    parser.add_argument(
        '--stock',
        action='store_true',
        help='Model Stock: average at least two models and the pretrained weights, by the angle between the models',
    )
    parser.add_argument(
        '--ties',
        choices=['nll', 'paper', 'code'],
        default='nll',
        help='of two equally accurate soups prefer the one of lower cross-entropy (nll, the default), the larger '
        'one (paper: Wortsman et al.), or the smaller one (code: theirs)',
    )
    parser.add_argument('--work-dir', type=file_name, help='folder for logs (default: the folder of --out)')
    add_cfg_options(parser)
    return parser.parse_intermixed_args()  # checkpoints may follow options


def main(args: argparse.Namespace) -> None:
    from mmcfmask.engine.run_soup import run_soup

    run_soup(
        args.config,
        args.checkpoints,
        args.out,
        args.cfg_options,
        greedy=args.greedy,
        stock=args.stock,
        ties=args.ties,
        work_dir=args.work_dir,
        show=True,
    )


if __name__ == '__main__':
    run(main, parse_args())
