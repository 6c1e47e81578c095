#!/usr/bin/env python3
"""Show the counterfactual images that a model is trained on: image | relevance | mask | refilled image.

    python tools/show_counterfactuals.py CONFIG [CHECKPOINT] IMAGES...           # files or folders
    python tools/show_counterfactuals.py CONFIG [CHECKPOINT] --split test        # images of the config's own sets
    python tools/show_counterfactuals.py CONFIG [CHECKPOINT] --split test --all  # all nine variants side by side
    python tools/show_counterfactuals.py CONFIG [CHECKPOINT] --split a --relevance-crop  # as tools/test.py crops

Without a checkpoint the pretrained model gives the relevance. If the config has options of the relevance
(model.data_preprocessor.relevance), the published map stands beside its own.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mmcfmask_cli import add_cfg_options, add_relevance_crop, count, file_name, run, seed

CHECKPOINT_SUFFIXES = ('.pth', '.pt')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Show counterfactual images')
    parser.add_argument('config', help='config file')
    parser.add_argument(
        'paths',
        nargs='*',
        metavar='[CHECKPOINT] IMAGES',
        help=f'a checkpoint ({", ".join(CHECKPOINT_SUFFIXES)}), then image files or folders of images',
    )
    parser.add_argument(
        '--split', help='take images from a set of the config: train, val, test, or a name in test_dataloader'
    )
    parser.add_argument('--num', type=count, default=8, help='maximum number of images (default: 8)')
    parser.add_argument(
        '--labels',
        nargs='+',
        help='class names or indices of the image files, one each or one for all; relevance is for the labels '
        '(default: for the predicted classes)',
    )
    parser.add_argument(
        '--mask',
        choices=['object', 'context', 'random'],
        help="which patches are masked (default: as in the config, else 'object')",
    )
    parser.add_argument(
        '--fill',
        choices=['none', 'single', 'multi'],
        help="what replaces them (default: as in the config, else 'single')",
    )
    parser.add_argument(
        '--value', type=float, help='threshold or probability in [0, 1] (default: published for mask and fill)'
    )
    parser.add_argument('--all', action='store_true', help='show all nine masks x fills with their published values')
    add_relevance_crop(parser, 'show instead which part of each image tools/test.py --relevance-crop enlarges')
    parser.add_argument('--layout', choices=['rows', 'columns'], default='rows', help='one image per row or per column')
    parser.add_argument(
        '--out', type=file_name, default='counterfactuals.png', help='file of the picture (default: %(default)s)'
    )
    parser.add_argument('--pdf', action='store_true', help='also write a PDF')
    parser.add_argument('--seed', type=seed, default=0, help='seed of the choice of images, donors and random masks')
    parser.add_argument('--device', help='such as cpu or cuda:0 (default: the GPU if there is one)')
    add_cfg_options(parser)
    args = parser.parse_intermixed_args()

    has_checkpoint = bool(args.paths) and args.paths[0].lower().endswith(CHECKPOINT_SUFFIXES)
    args.checkpoint, args.images = (args.paths[0], args.paths[1:]) if has_checkpoint else (None, args.paths)
    one_variant = args.mask or args.fill or args.value is not None
    if bool(args.images) == bool(args.split):
        parser.error('give either images (files or folders) or --split')
    if args.labels and args.split:
        parser.error('--labels is for image files; the images of --split have labels')
    if args.all and (one_variant or args.layout == 'columns'):
        parser.error('--all shows every mask and fill: leave out --mask, --fill, --value and --layout')
    if args.relevance_crop is not None and (one_variant or args.all):
        parser.error('--relevance-crop masks no patches: leave out --all, --mask, --fill and --value')
    if Path(args.out).suffix.lower() != '.png':
        parser.error(f'--out {args.out}: the name must end in .png (--pdf also writes a PDF)')
    return args


def main(args: argparse.Namespace) -> None:
    from rich.console import Console

    from mmcfmask.engine.checks.outputs import check_out
    from mmcfmask.engine.config import load_config
    from mmcfmask.engine.counterfactual_images import show_counterfactuals
    from mmcfmask.engine.devices import find_device
    from mmcfmask.reporting import save_figure

    check_out(args.out)
    figure, description = show_counterfactuals(
        load_config(args.config, args.cfg_options),
        args.checkpoint,
        args.images,
        args.split,
        num=args.num,
        labels=args.labels,
        mask=args.mask,
        fill=args.fill,
        value=args.value,
        all_variants=args.all,
        crop_scale=args.relevance_crop,
        layout=args.layout,
        seed=args.seed,
        device=find_device(args.device),
    )
    written = save_figure(figure, args.out, pdf=args.pdf)
    Console(soft_wrap=True).print(f'{description}. Picture: {", ".join(map(str, written))}', highlight=False)


if __name__ == '__main__':
    run(main, parse_args())
