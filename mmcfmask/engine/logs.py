"""The log of a training."""

from __future__ import annotations

import torch
from mmengine.dist import all_reduce, get_world_size
from mmengine.runner import LogProcessor
from mmpretrain.registry import LOG_PROCESSORS


@LOG_PROCESSORS.register_module()
class MeanLogProcessor(LogProcessor):
    """mmengine's ``LogProcessor`` with training losses averaged over all processes; mmengine shows only the first one.

    The losses are reduced together when they are logged, so a step without a log waits for nothing.
    """

    def _collect_scalars(self, custom_cfg: list, runner, mode: str, reserve_prefix: bool = False) -> dict:
        scalars = super()._collect_scalars(custom_cfg, runner, mode, reserve_prefix)
        losses = [name for name in scalars if 'loss' in name] if mode == 'train' and get_world_size() > 1 else []
        if losses:
            values = torch.tensor([scalars[name] for name in losses], dtype=torch.float64)
            all_reduce(values, 'mean')
            scalars.update(zip(losses, values.tolist()))
        return scalars
