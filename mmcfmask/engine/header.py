"""What a training says before it starts: ten lines in place of mmengine's dump of the config."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from typing import Any

from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmpretrain.registry import HOOKS
from torch import nn

from ..models.losses import CounterfactualDistillation, Distillation
from .hooks import batches_per_step, unwrapped
from .optim import AutocastOptimWrapper
from .values import get_value


class QuietRunner(Runner):
    """mmengine's ``Runner`` whose messages while it is built go to the log file only. Warnings reach the console."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._levels: dict[logging.Handler, int] = {}
        super().__init__(*args, **kwargs)
        for handler, level in self._levels.items():
            handler.setLevel(level)

    def build_logger(self, *args: Any, **kwargs: Any) -> logging.Logger:
        """Keep the console to warnings until the Runner is built."""
        logger = super().build_logger(*args, **kwargs)
        for handler in logger.handlers:
            if not isinstance(handler, logging.FileHandler):
                self._levels[handler] = handler.level
                handler.setLevel(max(handler.level, logging.WARNING))
        return logger


@HOOKS.register_module()
class HeaderHook(Hook):
    """Logs what is trained, on what, and how, before the first step (:func:`describe_training`)."""

    priority = 'VERY_LOW'

    def before_train(self, runner: Runner) -> None:
        """Log the header."""
        lines = '\n'.join(f'    {name:<9} {text}' for name, text in describe_training(runner))
        runner.logger.info(f'{runner.cfg.filename or runner.experiment_name}\n{lines}')


def describe_training(runner: Runner) -> Iterator[tuple[str, str]]:
    """Name and text of each line of the header.

    Args:
        runner (Runner): When its training starts: with its data, optimizer and resumed state.
    """
    cfg, model, wrapper = runner.cfg, unwrapped(runner.model), runner.optim_wrapper
    data = [f'{len(runner.train_dataloader.dataset):,} training images']
    if classes := runner.train_dataloader.dataset.metainfo.get('classes'):
        data.append(f'{len(classes):,} classes')
    if runner.val_loop is not None:
        data.append(f'{len(runner.val_dataloader.dataset):,} validation images')
    yield 'data', ', '.join(data)
    yield 'model', describe_model(model, cfg.model)
    yield 'loss', describe_losses(model)
    batch, accumulated = runner.train_dataloader.batch_size, batches_per_step(runner)
    parts = {'process': get_world_size(), 'image': batch, 'accumulated batch': accumulated}
    total = get_world_size() * batch * accumulated
    yield 'batch', f'{total} images = ' + ' x '.join(_number(count, noun) for noun, count in parts.items())
    steps = _number(len(runner.train_dataloader) // accumulated, 'step')
    optimizer = get_value(cfg, 'optim_wrapper.optimizer')
    rate = f'{optimizer["type"]} with learning rate {optimizer.get("lr")}'
    yield 'schedule', f'{_number(runner.max_epochs, "epoch")} of {steps}, {rate}'
    precision = 'bfloat16' if isinstance(wrapper, AutocastOptimWrapper) else 'float32'
    yield 'runs', f'on {next(model.parameters()).device.type} in {precision}, seed {runner.seed}'
    if runner.val_loop is not None and (best := get_value(cfg, 'default_hooks.checkpoint.save_best')):
        yield 'best', f'best.pth has the highest {best} of the validation images'
    if runner.iter:
        yield 'resumes', f'at epoch {runner.epoch + 1}, iteration {runner.iter + 1}, from {cfg.load_from}'
    elif cfg.get('load_from'):
        yield 'weights', str(cfg.load_from)
    yield 'writes', f'{runner.work_dir}; log with all settings: {os.path.join(runner.log_dir, runner.timestamp)}.log'


def describe_model(model: nn.Module, cfg: dict) -> str:
    """Tower, weights, and the number of parameters."""
    tower = cfg['backbone']
    name = tower.get('model_name') or tower.get('arch') or tower.get('depth') or ''
    weights = tower.get('pretrained') or get_value(tower, 'init_cfg.checkpoint') or 'random weights'
    counts = [sum(p.numel() for p in model.parameters() if p.requires_grad), sum(p.numel() for p in model.parameters())]
    trained, whole = (f'{count / 1e6:,.1f} M' for count in counts)
    share = f'{whole} parameters' if counts[0] == counts[1] else f'{trained} of {whole} parameters are trained'
    return f'{tower["type"]} {name} ({weights}), {share}'


def describe_losses(model: nn.Module) -> str:
    """Cross-entropy, the loss terms with their weights, and how counterfactual images are made."""
    own = list(getattr(model, 'losses', ()))
    terms = ['cross-entropy'] if getattr(model.head, 'cls_weight', 1.0) else []
    for term in own:
        weight = model.head.distill_weight if isinstance(term, Distillation) else term.weight
        terms.append(f'{weight:g} {type(term).__name__}')
    maker = model.data_preprocessor
    if any(isinstance(term, CounterfactualDistillation) for term in own):
        size = f'value {maker.value:g}' if maker.mask_share is None else f'mask_share {maker.mask_share:g}'
        terms[-1] += f' (mask {maker.mask}, fill {maker.fill}, {size})'
    return ' + '.join(terms)


def _number(count: int, noun: str) -> str:
    plural = f'{noun}es' if noun in ('process', 'accumulated batch') else f'{noun}s'
    return f'{count:,} {noun if count == 1 else plural}'
