"""A folder that transformers loads: CLIP ViTs and SigLIP, as a whole model, an image tower or a classifier."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from open_clip.timm_model import TimmModel
from open_clip.tokenizer import SimpleTokenizer
from open_clip.transformer import VisionTransformer
from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer
from torch import nn

from ...errors import ConfigError
from ...files import write_json, write_text
from ...messages import short_list
from ..head import CLIPDistillHead
from ..towers.backbone import OpenCLIPBackbone
from ..towers.hugging_face import to_hugging_face
from ..towers.loading import ASSETS
from .parts import Preprocessing, WholeModel, activation_name, image_weights, write_safetensors

CODE = 'modeling_embedding_classifier.py'
OTHERS = 'export it to open_clip, torch or onnx'
NO_TEXT = 'export the image tower alone (--part image), or all of it to open_clip'

WHOLE_MODEL = """
from transformers import AutoModel, AutoProcessor

model = AutoModel.from_pretrained('FOLDER')
processor = AutoProcessor.from_pretrained('FOLDER')
"""
IMAGE_TOWER = """
from transformers import AutoImageProcessor, {kind}

model = {kind}.from_pretrained('FOLDER')
processor = AutoImageProcessor.from_pretrained('FOLDER')
features = model(**processor(image, return_tensors='pt')).{output}
"""
CLASSIFIER = """
from transformers import pipeline

