"""What people use in notebooks and in training loops of their own."""

from __future__ import annotations

import os

import torch
from mmpretrain import get_model
from torch import nn

from .engine.testing import inference_config


def load_model(
    config: str | os.PathLike,
    checkpoint: str | os.PathLike | None = None,
    device: str | torch.device | None = None,
    options: dict | None = None,
) -> nn.Module:
    """A classifier in eval mode, its weights in place, as tools/test.py tests it.

    mmpretrain's ``ImageClassificationInferencer(model)`` then reads image files as that test does and gives its
    predictions.

    Args:
        config: A config file that tests on several sets.
        checkpoint: The weights. None: the pre-trained ones, CLIP as it comes.
        device: Where the model goes. Defaults to where it is built, the CPU.
        options (dict, optional): As ``--cfg-options``, such as ``{'model.crop_scale': 0.9}``.

    Raises:
        FileNotFoundError, ValueError: No such config or checkpoint, a checkpoint that does not fit, or no weights at
            all.

    Examples:
        >>> model = load_model('configs/cfmask_vitb16.py', 'work_dirs/cfmask_vitb16/best.pth')
        >>> ImageClassificationInferencer(model)('photo.jpg')[0]['pred_class']
    """
    cfg = inference_config(os.fspath(config), None if checkpoint is None else os.fspath(checkpoint), options)
    model = get_model(cfg, device=device)
    model._dataset_meta = dict(classes=cfg.classes)  # for mmpretrain's inferencer
    return model
