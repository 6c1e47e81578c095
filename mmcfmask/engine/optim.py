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
    """mmengine's ``OptimWrapper`` with a forward pass in bfloat16 autocast, on a GPU or a CPU.

    bfloat16 has the range of float32, so the loss needs no scaling. mmengine's ``AmpOptimWrapper`` needs a GPU.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Autocast on the model's device, plus mmengine's gradient accumulation."""
        device = next(model.parameters()).device.type
        with super().optim_context(model), torch.autocast(device, dtype=torch.bfloat16):
            yield


@PARAM_SCHEDULERS.register_module()
class OneCycle(OneCycleLR):
    """torch's ``OneCycleLR`` with its cycle of the momentum, one step per optimizer step.

    The peak is the learning rate of the optimizer, and the cycle lasts as long as the training. So a child config
    changes only ``optim_wrapper.optimizer.lr`` or ``train_cfg.max_epochs``. The values equal torch's (mmengine's
    ``OneCycleLR`` leaves the momentum alone), with three differences:

    - With gradient accumulation all batches of an optimizer step have the values of one step with the whole batch.
    - If the warm-up is at most one step long (``pct_start`` x steps <= 1), the first step has the start value and the
      second one is on the way down. torch divides by zero at exactly 1, and leaves the warm-up out below.
    - ``eta_max`` is optional, and ``end`` and ``total_steps`` count batches.

    Args:
        optimizer (OptimWrapper): The schedule follows its gradient accumulation.
        pct_start (float): Share of the steps for the warm-up, in [0, 1]; 0 leaves it out.
        cycle_momentum (bool): Move the momentum (β₁ of Adam) from ``max_momentum`` to ``base_momentum`` while the
            learning rate rises, and back while it falls.
        base_momentum, max_momentum (float): Lowest and highest momentum, in [0, 1).
        **kwargs: Arguments of mmengine's ``OneCycleLR``.

    Raises:
        ConfigError: ``cycle_momentum`` for an optimizer without momentum; a checkpoint of a schedule that counted
            batches.
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
        """Return the learning rates of this step, and set the momentum in place."""
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
        """Advance by one batch.

        mmengine warns of a step before the first one of the optimizer, which gradient accumulation makes normal.
        """
        with warnings.catch_warnings():
            if self.accumulative_counts > 1:
                warnings.filterwarnings('ignore', 'Detected call of `scheduler.step')
            super().step()

    def load_state_dict(self, state_dict: dict) -> None:
        """Continue at the step of a checkpoint."""
        if self.accumulative_counts > 1 and 'accumulative_counts' not in state_dict:
            raise ConfigError(
                'the run to resume had a learning rate for every batch of an accumulated gradient, as in version '
                '0.1.0; now it has one for every optimizer step. Start another run from its weights with '
                '--cfg-options load_from=…'
            )
        super().load_state_dict(state_dict)
