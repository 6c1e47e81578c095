"""The models of the explorer: zero-shot, and fine-tuned ones that move to their pretrained weights."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.config import Config
from mmpretrain.registry import MODELS
from torch import nn

from ..engine.checkpoints import check_checkpoint, check_same_tower
from ..engine.checks.model import check_has_weights, check_text_tower, makes_head
from ..engine.testing import build_model, fit_adapters, load_weights
from ..engine.values import is_a
from ..engine.weight_line import WeightLine, own_weights
from ..errors import ConfigError
from ..models import CounterfactualClassifier
from ..models.towers.adapters import uses_adapters

ZERO_SHOT = 'zero-shot'


class Tower:
    """A model in eval mode.

    Args:
        model (nn.Module): The classifier.
        pretrained (dict[str, Tensor], optional): θ0 of a fine-tuned model. None: the model itself is zero-shot.
    """

    def __init__(self, model: nn.Module, pretrained: dict[str, torch.Tensor] | None = None) -> None:
        self.model = model
        self.line = None if pretrained is None else WeightLine(model, pretrained)
        self.alpha = 1.0

    def at(self, alpha: float) -> nn.Module:
        """The model with the weights (1 − α) θ0 + α θ1; a zero-shot model as it is.

        Raises:
            ConfigError: α is not in [0, 1].
        """
        if not 0 <= alpha <= 1:
            raise ConfigError(f'α = {alpha} must lie in [0, 1]: 0 is the pretrained model, 1 the fine-tuned one')
        if self.line is not None and alpha != self.alpha:
            self.line.move_to(alpha)
            self.alpha = alpha
        return self.model


def load_towers(cfg: Config, checkpoints: list[str], device: torch.device | str = 'cpu') -> dict[str, Tower]:
    """Load the zero-shot model of a config, and its fine-tuned checkpoints.

    Args:
        cfg (Config): Its model has pretrained weights. It is not changed.
        checkpoints (list[str]): Files of fine-tuned weights.
        device: Where the models run.

    Returns:
        dict[str, Tower]: By :data:`ZERO_SHOT` and the names of :func:`name_checkpoints`.

    Raises:
        ConfigError: Another kind of model, one without pretrained weights, or a checkpoint that does not fit it.
        MissingFileError: There is no such checkpoint.
    """
    if not is_a(CounterfactualClassifier, cfg.model.get('type'), MODELS):
        raise ConfigError(f'the explorer needs a CounterfactualClassifier, but model.type={cfg.model.get("type")!r}')
    twice = next((path for path in checkpoints if checkpoints.count(path) > 1), None)
    if twice is not None:
        raise ConfigError(f'{twice} is given twice')
    loaded = [check_checkpoint(path) for path in checkpoints]  # errors before anything is built
    for path, checkpoint in zip(checkpoints, loaded):
        check_same_tower(cfg.model, checkpoint, path)
        check_text_tower(cfg.model, checkpoint, path)
    check_has_weights(cfg)
    zero_shot = build_model(copy.deepcopy(cfg.model)).to(device)
    towers = {ZERO_SHOT: Tower(zero_shot)}
    for name, path, checkpoint in zip(name_checkpoints(checkpoints), checkpoints, loaded):
        settings = copy.deepcopy(cfg.model)
        fit_adapters(settings, checkpoint)
        same = not uses_adapters(cfg.model)
        pretrained = own_weights(zero_shot if same else build_model(copy.deepcopy(settings)))
        towers[name] = Tower(_build_fine_tuned(settings, checkpoint, path).to(device), pretrained)
    return towers


def _build_fine_tuned(settings: dict, checkpoint: dict, path: str) -> nn.Module:
    """A fine-tuned model; with the text tower, where that makes the head of every α."""
    if not makes_head(settings):
        return build_model(settings, checkpoint, path)
    model = MODELS.build(settings).eval()
    load_weights(model, checkpoint, path)
    return model


def name_checkpoints(paths: Sequence[str]) -> list[str]:
    """A short name for every checkpoint: its folder and its stem, or its path where two would be the same."""
    names = [f'{path.resolve().parent.name}/{path.stem}' for path in map(Path, paths)]
    return [path if names.count(name) > 1 else name for name, path in zip(names, paths)]
