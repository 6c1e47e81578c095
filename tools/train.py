#!/usr/bin/env python3
"""Train a model: python tools/train.py CONFIG [--work-dir DIR] [--resume [auto|PATH]] [--amp] [--seed N] [--cfg-options
…]"""

import argparse
from contextlib import ExitStack

import mmcfmask  # noqa: F401  before mmengine (compat.load_yapf); registers the components, and mmcfmask:: in _base_

# isort: split
from mmengine.config import Config

from mmcfmask.compat import end_process_group
from mmcfmask.datasets.holdout import follow_run
from mmcfmask.engine import checkpoints
from mmcfmask.engine.build import build_runner, set_gradient_accumulation
from mmcfmask.engine.checks.data import check_training_data
from mmcfmask.engine.checks.model import check_backbone, check_device, check_fill, warn_of_random_start
from mmcfmask.engine.checks.outputs import check_work_dir
from mmcfmask.engine.checks.resume import check_same_run
from mmcfmask.engine.checks.selection import check_selection, check_validation
from mmcfmask.engine.config import load_config
from mmcfmask.engine.hooks import unwrapped
from mmcfmask.engine.launcher import add_run_arguments, apply_run_arguments, is_first_process, world_size
from mmcfmask.engine.options import seed
from mmcfmask.engine.values import value_of
from mmcfmask.errors import ConfigError, one_line
from mmcfmask.files import explained, locked
from mmcfmask.output import run_tool


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Train a model')
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        help='go on from PATH, or from the latest checkpoint of the work dir (auto)',
    )
    parser.add_argument('--seed', type=seed, help='seed of everything random (default: that of the config)')
    parser.add_argument('--no-validate', action='store_true', help='do not evaluate during training')
    add_run_arguments(parser, work_dir='where logs and checkpoints go')
    return parser.parse_args(argv)


def merge_args(cfg: Config, args: argparse.Namespace) -> Config:
    """The config as the command line asks for it."""
    if args.amp:
        cfg.optim_wrapper.type = 'AutocastOptimWrapper'
        if (cfg.get('val_cfg') or {}).get('type') == 'MultiSetValLoop':
            cfg.val_cfg.amp = True
    if args.seed is not None:
        cfg.randomness.seed = args.seed
    if args.no_validate:
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
        cfg.default_hooks.checkpoint.save_best = None
    if args.resume == '':
        raise ConfigError('--resume: the name of the checkpoint is empty')
    if args.resume not in (None, 'auto'):
        cfg.resume, cfg.load_from = True, args.resume
    elif args.resume == 'auto' or (cfg.get('resume') and not cfg.get('load_from')):
        latest = checkpoints.find_resumable(cfg.work_dir)
        cfg.resume = latest is not None
        cfg.load_from = latest or cfg.get('load_from')  # at the first start that of the config
    return cfg


@one_line()
def main(argv=None) -> None:
    args = parse_args(argv)
    with ExitStack() as stack:
        train(args, stack)


def train(args: argparse.Namespace, stack: ExitStack) -> None:
    """Train as the command line asks for; the lock of the work dir joins ``stack``."""
    with one_line(args.config):
        cfg = load_config(args.config, args.cfg_options)
        apply_run_arguments(cfg, args)
        check_work_dir(cfg.work_dir)
        if is_first_process(args.launcher):
            stack.enter_context(locked(cfg.work_dir, 'a training'))
        cfg = merge_args(cfg, args)
        if cfg.get('train_cfg') is None:
            raise ConfigError('there is nothing to train (no train_cfg): use tools/test.py')
        check_device(cfg)
        out_dir = value_of(cfg, 'default_hooks.checkpoint.out_dir')
        if out_dir:
            check_work_dir(out_dir, 'folder', 'default_hooks.checkpoint.out_dir')
        check_backbone(cfg.model)
        check_fill(cfg)
        check_validation(cfg)
        check_selection(cfg)
        check_training_data(cfg)
        set_gradient_accumulation(cfg, world_size(args.launcher))
        resume, start = cfg.get('resume', False), cfg.get('load_from')
        if start:
            checkpoint = checkpoints.check_checkpoint(start, resume)
            checkpoints.check_same_tower(cfg.model, checkpoint, start)
            if resume:
                checkpoints.check_schedules(cfg, checkpoint, start)
                if args.seed is None and cfg.get('randomness') and 'seed' in checkpoint['meta']:
                    cfg.randomness.seed = checkpoint['meta']['seed']  # that of the run, which its --seed may have set
                check_same_run(cfg, checkpoint, start)
        follow_run(cfg, (cfg.get('randomness') or {}).get('seed'))
    runner = build_runner(cfg)
    if start:
        checkpoints.check_state_dict(unwrapped(runner.model), checkpoint, start)
        del checkpoint
    else:
        warn_of_random_start(cfg)
    with one_line(args.config), explained(cfg.work_dir):
        runner.train()
    end_process_group()


if __name__ == '__main__':
    run_tool(main)
