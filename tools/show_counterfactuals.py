#!/usr/bin/env python3
"""Show the counterfactual images a model is trained on: image | relevance | mask | refilled image.

    python tools/show_counterfactuals.py CONFIG [CHECKPOINT] IMAGES...          # files or folders
    python tools/show_counterfactuals.py CONFIG [CHECKPOINT] --split test       # images of the config's own sets
    python tools/show_counterfactuals.py CONFIG [CHECKPOINT] --split test --all # all nine variants side by side
    python tools/show_counterfactuals.py CONFIG [CHECKPOINT] --split a --relevance-crop  # where tools/test.py
    --relevance-crop looks

Without a checkpoint the relevance is that of the pre-trained model.
"""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path

import numpy as np
import torch
from mmengine.dataset import Compose
from mmengine.registry import init_default_scope
from mmpretrain.registry import DATASETS, TRANSFORMS
from rich.console import Console

import mmcfmask  # noqa: F401  registers the components, and mmcfmask:: in _base_
from mmcfmask.counterfactual import (
    FILLS,
    MASKS,
    check_value,
    part_of_grid,
    patch_grid,
    relevance_center,
    relevance_map,
    zoom_in,
)
from mmcfmask.datasets.holdout import follow_run
from mmcfmask.datasets.images import EXTENSIONS, find_images, why_unreadable
from mmcfmask.engine.checkpoints import check_checkpoint
from mmcfmask.engine.checks.model import makes_counterfactuals
from mmcfmask.engine.checks.outputs import check_out
from mmcfmask.engine.config import load_config
from mmcfmask.engine.options import add_cfg_options, count, device, file_name
from mmcfmask.engine.testing import build_model, class_names, file_pipeline
from mmcfmask.errors import one_line
from mmcfmask.models.inference.relevance_crop import CROP_SCALE, check_crop_scale
from mmcfmask.models.preprocessor import PUBLISHED_VALUES, CAMRefillDataPreprocessor
from mmcfmask.output import run_tool
from mmcfmask.reporting import Variant, counterfactual_panel, grey_out_patches, save_figure, variants_panel

CHECKPOINT_SUFFIXES = ('.pth', '.pt')


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Show counterfactual images')
    parser.add_argument('config', help='config file')
    parser.add_argument(
        'paths',
        nargs='*',
        metavar='[CHECKPOINT] IMAGES',
        help=f'a checkpoint ({", ".join(CHECKPOINT_SUFFIXES)}) and then image files or folders of images',
    )
    parser.add_argument(
        '--split', help='take images from a set of the config: train, val, test, or a name in test_dataloader'
    )
    parser.add_argument('--num', type=count, default=8, help='number of images at most (default: 8)')
    parser.add_argument(
        '--labels',
        nargs='+',
        help='class names or indices of the image files, one each or one for all; relevance is for '
        'them (default: what the model predicts)',
    )
    parser.add_argument(
        '--mask', choices=MASKS, help="which patches are taken out (default: the config's, else object)"
    )
    parser.add_argument('--fill', choices=FILLS, help="what replaces them (default: the config's, else single)")
    parser.add_argument(
        '--value', type=float, help='threshold or probability in [0, 1] (default: published for mask and fill)'
    )
    parser.add_argument('--all', action='store_true', help='show all nine masks x fills with their published values')
    parser.add_argument(
        '--relevance-crop',
        nargs='?',
        const=CROP_SCALE,
        type=float,
        metavar='SIDE',
        help='show instead which part of each '
        f'image tools/test.py --relevance-crop looks at again, SIDE times as large (default: {CROP_SCALE})',
    )
    parser.add_argument('--layout', choices=['rows', 'columns'], default='rows', help='one image per row or per column')
    parser.add_argument(
        '--out', type=file_name, default='counterfactuals.png', help='the picture (default: %(default)s)'
    )
    parser.add_argument('--pdf', action='store_true', help='write a PDF beside it')
    parser.add_argument('--seed', type=int, default=0, help='seed of the choice of images, donors and random masks')
    parser.add_argument(
        '--device', type=device, default='cuda' if torch.cuda.is_available() else 'cpu', help='default: %(default)s'
    )
    add_cfg_options(parser)
    args = parser.parse_intermixed_args(argv)

    has_checkpoint = bool(args.paths) and args.paths[0].lower().endswith(CHECKPOINT_SUFFIXES)
    args.checkpoint, args.images = (args.paths[0], args.paths[1:]) if has_checkpoint else (None, args.paths)
    if not Path(args.config).is_file() and '::' not in args.config:
        parser.error(f'there is no config {args.config!r}')
    if bool(args.images) == bool(args.split):
        parser.error('give either images (files or folders) or --split')
    if args.labels and args.split:
        parser.error('--labels is for image files; the images of --split have their labels')
    if args.all and (args.mask or args.fill or args.value is not None or args.layout == 'columns'):
        parser.error(
            '--all shows every mask and fill with its published value: leave out --mask, --fill, --value and --layout'
        )
    if args.relevance_crop is not None and (args.all or args.mask or args.fill or args.value is not None):
        parser.error('--relevance-crop takes no patches out: leave out --all, --mask, --fill and --value')
    if Path(args.out).suffix.lower() != '.png':
        parser.error(f'--out {args.out}: the name must end in .png (--pdf writes a PDF beside it)')
    return args


