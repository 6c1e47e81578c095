"""Towers that work otherwise in training than in evaluation, or give more than one feature."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

# Rates of dropout (p, dropout, attn_drop), of stochastic depth (drop_prob) and of dropped patches (prob).
_RATES = ('p', 'dropout', 'attn_drop', 'drop_prob', 'prob')


def keep_pretrained_mode(tower: nn.Module, train_batch_norm: bool = False, keep_units: bool = True) -> None:
    """Let a tower in training compute what it does in evaluation, so that student and teacher differ by what was
    learned and by nothing else. To be called after ``train()``.

    Args:
        tower (nn.Module): The image tower.
        train_batch_norm (bool): Leave batch norms as they are. False: in eval mode, by their statistics.
        keep_units (bool): If the tower has dropout or stochastic depth, put all but its batch norms into eval mode.
    """
    keep_units = keep_units and any(_drops(module) for module in tower.modules())
    for module in tower.modules():
        if not train_batch_norm if isinstance(module, _BatchNorm) else keep_units:
            module.training = False


def _drops(module: nn.Module) -> bool:
    """Whether a module drops units, paths or patches in training."""
    rates = (getattr(module, name, None) for name in _RATES)
    return any(isinstance(rate, float) and rate > 0 for rate in rates)


def take_class_token(feats: tuple) -> tuple:
    """``feats`` of a tower. The last one of a distilled DeiT, (class token, distillation token), becomes its class
    token."""
    return (*feats[:-1], feats[-1][0]) if isinstance(feats[-1], (tuple, list)) else feats