classify = pipeline('image-classification', 'FOLDER', trust_remote_code=True)  # the code is in this folder
classify(image)
"""


def vision_config(backbone: OpenCLIPBackbone) -> dict[str, Any]:
    """The config of the image tower, as of ``CLIPVisionConfig`` or ``SiglipVisionConfig``.

    Raises:
        ConfigError: transformers has no such tower.
    """
    visual, where = backbone.visual, f'the image tower of {backbone.model_name!r}'
    reasons = []
    if isinstance(visual, VisionTransformer):
        block, kind = visual.transformer.resblocks[0], 'clip_vision_model'
        norm, heads, mlp, depth = block.ln_1, block.attn.num_heads, block.mlp.c_fc, len(visual.transformer.resblocks)
        reasons += ['another pooling than the class token'] * (visual.pool_type != 'tok' or visual.final_ln_after_pool)
        reasons += ['no layer norm before its blocks'] * isinstance(visual.ln_pre, nn.Identity)
    elif isinstance(visual, TimmModel) and isinstance(visual.trunk, TimmVisionTransformer):
        block, kind = visual.trunk.blocks[0], 'siglip_vision_model'
        norm, heads, depth = block.norm1, block.attn.num_heads, len(visual.trunk.blocks)
        mlp, pool = getattr(block.mlp, 'fc1', None), visual.trunk.attn_pool
        reasons += ['a gated MLP'] * (mlp is None)  # ViTamin
        reasons += ['no attention pool with as many heads'] * (pool is None or pool.num_heads != heads)
    else:
        raise ConfigError(f'{where} is neither a CLIP ViT nor a SigLIP, so transformers has no such tower: {OTHERS}')
    unknown = to_hugging_face(image_weights(backbone), siglip=kind.startswith('siglip'))[1]
    reasons += [f'weights that they lack: {short_list(unknown, 3)}'] * bool(unknown)
    patch, size = backbone.patch_size, backbone.image_size
    if patch is None or patch[0] != patch[1] or size[0] != size[1]:
        reasons.append('images or patches that are not square')
    if reasons:
        raise ConfigError(
            f"{where} has no counterpart in transformers' CLIP and SigLIP: it has {' and '.join(reasons)}: {OTHERS}"
        )
    assert patch is not None
    config = dict(
        model_type=kind,
        hidden_size=norm.normalized_shape[0],
        intermediate_size=mlp.out_features,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        image_size=size[0],
        patch_size=patch[0],
        hidden_act=activation_name(visual, where),
        layer_norm_eps=norm.eps,
    )
    return config if kind.startswith('siglip') else dict(config, projection_dim=backbone.embed_dims)


def text_config(model: nn.Module, siglip: bool, name: str) -> dict[str, Any]:
    """The config of the text tower of an open_clip model, as of ``CLIPTextConfig`` or ``SiglipTextConfig``.

    Args:
        model: The whole model.
        siglip: Of SigLIP, or else of CLIP.
        name: Of the model, for the error.

    Raises:
        ConfigError: transformers has no such text tower.
    """
    text = getattr(model, 'text', model)
    where = f'the text tower of {name!r}'
    pool = getattr(text, 'pool_type', None) or getattr(text, 'text_pool_type', None)
    causal = getattr(text, 'attn_mask', None) is not None
    if not hasattr(text, 'token_embedding') or pool != ('last' if siglip else 'argmax') or causal == siglip:
        raise ConfigError(f'{where} has no counterpart in transformers: {NO_TEXT}')
    block = text.transformer.resblocks[0]
    config = dict(
        model_type='siglip_text_model' if siglip else 'clip_text_model',
        hidden_size=block.ln_1.normalized_shape[0],
        intermediate_size=block.mlp.c_fc.out_features,
        num_hidden_layers=len(text.transformer.resblocks),
        num_attention_heads=block.attn.num_heads,
        max_position_embeddings=len(text.positional_embedding),
        vocab_size=text.vocab_size,
        hidden_act=activation_name(text.transformer, where),
        layer_norm_eps=block.ln_1.eps,
    )
    if siglip:
        projection = text.text_projection
        return dict(config, projection_size=projection.out_features)
    last = text.vocab_size - 1  # open_clip reads the embedding at the greatest token, which ends every text
    return dict(config, bos_token_id=last - 1, eos_token_id=last, pad_token_id=0)


def write_image_tower(folder: Path, backbone: OpenCLIPBackbone, preprocessing: Preprocessing) -> str:
    """Write a folder for ``CLIPVisionModelWithProjection`` or ``SiglipVisionModel``.

    Returns:
        Python that loads it.

    Raises:
        ConfigError: transformers has no such tower.
        StorageError: A file cannot be written.
    """
    config = vision_config(backbone)
    siglip = config['model_type'].startswith('siglip')
    kind = 'SiglipVisionModel' if siglip else 'CLIPVisionModelWithProjection'
    weights, _ = to_hugging_face(image_weights(backbone), siglip)
    _write(folder, dict(config, architectures=[kind]), weights, preprocessing)
    return IMAGE_TOWER.format(kind=kind, output='pooler_output' if siglip else 'image_embeds')


def write_whole_model(folder: Path, backbone: OpenCLIPBackbone, whole: WholeModel, preprocessing: Preprocessing) -> str:
    """Write a folder for ``CLIPModel`` or ``SiglipModel``, with the tokenizer.

    Returns:
        Python that loads it.

    Raises:
        ConfigError: transformers has no such tower.
        StorageError: A file cannot be written.
    """
    vision = vision_config(backbone)
    siglip = vision['model_type'].startswith('siglip')
    text = text_config(whole.model, siglip, backbone.model_name)
    if siglip:
        config: dict[str, Any] = dict(model_type='siglip', architectures=['SiglipModel'])
    else:
        config = dict(model_type='clip', architectures=['CLIPModel'], projection_dim=backbone.embed_dims)
        text['projection_dim'] = backbone.embed_dims
    tensors = whole.weights
    if not siglip:  # a text tower apart, where open_clip's model has one
        tensors = {key.removeprefix('text.'): value for key, value in tensors.items()}
    weights, unknown = to_hugging_face(tensors, siglip)
    if unknown:
        raise ConfigError(
            f'the text tower of {backbone.model_name!r} has weights that transformers lacks, '
            f'{short_list(unknown, 3)}: {NO_TEXT}'
        )
    _write(folder, dict(config, text_config=text, vision_config=vision), weights, preprocessing)
    if isinstance(whole.tokenizer, SimpleTokenizer):
        write_clip_tokenizer(folder, whole.tokenizer)
    elif hasattr(whole.tokenizer, 'save_pretrained'):
        whole.tokenizer.save_pretrained(str(folder))
    return WHOLE_MODEL


def write_classifier(
    folder: Path,
    backbone: OpenCLIPBackbone,
    head: CLIPDistillHead,
    preprocessing: Preprocessing,
    classes: Sequence[str] | None = None,
) -> str:
    """Write a folder for ``AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=True)``.

    transformers' own classifiers average the patches in place of the embedding and do not normalise it. So the folder
    has a class of its own, a few lines of Python.

    Args:
        folder: Where to write.
        backbone: The image tower.
        head: The classifier.
        preprocessing: Of images.
        classes: Names of the classes; None: ``LABEL_0``, ….

    Returns:
        Python that loads it.

    Raises:
        ConfigError: transformers has no such tower, or another number of names.
        StorageError: A file cannot be written.
    """
    config = vision_config(backbone)
    siglip = config['model_type'].startswith('siglip')
    names = [f'LABEL_{index}' for index in range(head.num_classes)] if classes is None else list(map(str, classes))
    if len(names) != head.num_classes:
        raise ConfigError(f'the classifier has {head.num_classes} classes, but there are {len(names)} names')
    kind = 'SiglipEmbeddingClassifier' if siglip else 'CLIPEmbeddingClassifier'
    config.update(
        architectures=[kind],
        auto_map=dict(AutoModelForImageClassification=f'{CODE[:-3]}.{kind}'),
        id2label=dict(enumerate(names)),
        label2id={name: index for index, name in enumerate(names)},
        projection_dim=backbone.embed_dims,
    )
    weights, _ = to_hugging_face(image_weights(backbone), siglip)
    weights.update({'classifier.weight': head.fc.weight, 'classifier.bias': head.fc.bias})
    _write(folder, config, weights, preprocessing)
    write_text(folder / CODE, (ASSETS / CODE).read_text(encoding='utf-8'))
    return CLASSIFIER


def _write(
    folder: Path, config: dict[str, Any], weights: dict[str, torch.Tensor], preprocessing: Preprocessing
) -> None:
    write_json(folder / 'config.json', dict(config, dtype='float32'))
    write_safetensors(folder / 'model.safetensors', weights)
    height, width = preprocessing.image_size
    write_json(
        folder / 'preprocessor_config.json',
        dict(
            image_processor_type='CLIPImageProcessor',
            do_convert_rgb=True,
            do_resize=True,
            size=dict(shortest_edge=preprocessing.edge),
            resample=3,  # bicubic
            do_center_crop=True,
            crop_size=dict(height=height, width=width),
            do_rescale=True,
            rescale_factor=1 / 255,
            do_normalize=True,
            image_mean=list(preprocessing.mean),
            image_std=list(preprocessing.std),
        ),
    )


def write_clip_tokenizer(folder: Path, tokenizer: SimpleTokenizer) -> None:
    """Write the files of transformers' ``CLIPTokenizer`` that give the tokens of open_clip's.

    Args:
        folder: Where to write.
        tokenizer: Of a CLIP with the usual vocabulary.

    Raises:
        StorageError: A file cannot be written.
    """
    first, last = '<|startoftext|>', '<|endoftext|>'
    special = {'<start_of_text>': first, '<end_of_text>': last}
    write_json(
        folder / 'vocab.json', {special.get(text, text): number for text, number in tokenizer.encoder.items()}, None
    )
    merges = sorted(tokenizer.bpe_ranks, key=lambda pair: tokenizer.bpe_ranks[pair])
    write_text(folder / 'merges.txt', '#version: 0.2\n' + ''.join(f'{a} {b}\n' for a, b in merges))
    write_json(
        folder / 'tokenizer_config.json',
        dict(
            tokenizer_class='CLIPTokenizer',
            bos_token=first,
            eos_token=last,
            unk_token=last,
            pad_token=last,
            model_max_length=tokenizer.context_length,
            do_lower_case=True,
        ),
    )
