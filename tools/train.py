#!/usr/bin/env python3
"""Train a model: python tools/train.py CONFIG [--work-dir DIR] [--resume [auto|PATH]] [--amp] [--seed N] [--cfg-options …]"""
import argparse
import os
from pathlib import Path

from mmengine.config import Config, DictAction

import mmcfmask  # noqa: F401  registers the components, and mmcfmask:: in _base_
from mmcfmask.engine import launch


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Train a model')
    parser.add_argument('config', help='config file')
    parser.add_argument('--work-dir', help='where logs and checkpoints go (default: work_dirs/<config name>)')
    parser.add_argument('--resume', nargs='?', const='auto', help='go on from PATH, or from the latest checkpoint of the work dir (auto)')
    parser.add_argument('--amp', action='store_true', help='bfloat16 autocast')
    parser.add_argument('--seed', type=int, help='seed of everything random (default: that of the config)')
    parser.add_argument('--no-validate', action='store_true', help='do not evaluate during training')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, default={}, help='override config values, key=value')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none', help='job launcher')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args


def merge_args(cfg: Config, args: argparse.Namespace) -> Config:
    """The config as the command line asks for it."""
    cfg.launcher = args.launcher
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or str(Path('work_dirs') / Path(args.config).stem)
    if args.amp:
        cfg.optim_wrapper.type = 'AutocastOptimWrapper'
        if (cfg.get('val_cfg') or {}).get('type') == 'MultiSetValLoop':
            cfg.val_cfg.amp = True
    if args.seed is not None:
        cfg.randomness.seed = args.seed
    if args.no_validate:
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
        cfg.default_hooks.checkpoint.save_best = None
    if args.resume is not None:
        cfg.resume = True
        cfg.load_from = None if args.resume == 'auto' else args.resume
    return cfg


def main(argv=None) -> None:
    args = parse_args(argv)
    cfg = merge_args(launch.load_config(args.config, args.cfg_options), args)
    if cfg.get('train_cfg') is None:
        raise SystemExit(f'{args.config} has nothing to train (it has no train_cfg): use tools/test.py')
    launch.check_work_dir(cfg.work_dir)
    launch.check_fill(cfg)
    launch.check_selection(cfg)
    launch.fit_total_batch(cfg, launch.world_size(args.launcher))
    if cfg.get('load_from'):
        launch.check_checkpoint(cfg.load_from, resume=cfg.get('resume', False))
    launch.build_runner(cfg).train()


if __name__ == '__main__':
    main()
