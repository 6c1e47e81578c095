"""A folder that open_clip loads by ``local-dir:`` and, from the hub, by ``hf-hub:``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import open_clip
from open_clip.timm_model import TimmModel
from open_clip.utils import to_2tuple

from ...errors import ConfigError
from ...files import write_json
from ..towers.backbone import OpenCLIPBackbone
from .parts import Preprocessing, WholeModel, uses_quick_gelu, write_safetensors

WEIGHTS = 'open_clip_model.safetensors'

WHOLE_MODEL = """
import open_clip

model, _, preprocess = open_clip.create_model_and_transforms('local-dir:FOLDER')  # 'hf-hub:org/repo' from the hub
tokenizer = open_clip.get_tokenizer('local-dir:FOLDER')
"""
IMAGE_TOWER = """
import open_clip

model = open_clip.create_model('{name}'{options}, pretrained_image_path='FOLDER/open_clip_model.safetensors')
features = model.encode_image(images)  # images: (B, 3, H, W), normalised
"""


def model_config(backbone: OpenCLIPBackbone) -> dict[str, Any]:
    """The config of open_clip's model with this tower: its activation, its size of images.

    Raises:
        ConfigError: open_clip builds such a tower for images of one size only.
    """
    config = open_clip.get_model_config(backbone.model_name)
    vision = config['vision_cfg']
    if to_2tuple(vision.get('image_size', 224)) != backbone.image_size:
        if isinstance(backbone.visual, TimmModel):
            raise ConfigError(
                f'open_clip builds the tower of {backbone.model_name!r} for images of {vision.get("image_size", 224)} '
                f'pixels only, but image_size={backbone.image_size}: export the image tower alone (--part image), or '
                'to torch or onnx'
            )
        height, width = backbone.image_size
        vision['image_size'] = height if height == width else [height, width]
    if uses_quick_gelu(backbone):
        config['quick_gelu'] = True
    return config


def write_whole_model(folder: Path, backbone: OpenCLIPBackbone, whole: WholeModel, preprocessing: Preprocessing) -> str:
    """Write a folder for ``open_clip.create_model_and_transforms('local-dir:…')``.

    Args:
        folder: Where to write.
        backbone: The image tower.
        whole: The model with its text tower.
        preprocessing: Of images.

    Returns:
        Python that loads it.

    Raises:
        ConfigError: open_clip cannot build the tower for this size of images.
        StorageError: A file cannot be written.
    """
    config = model_config(backbone)
    write_safetensors(folder / WEIGHTS, whole.weights)
    write_json(
        folder / 'open_clip_config.json',
        dict(
            model_cfg=config,
            preprocess_cfg=dict(
                mean=list(preprocessing.mean),
                std=list(preprocessing.std),
                interpolation='bicubic',
                resize_mode='shortest',
            ),
        ),
    )
    if hasattr(whole.tokenizer, 'save_pretrained'):  # local-dir: looks for it in the folder
        whole.tokenizer.save_pretrained(str(folder))
    return WHOLE_MODEL


def write_image_tower(folder: Path, backbone: OpenCLIPBackbone, preprocessing: Preprocessing) -> str:
    """Write the weights of the image tower alone, for ``open_clip.create_model(…, pretrained_image_path=…)`` and for
    ``model.backbone.pretrained`` of this package.

    Args:
        folder: Where to write.
        backbone: The image tower.
        preprocessing: Of images; the card has it.

    Returns:
        Python that loads it.

    Raises:
        StorageError: The file cannot be written.
    """
    write_safetensors(folder / WEIGHTS, backbone.visual.state_dict())
    config = open_clip.get_model_config(backbone.model_name)
    options = ', force_quick_gelu=True' if uses_quick_gelu(backbone) and not config.get('quick_gelu') else ''
    if to_2tuple(config['vision_cfg'].get('image_size', 224)) != backbone.image_size:
        options += f', force_image_size={backbone.image_size}'
    return IMAGE_TOWER.format(name=backbone.model_name, options=options)
