"""bfloat16 training on any device, and the published learning-rate schedule."""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.optim import OneCycleLR, OptimWrapper
from mmpretrain.registry import OPTIM_WRAPPERS, PARAM_SCHEDULERS
from torch import nn


@OPTIM_WRAPPERS.register_module()
class AutocastOptimWrapper(OptimWrapper):
    """``OptimWrapper`` whose forward runs under bfloat16 autocast, on GPU or CPU. bfloat16 has float32's range, so no loss is scaled.

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
    """mmengine's ``OneCycleLR`` whose peak is the optimizer's learning rate and whose length is that of the training.

    So a child config changes ``optim_wrapper.optimizer.lr`` or ``train_cfg.max_epochs`` in one place.
    """

    def __init__(self, optimizer, *args, **kwargs) -> None:
        kwargs.setdefault('eta_max', [group['lr'] for group in optimizer.param_groups])
        super().__init__(optimizer, *args, **kwargs)
