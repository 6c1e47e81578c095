"""Functions for notebooks and for training loops of your own."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmpretrain import get_model
from torch import nn

from .engine.testing import inference_config


def load_model(
    config: str | os.PathLike,
    checkpoint: str | os.PathLike | None = None,
    device: str | torch.device | None = None,
    options: Mapping[str, Any] | Sequence[str] | None = None,
) -> nn.Module:
    """Load a classifier for inference: in eval mode, with its weights, as ``tools/test.py`` tests it.

    mmpretrain's ``ImageClassificationInferencer(model)`` reads image files and predicts as that test does.

    Args:
        config: A config file that tests on several sets.
        checkpoint: The weights. None: the pretrained ones (zero-shot CLIP).
        device: Where to put the model (default: the CPU).
        options: Overrides, as of ``--cfg-options``, such as ``{'model.crop_scale': 0.9}``.

    Returns:
        nn.Module: The classifier.

    Raises:
        ConfigError: The checkpoint does not fit, or there are no weights at all.
        MissingFileError: There is no such config or checkpoint.

    Examples:
        >>> model = load_model('configs/cfmask_vitb16.py', 'work_dirs/cfmask_vitb16/best.pth')
        >>> ImageClassificationInferencer(model)('photo.jpg')[0]['pred_class']
    """
    cfg = inference_config(os.fspath(config), None if checkpoint is None else os.fspath(checkpoint), options)
    model = get_model(cfg, device=device)
    model._dataset_meta = dict(classes=cfg.classes)  # mmpretrain's inferencer reads it
    return model
