"""From a config to a Runner: loaders, optimizer, gradient accumulation, hooks."""

from __future__ import annotations

import logging
import os

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import get_world_size, init_dist, is_distributed
from mmengine.hooks import CheckpointHook, EMAHook
from mmengine.registry import MODEL_WRAPPERS
from mmengine.runner import Runner
from mmpretrain.registry import DATA_SAMPLERS, HOOKS
from torch.nn.parallel import DistributedDataParallel

from ..compat import can_fuse_optimizer, keep_freed_memory, start_process_group_without_gpu
from ..distributed import cores_per_process
from ..errors import ConfigError
from ..precision import use_tf32
from .checks.model import slow_bfloat16
from .fsdp import prepare_sharding
from .header import QuietRunner
from .hooks import RelativeEMAHook
from .launcher import world_size
from .train_loop import ResumableSampler
from .values import is_a

# Hooks that every run needs: a resumed run equals an uninterrupted one, a run with wrong classes or losses stops, loss
# terms know how far the run is, and a training says what it does.
OWN_HOOKS = ('IterationSeedHook', 'CheckClassesHook', 'StopOnInvalidLossHook', 'LossTermHook', 'HeaderHook')


def set_gradient_accumulation(cfg: Config, processes: int) -> None:
    """Reach ``cfg.total_batch_size`` by gradient accumulation, in place.

    ``accumulative_counts`` is total / (processes × batch size of a process). So that no checkpoint falls between two
    optimizer steps, checkpoint intervals in iterations are rounded up to a multiple of it, and the batches of an epoch
    down. A moving average of weights counts optimizer steps.

    Args:
        cfg (Config): The config of a training. Without ``total_batch_size`` it stays as it is.
        processes (int): Processes of the job.

    Raises:
        ConfigError: The total is not a multiple of the images that the processes take at once, or
            ``optim_wrapper.accumulative_counts`` contradicts it.
    """
    total, each = cfg.get('total_batch_size'), cfg.train_dataloader.batch_size
    if total is None:
        return
    if total % processes:
        raise ConfigError(f'total_batch_size={total} cannot be split over {processes} processes: change one of them')
    if total % (processes * each):
        fitting = max((b for b in range(1, each + 1) if total % (processes * b) == 0), default=each)
        raise ConfigError(
            f'total_batch_size={total} is not a multiple of {processes} process(es) x '
            f'train_dataloader.batch_size={each}: change one of them, e.g. --cfg-options '
            f'train_dataloader.batch_size={fitting}'
        )
    counts = total // (processes * each)
    given = cfg.optim_wrapper.get('accumulative_counts', counts)
    if given != counts:
        raise ConfigError(
            f'optim_wrapper.accumulative_counts={given}, but total_batch_size={total} is {counts} x '
            f'train_dataloader.batch_size={each} x {processes} process(es): leave out accumulative_counts, or '
            'set total_batch_size=None'
        )
    cfg.optim_wrapper.accumulative_counts = counts
    sampler = cfg.train_dataloader.get('sampler') or {}
    if counts > 1 and is_a(ResumableSampler, sampler.get('type'), DATA_SAMPLERS):
        sampler.multiple = counts * each
    for hook in cfg.get('custom_hooks') or []:
        if is_a(CheckpointHook, hook['type'], HOOKS) and not hook.get('by_epoch', True):
            hook['interval'] = -(-hook['interval'] // counts) * counts
        counts_steps = is_a(RelativeEMAHook, hook['type'], HOOKS)
        if is_a(EMAHook, hook['type'], HOOKS) and not counts_steps:
            hook['interval'] = hook.get('interval', 1) * counts


def fit_loaders(cfg: Config, processes: int = 1) -> None:
    """Fit the dataloaders of a config to this machine, in place.

    The processes of a machine share its usable cores as workers, and memory is pinned only for a GPU.

    Args:
        cfg (Config): The config.
        processes (int): Processes of the job; launchers that say how many run on this machine are believed.
    """
    most = cores_per_process(processes)
    for key in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        loaders = cfg.get(key) or {}
        for loader in [loaders] if 'dataset' in loaders else loaders.values():
            loader.num_workers = min(loader.get('num_workers', 0), most)
            if loader.num_workers == 0:
                loader.persistent_workers = False
            if not torch.cuda.is_available():
                loader.pin_memory = False


def cache_images(cfg: Config) -> None:
    """Cache the resized images of the training and the validation set in ``cfg.cache_dir``, in place.

    Each set becomes a :class:`mmcfmask.datasets.CachedDataset`. Without ``cache_dir`` nothing changes.
    """
    if cfg.get('cache_dir') is None:
        return
    for key in ('train_dataloader', 'val_dataloader'):
        loader = cfg.get(key)
        if loader and 'dataset' in loader:
            loader.dataset = dict(type='CachedDataset', dataset=loader.dataset, cache_dir=cfg.cache_dir)


def add_own_hooks(cfg: Config) -> None:
    """Add the hooks of :data:`OWN_HOOKS` that a config with its own list of custom hooks leaves out, in place."""
    hooks = list(cfg.get('custom_hooks') or [])
    named = {
        hook['type'] if isinstance(hook['type'], str) else hook['type'].__name__
        for hook in hooks
        if isinstance(hook, dict)
    }
    cfg.custom_hooks = [*(dict(type=name) for name in OWN_HOOKS if name not in named), *hooks]


def fit_optimizer(cfg: Config) -> None:
    """Drop ``fused=True`` from the optimizer of a config, in place, if torch has no fused kernel for this machine."""
    optimizer = (cfg.get('optim_wrapper') or {}).get('optimizer') or {}
    if optimizer.get('fused') and not can_fuse_optimizer():
        optimizer.pop('fused')


def start_process_group(cfg: Config) -> None:
    """Connect the processes of a launcher, unless they are connected already."""
    if cfg.launcher == 'none' or is_distributed():
        return
    if torch.cuda.is_available():
        init_dist(cfg.launcher, **((cfg.get('env_cfg') or {}).get('dist_cfg') or {}))
    else:
        start_process_group_without_gpu(cfg.launcher)
    assert get_world_size() == world_size(cfg.launcher)


def build_runner(cfg: Config, verbose: bool = False) -> Runner:
    """Build the Runner of a config.

    Beyond ``Runner.from_cfg`` this works under a launcher on a machine without a GPU, fits the loaders to the machine,
    and adds the hooks that the package relies on.

    Args:
        cfg (Config): The config; it is changed. ``tf32`` (default: False) lets float32 products and convolutions on a
            GPU round their factors to TensorFloat32; ``randomness.deterministic`` makes two runs on a GPU equal to the
            last bit.
        verbose (bool): Show on the console what mmengine logs meanwhile: environment, settings and hooks. They are in
            the log file in any case.

    Returns:
        Runner: Of mmengine.
    """
    add_own_hooks(cfg)
    prepare_sharding(cfg)
    fit_loaders(cfg, world_size(cfg.launcher))
    cache_images(cfg)
    fit_optimizer(cfg)
    if not torch.cuda.is_available():
        keep_freed_memory()
    else:
        use_tf32(cfg.get('tf32', False))
    if (cfg.get('randomness') or {}).get('deterministic'):
        # torch requires it; it is read with the first product on a GPU
        os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
    start_process_group(cfg)
    if cfg.launcher != 'none' and not torch.cuda.is_available():
        wrapper = cfg.get('model_wrapper_cfg') or dict(  # the defaults of the Runner
            broadcast_buffers=False, find_unused_parameters=cfg.get('find_unused_parameters', False)
        )
        wrapper = {'type': 'MMDistributedDataParallel', **wrapper}
        if is_a(DistributedDataParallel, wrapper['type'], MODEL_WRAPPERS):
            wrapper['device_ids'] = None
        cfg.model_wrapper_cfg = wrapper
    runner = (Runner if verbose else QuietRunner).from_cfg(cfg)
    for handler in runner.logger.handlers:
        if isinstance(handler, logging.FileHandler):  # file names may not be UTF-8
            handler.stream.reconfigure(errors='backslashreplace')
    warning = slow_bfloat16(cfg, get_device())
    if warning:
        runner.logger.warning(warning)
    return runner
