"""Hooks: reproducible randomness, moving averages, scheduled weights, and a stop at an invalid loss."""

from __future__ import annotations

import math

import torch
from mmengine.dist import get_rank, get_world_size
from mmengine.hooks import EMAHook, Hook
from mmengine.model import ExponentialMovingAverage, is_model_wrapper
from mmpretrain.registry import HOOKS, MODELS
from torch import Tensor, nn

from ..errors import ConfigError, NumericalError
from ..models.losses import Distillation
from ..ranges import Positive, Share


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside a wrapper such as DDP."""
    return model.module if is_model_wrapper(model) else model


def batches_per_step(runner) -> int:
    """Return how many batches of a process make up an optimizer step; 1 if nothing is trained."""
    return getattr(runner.optim_wrapper, '_accumulative_counts', 1)


def begun_steps(runner) -> int:
    """Return how many optimizer steps are done before the step that this iteration belongs to."""
    return runner.iter // batches_per_step(runner)


@HOOKS.register_module()
class IterationSeedHook(Hook):
    """Seed torch by (seed, iteration, rank) before every training iteration.

    Random masks and donors then depend on these alone, so a run resumed at any iteration continues exactly as the
    uninterrupted one. This does not cover random augmentation in data workers, which mmengine seeds per epoch.
    """

    priority = 'VERY_HIGH'

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        """Reseed CPU and GPU generators."""
        torch.manual_seed(((runner.seed or 0) * 1_000_003 + runner.iter) * get_world_size() + get_rank())


@HOOKS.register_module()
class StopOnInvalidLossHook(Hook):
    """Stop the run before it writes a checkpoint if the loss, or the norm of the clipped gradient, is not finite. A
    loss scaler skips steps with such a gradient, so the gradient is not checked with one.

    Raises:
        NumericalError: Names the iteration, the parts of the loss, the norm and the last good checkpoint.
    """

    priority = 'VERY_HIGH'

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs: dict | None = None) -> None:
        """Check every part of the loss, and the gradient."""
        parts = {name: float(value.detach()) for name, value in (outputs or {}).items() if 'loss' in name}
        norms = runner.message_hub.log_scalars.get('train/grad_norm')  # of the optimizer wrapper
        if norms is not None and getattr(runner.optim_wrapper, 'loss_scaler', None) is None:
            parts['grad_norm'] = norms.current()
        if all(math.isfinite(value) for value in parts.values()):
            return
        last = runner.message_hub.runtime_info.get('last_ckpt')
        advice = f'the last good checkpoint is {last}' if last else 'no checkpoint was saved before'
        raise NumericalError(
            f'the loss or its gradient is not finite at iteration {runner.iter + 1} (epoch {runner.epoch + 1}): '
            f'{", ".join(f"{name} = {value:g}" for name, value in parts.items())}; {advice}. '
            'A smaller learning rate, or float32 instead of --amp, usually helps.'
        )


@HOOKS.register_module()
class LossTermHook(Hook):
    """Tell the loss terms how far the training is (``progress``), and when the optimizer has stepped (``after_step``).
    Both depend on the iteration alone, so a resumed run goes on as it would have.
    """

    def before_train(self, runner) -> None:
        """Find the terms."""
        self.model = unwrapped(runner.model)
        self.terms = list(getattr(self.model, 'losses', None) or ())

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        """Set the progress, the same for all batches of a step."""
        for term in self.terms:
            term.progress = begun_steps(runner) * batches_per_step(runner) / runner.max_iters

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs: dict | None = None) -> None:
        """Report a step."""
        if self.terms and runner.optim_wrapper.should_update():  # it has counted this batch already
            for term in self.terms:
                term.after_step(self.model, begun_steps(runner) + 1, -(-runner.max_iters // batches_per_step(runner)))


@MODELS.register_module()
class UnbiasedMovingAverage(ExponentialMovingAverage):
    """mmengine's ``ExponentialMovingAverage`` with the bias correction of Adam (Kingma & Ba 2015, section 3), so that
    the first weights do not count more than later ones::

        average after k updates = Σ_{i=1..k} (1 − m)^(k−i) θ_i / Σ_{i=1..k} (1 − m)^(k−i)        m: momentum

    Each update moves the average towards θ_k by the share m / (1 − (1 − m)^k).
    """

    def update_parameters(self, model: nn.Module) -> None:
        """Add the weights of ``model`` to the average."""
        updates = int(self.steps) // self.interval + 1
        self.share = self.momentum / (1 - (1 - self.momentum) ** updates)
        super().update_parameters(model)

    def avg_func(self, averaged_param: Tensor, source_param: Tensor, steps: int) -> None:
        """Update one parameter, in place."""
        averaged_param.lerp_(source_param, self.share)


@HOOKS.register_module()
class RelativeEMAHook(EMAHook):
    """mmengine's ``EMAHook`` with the momentum 1 / (``horizon`` · optimizer steps), and without bias towards the first
    weights.

    One value of ``horizon`` then means the same for 26 steps and for 25,000. Every step of the optimizer counts once,
    whatever its number of batches.

    Args:
        horizon (float): How far back the average reaches, as a share of the run; in (0, 1].
        **kwargs: Arguments of ``EMAHook`` except for ``momentum``; ``interval`` counts optimizer steps.

    Raises:
        ConfigError: A horizon outside (0, 1], or a momentum.
    """

    def __init__(self, horizon: Share = 0.2, ema_type: str = 'UnbiasedMovingAverage', **kwargs) -> None:
        if not 0 < horizon <= 1:
            raise ConfigError(
                f'RelativeEMAHook(horizon={horizon}): the horizon is a share of the run, above 0 and at most 1'
            )
        if 'momentum' in kwargs:
            raise ConfigError(
                'RelativeEMAHook computes the momentum from its horizon: leave momentum out, or use EMAHook'
            )
        super().__init__(ema_type=ema_type, **kwargs)
        self.horizon = horizon

    def before_run(self, runner) -> None:
        """Compute the momentum and copy the model."""
        updates = self.horizon * runner.max_iters / (batches_per_step(runner) * self.ema_cfg.get('interval', 1))
        # max_iters is 0 if nothing is trained, and mmengine needs a momentum below 1
        self.ema_cfg['momentum'] = 1 / max(updates, 2)
        super().before_run(runner)

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs: dict | None = None) -> None:
        """Add the weights to the average after a step of the optimizer."""
        if runner.optim_wrapper.should_update():  # it has counted this batch already
            super().after_train_iter(runner, batch_idx, data_batch, outputs)


@HOOKS.register_module()
class DistillWeightHook(Hook):
    """Change the weight λ of the distillation, the head's ``distill_weight``, from ``start`` to ``end``::

        λ(t) = start · (end / start)^t        t: share of the optimizer steps done, 0 at the first step

    It depends on the iteration alone, so a resumed run continues with the right weight.

    Args:
        start, end (float): Above 0.

    Raises:
        ConfigError: A weight that is not above 0, or a model without distillation.
    """

    def __init__(self, start: Positive, end: Positive) -> None:
        if start <= 0 or end <= 0:
            raise ConfigError(f'DistillWeightHook(start={start}, end={end}): both must be above 0')
        self.start = start
        self.end = end

    def before_train(self, runner) -> None:
        """Refuse a model without distillation."""
        model = unwrapped(runner.model)
        if not any(isinstance(term, Distillation) for term in getattr(model, 'losses', ())):
            raise ConfigError(
                'DistillWeightHook schedules the weight of the distillation, but model.losses has no Distillation or '
                'CounterfactualDistillation: leave the hook out of custom_hooks'
            )
        self.head = model.head

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        """Set the weight of this step."""
        share = begun_steps(runner) * batches_per_step(runner) / runner.max_iters  # one for all batches of a step
        self.head.distill_weight = self.start * (self.end / self.start) ** share
