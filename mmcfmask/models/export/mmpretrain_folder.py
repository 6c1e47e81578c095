"""A folder with a config and weights for mmpretrain's ``VisionTransformer``."""

from __future__ import annotations

from pathlib import Path

from mmengine.config import Config

from ...files import write_tensors, write_text
from ..towers.backbone import OpenCLIPBackbone
from ..towers.conversion import mmpretrain_model

USAGE = """
import torch
from mmengine.config import Config
from mmpretrain.registry import MODELS

model = MODELS.build(Config.fromfile('FOLDER/config.py').model)
model.load_state_dict(torch.load('FOLDER/model.pth', weights_only=True)['state_dict'])
features = model.eval().extract_feat(images)[-1]  # images: (B, 3, H, W), normalised
"""


def write_mmpretrain(folder: Path, backbone: OpenCLIPBackbone) -> str:
    """Write ``config.py``, an ``ImageClassifier`` without a head, and ``model.pth``.

    Args:
        folder: Where to write.
        backbone: The image tower.

    Returns:
        Python that loads it.

    Raises:
        ConfigError: A tower that mmpretrain's VisionTransformer cannot represent.
        StorageError: A file cannot be written.
    """
    config, weights = mmpretrain_model(backbone)
    write_text(folder / 'config.py', Config(dict(model=dict(type='ImageClassifier', **config))).pretty_text)
    write_tensors(folder / 'model.pth', dict(state_dict=weights))
    return USAGE