def choose_variant(args, cfg) -> tuple[str, str, float]:
    """Mask, fill and value: from the command line, else from the config, else the headline variant."""
    ours = {key: cfg.model.get('data_preprocessor', {}).get(key) for key in ('mask', 'fill', 'value')}
    mask, fill = args.mask or ours['mask'] or 'object', args.fill or ours['fill'] or 'single'
    value = args.value
    if value is None and (mask, fill) == (ours['mask'], ours['fill']):
        value = ours['value']
    value = PUBLISHED_VALUES[mask, fill] if value is None else value
    try:
        check_value(mask, value)
    except ValueError as error:
        raise SystemExit(f'--value: {error}') from None
    return mask, fill, value


def named_sets(cfg) -> dict[str, dict]:
    """Dataset configs by the names that --split takes."""
    sets = {name: cfg[f'{name}_dataloader'].dataset for name in ('train', 'val') if cfg.get(f'{name}_dataloader')}
    test = cfg.get('test_dataloader') or {}
    if 'dataset' in test:
        return {**sets, 'test': test.dataset}
    for name, loader in test.items():
        # The name of a test set may be that of a training split, as with ImageNet's val.
        sets[f'test/{name}' if name in sets else name] = loader.dataset
    id_set = (cfg.get('test_cfg') or {}).get('id_set')
    if 'test' not in sets and id_set in test:
        sets['test'] = test[id_set].dataset
    return sets


def images_of_split(cfg, split: str, num: int, seed: int):
    """Random items of a set, in data set order, their ground-truth masks where the set has them, and its class names."""
    sets = named_sets(cfg)
    if split not in sets:
        raise SystemExit(f'unknown --split {split!r}: the config has {", ".join(sets) or "no data sets"}')
    dataset = DATASETS.build(sets[split])
    chosen = sorted(np.random.default_rng(seed).permutation(len(dataset))[:num].tolist())
    masks = [dataset.get_data_info(i).get('gt_mask') for i in chosen]
    masks = None if any(mask is None for mask in masks) else np.stack(masks)
    return [dataset[i] for i in chosen], masks, dataset.metainfo.get('classes')


def find_files(paths: list[str], num: int) -> list[Path]:
    """The image files named, and those in the folders named; checked to be images."""
    files = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = find_images(path)
            if not inside:
                raise SystemExit(f'{path}: no images in this folder ({", ".join(EXTENSIONS)})')
            files += [path / name for name in inside]
        elif path.is_file():
            files.append(path)
        else:
            raise SystemExit(f'{path}: no such file or folder')
    for reason in filter(None, map(why_unreadable, files[:num])):
        raise SystemExit(reason)
    return files[:num]


def images_of_files(cfg, files: list[Path]) -> list[dict]:
    """Files through the pipeline of the test images."""
    sets = named_sets(cfg)
    dataset = next((sets[name] for name in ('test', 'val', 'train') if name in sets), None)
    if dataset is None:
        raise SystemExit('the config has no data set, so there is no pipeline to load images with')
    pipeline = Compose([TRANSFORMS.build(step) for step in file_pipeline(dataset, cfg.model)])
    return [pipeline(dict(img_path=str(path))) for path in files]


def parse_labels(labels: list[str], names: list[str], num: int) -> list[int]:
    """Class indices of names or indices."""
    if len(labels) not in (1, num):
        raise SystemExit(f'--labels: {len(labels)} labels for {num} images; give one per image, or one for all')
    indices = []
    for label in labels:
        if label in names:
            indices.append(names.index(label))
        elif label.isdigit() and int(label) < len(names):
            indices.append(int(label))
        else:
            known = ', '.join(names[:10]) + (', …' if len(names) > 10 else '')
            raise SystemExit(f'--labels: {label!r} is neither a class name nor an index below {len(names)} ({known})')
    return indices * num if len(indices) == 1 else indices


