"""State dicts of other programs, brought to open_clip's names or recognised as what cannot be."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from ...errors import ConfigError
from ...messages import short_list
from .hugging_face import from_hugging_face, is_hugging_face

# Keys of an open_clip checkpoint that belong to no tower.
SHARED_KEYS = ('logit_scale', 'logit_bias')

ADAPTERS = r'.*\b(lora_(A|B|down|up)|adapter_(A|B))\b.*'
# Of formats that are no CLIP: a key that only they have, what they are, and what to do.
OTHER_FORMATS = (
    (
        ADAPTERS,
        'adapters (LoRA, R-Adapter), without the weights that they change',
        'merge them into the model (tools/soup.py of one checkpoint; `model.merge_and_unload()` of peft) and save that',
    ),
    (
        r'backbone\.(layers\.\d+\.(ln\d|attn\.qkv)|patch_embed\.projection|layer\d\.\d+|stages\.\d+)\..*',
        'weights of an mmpretrain backbone',
        'give them to that backbone: model.backbone.type="VisionTransformer" (or another of mmpretrain), with '
        'init_cfg=dict(type="Pretrained", checkpoint=…)',
    ),
    (
        r'(vit\.|dinov2\.|)embeddings\.patch_embeddings\.projection\.weight',
        'a ViT or DINOv2 of transformers, which has no embedding that texts share',
        'use the same weights in a backbone of mmpretrain, or a CLIP or SigLIP',
    ),
    (
        r'(text|vision)_model_?\..*|.*\bqformer\..*',
        'another model of transformers than CLIP or SigLIP',
        'use a CLIP ViT, or a SigLIP of a fixed resolution',
    ),
    (
        r'(blocks\.\d+\.attn\.qkv|stages\.\d+\.blocks\.\d+\..*|layers\.\d+\.blocks\.\d+\..*)\.weight',
        'an image model of timm, DINO or MAE, without the projection of a CLIP',
        'use a whole checkpoint of open_clip (visual.trunk.…), or these weights in a backbone of mmpretrain',
    ),
    (
        r'layer[1-4]\.\d+\.conv1\.weight',
        'a ResNet of torchvision or timm, without the attention pool of a CLIP',
        'use a CLIP ResNet, or these weights in a backbone of mmpretrain',
    ),
    (
        r'Transformer/encoderblock.*',
        'weights of a JAX program',
        'use the .npz file of big_vision itself',
    ),
)


def to_open_clip(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Bring a state dict to the names of an open_clip model.

    It may be a whole open_clip model or its image tower (``visual.*``), also below a prefix such as ``module.``,
    ``model.``, ``backbone.`` (checkpoints of this package) or ``image_encoder.model.`` (WiSE-FT, FLYP); an image tower
    without any prefix; or a CLIP ViT or SigLIP of transformers, see :func:`.hugging_face.from_hugging_face`.

    Args:
        state_dict: Names to tensors.

    Returns:
        The same tensors, with the image tower as ``visual.*``. Where it was below a prefix, tensors elsewhere, such as
        a classifier, are left out. Names of other models are returned as they are.

    Raises:
        ConfigError: Several image towers, adapters, or a model of transformers without a counterpart in open_clip.
    """
    weights = dict(state_dict)
    if any(key.startswith('image_encoder.model.patch_emb') for key in weights):
        return weights  # Apple's MobileCLIP, which open_clip converts
    if any(re.fullmatch(ADAPTERS, key) for key in weights):  # beside a tower too
        raise ConfigError(explain_format(weights))
    prefixes = {match[1] for key in weights if (match := re.fullmatch(r'((?:.*\.)?)(?:visual|vision_model)\..*', key))}
    prefixes = {
        prefix for prefix in prefixes if not any(other != prefix and prefix.startswith(other) for other in prefixes)
    }
    if len(prefixes) > 1:
        found = short_list(sorted(f'{prefix}visual' for prefix in prefixes))
        raise ConfigError(f'it holds several image towers ({found}): save one of them alone')
    (prefix,) = prefixes or {_prefix_of_tower(weights)}
    weights = {key[len(prefix) :]: value for key, value in weights.items() if key.startswith(prefix)}
    if is_hugging_face(weights):
        return from_hugging_face(weights)
    if is_bare_tower(weights):
        return {f'visual.{key}': value for key, value in weights.items()}
    return weights


def _prefix_of_tower(keys: Iterable[str]) -> str:
    """The prefix that all keys share and that says nothing, such as ``module.``."""
    first = next(iter(keys), '')
    match = re.match(r'(?:(?:module|_orig_mod)\.)*', first)
    return match[0] if match and all(key.startswith(match[0]) for key in keys) else ''


def is_bare_tower(keys: Iterable[str]) -> bool:
    """Whether these are names of an open_clip image tower, without ``visual.``."""
    keys = set(keys)
    vit = {'class_embedding', 'conv1.weight'} <= keys
    return vit or 'attnpool.positional_embedding' in keys or any(key.startswith('trunk.') for key in keys)


def has_image_tower(keys: Iterable[str]) -> bool:
    """Whether open_clip's names have an image tower among them."""
    return any(key.startswith(('visual.', 'image_encoder.model.patch_emb')) for key in keys)


def has_text_tower(keys: Iterable[str]) -> bool:
    """Whether open_clip's names have more than an image tower among them."""
    return any(not key.startswith('visual.') and key not in SHARED_KEYS for key in keys)


def explain_format(keys: Iterable[str]) -> str:
    """What a state dict without an image tower of a CLIP is, and what to do, as the end of a sentence."""
    keys = list(keys)
    for pattern, kind, advice in OTHER_FORMATS:
        if any(re.fullmatch(rf'(?:module\.|model\.|state_dict\.)*(?:{pattern})', key) for key in keys):
            return f'it holds {kind}: {advice}'
    return (
        f'no key is one of open_clip ("visual."), transformers or this package; it holds {short_list(keys, 3)}: use a '
        'checkpoint of one of these'
    )
