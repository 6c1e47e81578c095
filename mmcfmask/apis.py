"""What people use in notebooks and in training loops of their own."""
from __future__ import annotations

import os

import torch
from mmengine.registry import DefaultScope
from mmpretrain.registry import DATASETS, MODELS
from torch import nn

from .engine.launch import inference_config


def load_model(config: str | os.PathLike,
               checkpoint: str | os.PathLike | None = None,
               device: str | torch.device | None = None,
               options: dict | None = None) -> nn.Module:
    """A classifier in eval mode, its weights in place, as tools/test.py tests it.

    mmpretrain's ``ImageClassificationInferencer(model)`` then reads image files as that test does and gives its predictions.

    Args:
        config: A config file that tests on several sets.
        checkpoint: The weights. None: the pre-trained ones, CLIP as it comes.
        device: Where the model goes. Defaults to where it is built, the CPU.
        options (dict, optional): As ``--cfg-options``, such as ``{'model.second_look': 0.9}``.

    Raises:
        FileNotFoundError, ValueError: No such config or checkpoint, a checkpoint that does not fit, or no weights at all.

    Examples:
        >>> model = load_model('configs/cfmask_vitb16.py', 'work_dirs/cfmask_vitb16/best.pth')
        >>> ImageClassificationInferencer(model)('photo.jpg')[0]['pred_class']
    """
    cfg = inference_config(os.fspath(config), None if checkpoint is None else os.fspath(checkpoint), options)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(cfg.model)
    model._config, model._metainfo = cfg, None  # as mmpretrain's get_model does, for its inferencers
    dataset = cfg.test_dataloader.dataset
    known = dict(classes=dataset.classes) if dataset.get('classes') else getattr(DATASETS.get(dataset.type), 'METAINFO', {})
    model._dataset_meta = model._dataset_meta or known
    return model.to(device).eval()
