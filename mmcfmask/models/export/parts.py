"""What is taken from a classifier to be exported."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import open_clip
import safetensors.torch
from mmpretrain.models.classifiers import ImageClassifier
from open_clip.transformer import QuickGELU
from torch import Tensor, nn

from ...errors import ConfigError
from ...files import atomic_write
from ..dual_head import DualHead
from ..head import CLIPDistillHead
from ..towers.backbone import OpenCLIPBackbone
from ..towers.loading import NoTextTowerError, load_text_model


class Preprocessing(NamedTuple):
    """How an image becomes the input of a tower: resized (bicubic), cut out in the centre, scaled to 0-1, normalised.

    Attributes:
        image_size: Height and width in pixels.
        edge: Length of the shorter side after resizing, in pixels.
        mean, std: Of RGB images in 0-1.
    """

    image_size: tuple[int, int]
    edge: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


class WholeModel(NamedTuple):
    """A whole open_clip model with a fine-tuned image tower.

    Attributes:
        model: The model as open_clip builds it, with the text tower; its own image tower is not fine-tuned.
        tokenizer: Of the text tower.
        weights: Of the whole model, the image tower fine-tuned.
    """

    model: nn.Module
    tokenizer: Callable
    weights: dict[str, Tensor]


def open_clip_backbone(model: ImageClassifier, formats: str) -> OpenCLIPBackbone:
    """The backbone of a classifier, if it is a tower of open_clip.

    Raises:
        ConfigError: It is another; ``formats`` are those that take any backbone.
    """
    if not isinstance(model.backbone, OpenCLIPBackbone) or model.neck is not None:
        raise ConfigError(
            f'model.backbone is a {type(model.backbone).__name__}, not a tower of open_clip: export it to {formats}'
        )
    return model.backbone


def image_weights(backbone: OpenCLIPBackbone) -> dict[str, Tensor]:
    """The weights of the image tower, ``visual.*``."""
    return {f'visual.{key}': value for key, value in backbone.visual.state_dict().items()}


def whole_model(backbone: OpenCLIPBackbone, checkpoint: Mapping[str, Tensor] | None = None) -> WholeModel:
    """The pretrained open_clip model with the image tower of ``backbone``.

    Args:
        backbone: The fine-tuned image tower. Its ``model_name`` and ``pretrained`` say where the text tower is.
        checkpoint: State dict of the training. A text tower in it, as of FLYP, takes the place of the pretrained one.

    Raises:
        ConfigError: The pretrained weights have no text tower.
    """
    where = f'the text tower of {backbone.model_name!r}'
    if backbone.pretrained is None and ':' not in backbone.model_name:
        raise ConfigError(
            f'{where} has no weights (model.backbone.pretrained is None): export the image tower alone (--part image)'
        )
    try:
        model, tokenizer = load_text_model(backbone.model_name, backbone.pretrained)
    except NoTextTowerError as error:
        raise ConfigError(f'{error}: export the image tower alone (--part image)') from None
    weights = {key: value for key, value in model.state_dict().items() if not key.startswith('visual.')}
    trained = {
        match[1]: value
        for key, value in (checkpoint or {}).items()
        if (match := re.fullmatch(r'losses\.\d+\.text\.(.*)', key)) and match[1] in weights
    }
    return WholeModel(model, tokenizer, {**weights, **trained, **image_weights(backbone)})


def cosine_head(model: ImageClassifier) -> CLIPDistillHead:
    """The head of a classifier, whose logits are W z/‖z‖ + b.

    Raises:
        ConfigError: It is another.
    """
    if not isinstance(model.head, CLIPDistillHead) or isinstance(model.head, DualHead):
        raise ConfigError(
            f'model.head is a {type(model.head).__name__}, not a plain CLIPDistillHead: export it to torch'
        )
    return model.head


def activation_name(module: nn.Module, where: str) -> str:
    """The activation function of a tower, in the names of transformers.

    Raises:
        ConfigError: It has several, or one that transformers does not name.
    """
    names = set()
    for part in module.modules():
        if isinstance(part, QuickGELU):
            names.add('quick_gelu')
        elif isinstance(part, nn.GELU):
            names.add('gelu' if part.approximate == 'none' else 'gelu_pytorch_tanh')
        elif type(part).__name__ in ('GELU', 'GELUTanh'):  # timm's
            names.add('gelu_pytorch_tanh' if type(part).__name__ == 'GELUTanh' else 'gelu')
    if len(names) != 1:
        raise ConfigError(f'{where} has {"several activations" if names else "no GELU"}, which transformers cannot say')
    return names.pop()


def uses_quick_gelu(backbone: OpenCLIPBackbone) -> bool:
    """Whether the tower was built with QuickGELU, which a tag switches on under any model name."""
    config = open_clip.get_model_config(backbone.model_name)
    tag = open_clip.get_pretrained_cfg(backbone.model_name, backbone.pretrained or '')
    return bool(config.get('quick_gelu') or tag.get('quick_gelu'))


def write_safetensors(path: str | os.PathLike, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as a ``.safetensors`` file for torch, in one step.

    Args:
        path: The file.
        tensors: By name; they may share memory.

    Raises:
        StorageError: The file cannot be written.
    """
    tensors = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    shared = len({value.data_ptr() for value in tensors.values()}) < len(tensors)
    data = safetensors.torch.save(
        {key: value.clone() if shared else value for key, value in tensors.items()}, metadata=dict(format='pt')
    )
    with atomic_write(path) as file:
        file.write(data)
