#!/usr/bin/env python3
"""Test a model on its in-distribution set and on every shift of the config.

    python tools/test.py CONFIG [CHECKPOINT] [--amp] [--out FILE.json] [--cfg-options …]

Without a checkpoint, CLIP is tested as it comes (zero-shot).
"""
import argparse
import json
import os
from pathlib import Path

from mmengine.config import DictAction
from mmengine.dist import is_main_process
from rich.console import Console

import mmcfmask  # noqa: F401  registers the components, and mmcfmask:: in _base_
from mmcfmask.engine.launch import build_runner, check_checkpoint, check_work_dir, forget_pretrained, forget_training, load_config
from mmcfmask.visualization import results_table


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Test a model')
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', nargs='?', help='checkpoint file; without one CLIP is tested zero-shot')
    parser.add_argument('--work-dir', help='where logs go (default: work_dirs/<config name>)')
    parser.add_argument('--amp', action='store_true', help='bfloat16 autocast')
    parser.add_argument('--out', help='write the metrics to this JSON file')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, default={}, help='override config values, key=value')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none', help='job launcher')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args


def main(argv=None) -> dict:
    args = parse_args(argv)
    cfg = load_config(args.config, args.cfg_options)
    cfg.launcher = args.launcher
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or str(Path('work_dirs') / Path(args.config).stem)
    check_work_dir(cfg.work_dir)
    cfg.test_cfg.amp = args.amp
    cfg.load_from = args.checkpoint
    cfg.resume = False
    if args.checkpoint:
        state = check_checkpoint(args.checkpoint)['state_dict']
        classes = state.get('head.fc.weight')
        if classes is not None and len(classes) != cfg.model.head.num_classes:
            raise SystemExit(f'{args.checkpoint} was trained for {len(classes)} classes, '
                             f'but {args.config} has model.head.num_classes={cfg.model.head.num_classes}')
        forget_pretrained(cfg.model)
    else:
        forget_training(cfg.model)

    metrics = {name: float(value) for name, value in build_runner(cfg).test().items()}
    if is_main_process():
        accuracies = {name.split('/')[0]: value for name, value in metrics.items() if name.endswith('/top1')}
        accuracies.pop('ood_average', None)
        title = args.checkpoint or f'{Path(args.config).stem} (no checkpoint)'
        id_set = cfg.test_cfg.id_set
        Console().print(results_table({title: accuracies}, id_set=id_set, shifts=[name for name in accuracies if name != id_set]))
        if args.out:
            Path(args.out).parent.mkdir(parents=True, exist_ok=True)
            Path(args.out).write_text(json.dumps(dict(config=args.config, checkpoint=args.checkpoint, metrics=metrics), indent=2) + '\n')
    return metrics


if __name__ == '__main__':
    main()
