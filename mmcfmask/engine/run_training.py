"""A training: what tools/train.py runs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from mmengine.config import Config

from ..compat import end_process_group
from ..datasets.holdout import follow_run
from ..errors import ConfigError
from ..files import as_path, explained, locked
from .build import build_runner, set_gradient_accumulation, start_process_group
from .checkpoints import check_same_start, check_state_dict, find_resumable
from .checks import check_training, check_work_dir
from .checks.model import check_parameter_groups, warn_of_random_weights, warn_of_unused_settings
from .config import load_config
from .hooks import unwrapped
from .launcher import apply_run_arguments, is_first_process, world_size
from .memory import memory_explained
from .tracking import add_profiler, add_trackers
from .values import get_value


def run_training(
    config: str | os.PathLike,
    options: Mapping[str, Any] | Sequence[str] = (),
    *,
    work_dir: str | os.PathLike | None = None,
    resume: str | os.PathLike | None = None,
    seed: int | None = None,
    amp: bool = False,
    validate: bool = True,
    launcher: str | None = None,
    local_rank: int = 0,
    fsdp: bool = False,
    track: Sequence[str] = (),
    profile: int | None = None,
    verbose: bool = False,
) -> None:
    """Train the model of a config.

    Args:
        config (str): The config file.
        options: As of ``--cfg-options``; see :func:`mmcfmask.engine.config.load_config`.
        work_dir (str, optional): Folder for logs and checkpoints. None: the value of the config, or
            ``work_dirs/<config name>``.
        resume (str, optional): A checkpoint to resume from; 'auto' finds the latest one in the work dir.
        seed (int, optional): None: the seed of the resumed run, or of the config.
        amp (bool): bfloat16 autocast.
        validate (bool): Evaluate during the training.
        launcher (str, optional): None: the value of the config, or 'none'.
        local_rank (int): The GPU of this process, unless the environment says so.
        fsdp (bool): Split model, gradients and optimizer over all processes (:mod:`mmcfmask.engine.fsdp`).
        track (Sequence[str]): Log to these too: 'tensorboard', 'wandb', 'mlflow' (:mod:`mmcfmask.engine.tracking`).
        profile (int, optional): Write a trace of this many batches to ``trace.json`` in the work dir.
        verbose (bool): Show the environment and all settings on the console too.

    Raises:
        UserError: Something the user can mend; the message names the file, key or value, and what to do.
    """
    config, work_dir, resume = map(as_path, (config, work_dir, resume))
    with ExitStack() as stack:
        cfg = load_config(config, options, complete=True)
        apply_run_arguments(cfg, config, work_dir, launcher, local_rank)
        check_work_dir(cfg.work_dir)
        if is_first_process(cfg.launcher):
            stack.enter_context(locked(cfg.work_dir, 'a training'))
        apply_training_arguments(cfg, resume, seed, amp, validate)
        if fsdp:
            cfg.model_wrapper_cfg = dict(type='FullyShardedDataParallel')
        add_trackers(cfg, track)
        if profile and is_first_process(cfg.launcher):
            add_profiler(cfg, profile)
        checkpoint = check_training(cfg, keep_seed=seed is not None)
        start_process_group(cfg)
        check_same_start(checkpoint if cfg.get('resume') else None, cfg.work_dir)
        if cfg.get('resume') and seed is None and 'seed' in checkpoint['meta']:
            cfg.randomness = dict(cfg.get('randomness') or {}, seed=checkpoint['meta']['seed'])
        set_gradient_accumulation(cfg, world_size(cfg.launcher))
        follow_run(cfg, (cfg.get('randomness') or {}).get('seed'))
        runner = build_runner(cfg, verbose)
        check_parameter_groups(cfg, unwrapped(runner.model))
        if checkpoint:
            check_state_dict(unwrapped(runner.model), checkpoint, cfg.load_from)
            del checkpoint
        else:
            warn_of_random_weights(cfg)
        warn_of_unused_settings(cfg.model)
        with explained(cfg.work_dir), memory_explained(cfg, unwrapped(runner.model), 'val', world_size(cfg.launcher)):
            runner.train()
        end_process_group()


def apply_training_arguments(
    cfg: Config, resume: str | None = None, seed: int | None = None, amp: bool = False, validate: bool = True
) -> None:
    """Apply arguments of :func:`run_training` to a config, in place."""
    if amp and cfg.get('optim_wrapper'):
        cfg.optim_wrapper.type = 'AutocastOptimWrapper'
        if (cfg.get('val_cfg') or {}).get('type') == 'MultiSetValLoop':
            cfg.val_cfg.amp = True
    if seed is not None:
        cfg.randomness = dict(cfg.get('randomness') or {}, seed=seed)
    if not validate:
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
        if get_value(cfg, 'default_hooks.checkpoint'):
            cfg.default_hooks.checkpoint.save_best = None
    if resume == '':
        raise ConfigError('--resume: the name of the checkpoint is empty')
    if resume not in (None, 'auto'):
        cfg.resume, cfg.load_from = True, resume
    elif resume == 'auto' or (cfg.get('resume') and not cfg.get('load_from')):
        latest = find_resumable(cfg.work_dir)
        cfg.resume = latest is not None
        cfg.load_from = latest or cfg.get('load_from')  # a first start loads the weights of the config
