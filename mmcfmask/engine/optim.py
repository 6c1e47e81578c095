"""bfloat16 training on any device, and the published learning-rate schedule."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.optim import OneCycleLR, OptimWrapper
from mmengine.optim.scheduler.param_scheduler import INF
from mmpretrain.registry import OPTIM_WRAPPERS, PARAM_SCHEDULERS
from torch import nn

from ..errors import ConfigError
from ..ranges import Momentum, Share


@OPTIM_WRAPPERS.register_module()
class AutocastOptimWrapper(OptimWrapper):
    """``OptimWrapper`` whose forward runs under bfloat16 autocast, on GPU or CPU. bfloat16 has float32's range, so no
    loss is scaled.

    mmengine's ``AmpOptimWrapper`` refuses to run without a GPU.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Autocast on the model's device, plus mmengine's gradient accumulation."""
        device = next(model.parameters()).device.type
        with super().optim_context(model), torch.autocast(device, dtype=torch.bfloat16):
            yield


@PARAM_SCHEDULERS.register_module()
class OneCycle(OneCycleLR):
    """torch's ``OneCycleLR``, momentum included, one step for every step of the optimizer.

    Its peak is the optimizer's learning rate and its length that of the training, so that a child config changes
    ``optim_wrapper.optimizer.lr`` or ``train_cfg.max_epochs`` in one place. Values are torch's (mmengine's
    ``OneCycleLR`` has no momentum), but for three things:

    - Under gradient accumulation all batches of an optimizer step have the same values, those that the step would have
    with one big batch. - Where less than one step is left to the warm-up (``pct_start`` x steps is at most 1), the
    first step is the warm-up: it has the start
      value, and the second one is on the way down. torch divides by zero at 1 and leaves the warm-up out below.
    - ``eta_max`` is optional, and ``end`` and ``total_steps`` count batches.

    Args:
        optimizer (OptimWrapper): Its accumulation of gradients is followed.
        pct_start (float): Share of the steps that warm up, in [0, 1]. With 0 there is no warm-up.
        cycle_momentum (bool): Whether the momentum, β₁ of Adam, goes from ``max_momentum`` to ``base_momentum`` while
            the learning rate rises, and back while it falls. False: it stays that of the optimizer.
        base_momentum, max_momentum (float): Its lowest and highest value.
        **kwargs: Those of mmengine's ``OneCycleLR``.

    Raises:
        ValueError: ``cycle_momentum`` for an optimizer without momentum; a checkpoint to resume from that was written
            when the schedule counted batches.
    """

    def __init__(
        self,
        optimizer,
        pct_start: Share = 0.3,
        cycle_momentum: bool = False,
        base_momentum: Momentum = 0.85,
        max_momentum: Momentum = 0.95,
        **kwargs,
    ) -> None:
        if cycle_momentum and not any({'betas', 'momentum'} & group.keys() for group in optimizer.param_groups):
            raise ConfigError(
                'param_scheduler.cycle_momentum=True, but the optimizer has neither betas nor momentum: set it to False'
            )
        self.pct_start = pct_start
        self.momenta = (base_momentum, max_momentum) if cycle_momentum else None
        self.accumulative_counts = 1 if kwargs.get('by_epoch', True) else getattr(optimizer, '_accumulative_counts', 1)
        total = kwargs.pop('total_steps', None)
        if total is None:
            total = kwargs.get('end', INF) - kwargs.get('begin', 0)
        kwargs.setdefault('eta_max', [group['lr'] for group in optimizer.param_groups])
        super().__init__(optimizer, pct_start=pct_start, total_steps=-(-total // self.accumulative_counts), **kwargs)

    def _get_value(self) -> list[float]:
        """Learning rates of this step; the momentum is set in place."""
        step, end = self.last_step // self.accumulative_counts, 0.0
        for phase in self._schedule_phases:
            start, end = end, max(phase['end_step'], 0.0) if self.pct_start > 0 else phase['end_step']
            if step <= end:
                break
        share = min((step - start) / (end - start), 1.0) if end > start else 0.0
        ends = phase['start_lr'], phase['end_lr']
        for group in self.optimizer.param_groups if self.momenta else ():
            momentum = self.anneal_func(*(self.momenta[0 if key == 'max_lr' else 1] for key in ends), share)
            if 'betas' in group:
                group['betas'] = (momentum, *group['betas'][1:])
            elif 'momentum' in group:
                group['momentum'] = momentum
        return [self.anneal_func(*(group[key] for key in ends), share) for group in self.optimizer.param_groups]

    def step(self) -> None:
        """After a batch. Under accumulation mmengine's warning, that the optimizer has not made a step before, means
        nothing."""
        with warnings.catch_warnings():
            if self.accumulative_counts > 1:
                warnings.filterwarnings('ignore', 'Detected call of `scheduler.step')
            super().step()

    def load_state_dict(self, state_dict: dict) -> None:
        """Go on at the step of a checkpoint."""
        if self.accumulative_counts > 1 and 'accumulative_counts' not in state_dict:
            raise ConfigError(
                'the run to resume accumulated gradients with a learning rate for every batch, as this package did up '
                'to 0.1.0; now there is one for every optimizer step. Start another run from its weights with '
                '--cfg-options load_from=…'
            )
        super().load_state_dict(state_dict)
