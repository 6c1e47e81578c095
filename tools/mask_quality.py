#!/usr/bin/env python3
"""How well the class activation map finds the object on the built-in benchmark, whose objects are known.

python tools/mask_quality.py configs/shapes/cfmask.py                     # before fine-tuning
python tools/mask_quality.py configs/shapes/cfmask.py CHECKPOINT          # after
"""

from __future__ import annotations

import argparse

import torch
from mmengine.registry import init_default_scope
from mmpretrain.registry import DATASETS
from rich.console import Console
from rich.progress import track
from rich.table import Table

import mmcfmask  # noqa: F401  registers the components, and mmcfmask:: in _base_
from mmcfmask.counterfactual import check_value, patch_mask, relevance_map
from mmcfmask.datasets.holdout import follow_run
from mmcfmask.engine.checkpoints import check_checkpoint
from mmcfmask.engine.config import load_config
from mmcfmask.engine.options import add_cfg_options, count
from mmcfmask.engine.testing import build_model
from mmcfmask.errors import one_line
from mmcfmask.evaluation import best_iou, mask_iou, pointing_hits
from mmcfmask.output import run_tool


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Quality of the CAM mask against ground truth')
    parser.add_argument('config', help='config file whose datasets give gt_mask (configs/shapes)')
    parser.add_argument('checkpoint', nargs='?', help='checkpoint file; without one the pre-trained model is measured')
    parser.add_argument('--value', type=float, default=0.3, help='threshold of the object mask (default: 0.3)')
    parser.add_argument('--batch-size', type=count, default=100)
    add_cfg_options(parser)
    return parser.parse_intermixed_args(argv)  # the checkpoint may stand behind options


@one_line()
def main(argv=None) -> dict:
    args = parse_args(argv)
    try:
        check_value('object', args.value)
        cfg = load_config(args.config, args.cfg_options)
        follow_run(cfg, (cfg.get('randomness') or {}).get('seed'))
        init_default_scope('mmpretrain')
        checkpoint = check_checkpoint(args.checkpoint) if args.checkpoint else None
        model = build_model(cfg.model, checkpoint, args.checkpoint)
    except (OSError, ValueError) as error:
        raise SystemExit(f'{error}') from None

    table = Table(
        'set', 'images', 'IoU', 'highest possible', 'pointing game (%)', title=args.checkpoint or 'before fine-tuning'
    )
    results = {}
    for name, loader in {'train': cfg.get('train_dataloader'), **cfg.test_dataloader}.items():
        if loader is None:
            continue
        dataset = DATASETS.build({**loader.dataset, 'pipeline': []})
        if 'gt_mask' not in dataset[0]:
            raise SystemExit(f'{name}: {type(dataset).__name__} has no gt_mask, so there is nothing to compare with')
        sums = torch.zeros(3)
        for start in track(range(0, len(dataset), args.batch_size), f'{name:8}', transient=True):
            items = [dataset[i] for i in range(start, min(start + args.batch_size, len(dataset)))]
            images = torch.stack([torch.from_numpy(item['img']).permute(2, 0, 1) for item in items])
            inputs = model.data_preprocessor(dict(inputs=images))['inputs']
            objects = torch.stack([torch.from_numpy(item['gt_mask']) for item in items])
            relevance = relevance_map(model, inputs, torch.tensor([int(item['gt_label']) for item in items]))
            sums += torch.stack(
                [
                    mask_iou(patch_mask(relevance, 'object', args.value), objects).sum(),
                    best_iou(tuple(relevance.shape[1:]), objects).sum(),
                    pointing_hits(relevance, objects).sum(),
                ]
            )
        iou, best, pointing = (sums / len(dataset)).tolist()
        results[name] = dict(images=len(dataset), iou=iou, best_iou=best, pointing=100 * pointing)
        table.add_row(name, str(len(dataset)), f'{iou:.3f}', f'{best:.3f}', f'{100 * pointing:.1f}')
    Console().print(table)
    return results


if __name__ == '__main__':
    run_tool(main)