@one_line()
def main(argv=None) -> None:
    args = parse_args(argv)
    check_out(args.out)
    cfg = load_config(args.config, args.cfg_options)
    follow_run(cfg, (cfg.get('randomness') or {}).get('seed'))
    init_default_scope(cfg.get('default_scope', 'mmpretrain'))
    mask, fill, value = choose_variant(args, cfg)
    settings = cfg.model.get('data_preprocessor') or {}
    changes = (
        {} if fill == 'none' else {name: settings[name] for name in ('views', 'color_mixing') if settings.get(name)}
    )
    trains_on_them = makes_counterfactuals(cfg.model)
    files = find_files(args.images, args.num)
    if args.split and args.split not in named_sets(cfg):
        raise SystemExit(
            f'unknown --split {args.split!r}: the config has {", ".join(named_sets(cfg)) or "no data sets"}'
        )
    try:
        if args.relevance_crop is not None:
            check_crop_scale(args.relevance_crop)
    except ValueError as error:
        raise SystemExit(f'--relevance-crop: {error}') from None
    few = args.relevance_crop is None and (len(files) if files else args.num) < 2
    if few and (args.all or fill != 'none'):
        raise SystemExit('a fill takes patches from other images: give at least 2 images, or --fill none')

    try:
        checkpoint = check_checkpoint(args.checkpoint) if args.checkpoint else None
        model = build_model(cfg.model, checkpoint, args.checkpoint).to(args.device)
    except (OSError, ValueError) as error:
        raise SystemExit(str(error)) from None
    gt_masks = None
    if files:
        sets = named_sets(cfg)
        items = images_of_files(cfg, files)
        names = class_names([sets[name] for name in ('test', 'val', 'train') if name in sets], checkpoint)
    else:
        items, gt_masks, names = images_of_split(cfg, args.split, args.num, args.seed)
    inputs = model.data_preprocessor(
        dict(inputs=[item['inputs'] for item in items], data_samples=[item['data_samples'] for item in items])
    )['inputs']
    if gt_masks is not None and gt_masks.shape[1:] != inputs.shape[2:]:
        gt_masks = None  # the pipeline resized the images, not the masks
    with torch.no_grad():
        logits = model(inputs)
    num_classes = logits.shape[1]
    if names is None or len(names) != num_classes:
        names = [f'class {i}' for i in range(num_classes)]
    short = [textwrap.shorten(name.split(',')[0], 20, placeholder='…') for name in names]

    predicted = logits.argmax(1).tolist()
    if args.split:
        labels = [int(item['data_samples'].gt_label) for item in items]
    elif args.labels:
        labels = parse_labels(args.labels, list(names), len(items))
    else:
        labels = None
    texts = [f'pred. {short[p]}' for p in predicted]
    if labels:
        texts = [short[label] + ('' if label == p else f'\n{text}') for label, p, text in zip(labels, predicted, texts)]
    shown = predicted if args.relevance_crop else labels or predicted
    relevance = relevance_map(model, inputs, torch.tensor(shown, device=inputs.device))

    def display(images):
        mean, std = (getattr(model.data_preprocessor, key, None) for key in ('mean', 'std'))
        return ((images if mean is None else images * std + mean) / 255).clamp(0, 1)

    def counterfactual(mask, fill, value, **changes):
        generator = torch.Generator(inputs.device).manual_seed(args.seed)
        changed = CAMRefillDataPreprocessor(mask=mask, fill=fill, value=value, **changes).counterfactual(
            inputs, patch_grid(model.backbone, inputs), relevance, generator
        )
        images = display(changed.images)
        return grey_out_patches(images, changed.mask) if changed.hidden else images, changed.mask

    if args.all:
        variants = [
            Variant(m, f, v, counterfactual(m, f, v)[0]) for m in MASKS for f in FILLS for v in [PUBLISHED_VALUES[m, f]]
        ]
        figure = variants_panel(display(inputs), relevance, variants, texts)
        what = 'nine masks x fills with their published values'
    elif args.relevance_crop:
        center = relevance_center(relevance)
        outside = ~part_of_grid(center, args.relevance_crop, relevance.shape[1:])
        stages = ('Image', 'Relevance', 'Left out', 'Second look')
        figure = counterfactual_panel(
            display(inputs),
            relevance,
            outside,
            display(zoom_in(inputs, center, args.relevance_crop)),
            texts,
            gt_masks,
            args.layout,
            stages,
        )
        what = f'second look at {args.relevance_crop:g} of the sides, where the predicted class is relevant'
    else:
        images, patches = counterfactual(mask, fill, value, **changes)
        stages = ('Image', 'Relevance', 'Mask', 'Hidden' if fill == 'none' else 'Counterfactual')
        figure = counterfactual_panel(display(inputs), relevance, patches, images, texts, gt_masks, args.layout, stages)
        share = patches.float().mean().item()
        what = f'{mask} mask, {fill} fill, value {value:g}: {share:.0%} of the patches taken out'
        what += ''.join(f', other {name}' for name in changes) + (
            '' if trains_on_them else '; the config itself trains on none'
        )
    written = save_figure(figure, args.out, pdf=args.pdf)
    Console(soft_wrap=True).print(
        f'{len(items)} images, {what}. Picture: {", ".join(map(str, written))}', highlight=False
    )


if __name__ == '__main__':
    run_tool(main)
