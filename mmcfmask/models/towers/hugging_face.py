"""Weights of CLIP and SigLIP between open_clip's names and those of Hugging Face's transformers, in both directions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ...errors import ConfigError


class Row(NamedTuple):
    """Tensors that are the same in both libraries, up to their shape.

    ``{i}`` stands for the number of a block, ``{p}`` for weight or bias. Several tensors are joined along their first
    axis.
    """

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    change: str = ''
    """'T': transposed; 'batch': ours has a leading axis of one row; 'scalar': ours is a number, theirs has one axis."""


def _block(ours: str, theirs: str, norms: str, qkv: str, out: str, mlp: tuple[str, str]) -> tuple[Row, ...]:
    """The rows of a transformer block; ``norms`` ends before its number, ``qkv`` before weight or bias."""
    theirs = f'{theirs}.encoder.layers.{{i}}'
    return (
        Row((f'{ours}.{norms}1.{{p}}',), (f'{theirs}.layer_norm1.{{p}}',)),
        Row((f'{ours}.{norms}2.{{p}}',), (f'{theirs}.layer_norm2.{{p}}',)),
        Row((f'{ours}.attn.{qkv}{{p}}',), tuple(f'{theirs}.self_attn.{part}_proj.{{p}}' for part in 'qkv')),
        Row((f'{ours}.attn.{out}.{{p}}',), (f'{theirs}.self_attn.out_proj.{{p}}',)),
        Row((f'{ours}.mlp.{mlp[0]}.{{p}}',), (f'{theirs}.mlp.fc1.{{p}}',)),
        Row((f'{ours}.mlp.{mlp[1]}.{{p}}',), (f'{theirs}.mlp.fc2.{{p}}',)),
    )


def _open_clip_block(ours: str, theirs: str) -> tuple[Row, ...]:
    return _block(f'{ours}transformer.resblocks.{{i}}', theirs, 'ln_', 'in_proj_', 'out_proj', ('c_fc', 'c_proj'))


def _text(ours: str) -> tuple[Row, ...]:
    return (
        Row((f'{ours}token_embedding.weight',), ('text_model.embeddings.token_embedding.weight',)),
        Row((f'{ours}positional_embedding',), ('text_model.embeddings.position_embedding.weight',)),
        Row((f'{ours}ln_final.{{p}}',), ('text_model.final_layer_norm.{p}',)),
        *_open_clip_block(ours, 'text_model'),
    )


CLIP = (
    Row(('visual.class_embedding',), ('vision_model.embeddings.class_embedding',)),
    Row(('visual.positional_embedding',), ('vision_model.embeddings.position_embedding.weight',)),
    Row(('visual.conv1.weight',), ('vision_model.embeddings.patch_embedding.weight',)),
    Row(('visual.ln_pre.{p}',), ('vision_model.pre_layrnorm.{p}',)),  # so spelled
    Row(('visual.ln_post.{p}',), ('vision_model.post_layernorm.{p}',)),
    Row(('visual.proj',), ('visual_projection.weight',), 'T'),
    *_open_clip_block('visual.', 'vision_model'),
    *_text(''),
    Row(('text_projection',), ('text_projection.weight',), 'T'),
    Row(('logit_scale',), ('logit_scale',)),
)
"""CLIP's Vision Transformers: open_clip's own ones, and ``CLIPModel``."""

SIGLIP = (
    Row(('visual.trunk.patch_embed.proj.{p}',), ('vision_model.embeddings.patch_embedding.{p}',)),
    Row(('visual.trunk.pos_embed',), ('vision_model.embeddings.position_embedding.weight',), 'batch'),
    *_block('visual.trunk.blocks.{i}', 'vision_model', 'norm', 'qkv.', 'proj', ('fc1', 'fc2')),
    Row(('visual.trunk.norm.{p}',), ('vision_model.post_layernorm.{p}',)),
    Row(('visual.trunk.attn_pool.latent',), ('vision_model.head.probe',)),
    Row(
        ('visual.trunk.attn_pool.q.{p}', 'visual.trunk.attn_pool.kv.{p}'),
        ('vision_model.head.attention.in_proj_{p}',),
    ),
    Row(('visual.trunk.attn_pool.proj.{p}',), ('vision_model.head.attention.out_proj.{p}',)),
    Row(('visual.trunk.attn_pool.norm.{p}',), ('vision_model.head.layernorm.{p}',)),
    Row(('visual.trunk.attn_pool.mlp.fc1.{p}',), ('vision_model.head.mlp.fc1.{p}',)),
    Row(('visual.trunk.attn_pool.mlp.fc2.{p}',), ('vision_model.head.mlp.fc2.{p}',)),
    *_text('text.'),
    Row(('text.text_projection.{p}',), ('text_model.head.{p}',)),
    Row(('logit_scale',), ('logit_scale',), 'scalar'),
    Row(('logit_bias',), ('logit_bias',), 'scalar'),
)
"""SigLIP and SigLIP 2 of a fixed resolution: timm's tower with attention pooling, and ``SiglipModel``."""

# Indices of positions, which older versions of transformers saved.
BUFFERS = re.compile(r'.*\.position_ids')


def is_hugging_face(keys: Iterable[str]) -> bool:
    """Whether these are names of transformers' CLIP or SigLIP."""
    return any(key.startswith('vision_model.') or key == 'embeddings.patch_embedding.weight' for key in keys)


def from_hugging_face(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of a CLIP ViT or a SigLIP of transformers for open_clip.

    Args:
        state_dict: Of ``CLIPModel``, ``CLIPVisionModelWithProjection``, ``SiglipModel`` or ``SiglipVisionModel``.

    Returns:
        The tensors under open_clip's names (``visual.*``, the text tower, ``logit_scale``), in open_clip's shapes.

    Raises:
        ConfigError: Another model of transformers, or one without a projection.
    """
    weights = {key: value for key, value in state_dict.items() if not BUFFERS.fullmatch(key)}
    if 'embeddings.patch_embedding.weight' in weights:  # a vision model alone, of transformers >= 5
        weights = {f'vision_model.{key}': value for key, value in weights.items()}
    siglip = any(key.startswith('vision_model.head.') for key in weights)
    patches = weights.get('vision_model.embeddings.patch_embedding.weight')
    if patches is None or patches.ndim != 4:
        kind = 'another model of transformers than CLIP or SigLIP'
        if patches is not None:
            kind = 'a SigLIP 2 of flexible resolution (NaFlex), for which open_clip has no tower'
        raise ConfigError(f'it is {kind}: use a CLIP ViT, or a SigLIP of a fixed resolution')
    if not siglip and 'visual_projection.weight' not in weights:
        raise ConfigError(
            'it is a vision tower of transformers without its projection to the embedding (CLIPVisionModel): save a '
            'CLIPModel or a CLIPVisionModelWithProjection'
        )
    renamed, unknown = _convert(weights, SIGLIP if siglip else CLIP, to_ours=True)
    if unknown:
        raise ConfigError(f'it is another model of transformers than CLIP or SigLIP, which lack {unknown[0]!r}')
    return renamed


def to_hugging_face(state_dict: Mapping[str, Tensor], siglip: bool) -> tuple[dict[str, Tensor], list[str]]:
    """Rename the weights of an open_clip CLIP ViT or SigLIP for transformers.

    Args:
        state_dict: ``visual.*``, and the text tower, ``logit_scale`` and ``logit_bias`` if they are to be renamed too.
        siglip: SigLIP, or else CLIP.

    Returns:
        The tensors under the names of ``SiglipModel`` or ``CLIPModel``, contiguous, and the keys that have none there.
    """
    return _convert(state_dict, SIGLIP if siglip else CLIP, to_ours=False)


def _convert(
    weights: Mapping[str, Tensor], rows: tuple[Row, ...], to_ours: bool
) -> tuple[dict[str, Tensor], list[str]]:
    """The renamed tensors, and the keys that no row has."""
    renamed, used = {}, set()
    for row in rows:
        source, target = (row.theirs, row.ours) if to_ours else (row.ours, row.theirs)
        first = re.escape(source[0]).replace(r'\{i\}', r'(?P<i>\d+)').replace(r'\{p\}', '(?P<p>weight|bias)')
        for match in filter(None, (re.fullmatch(first, key) for key in weights)):
            keys = [name.format(**match.groupdict()) for name in source]
            missing = [key for key in keys if key not in weights]
            if missing:
                raise ConfigError(f'{missing[0]} is missing')
            used.update(keys)
            value = torch.cat([weights[key] for key in keys]) if len(keys) > 1 else weights[keys[0]]
            if row.change:
                value = _changed(value, row.change, to_ours)
            names = [name.format(**match.groupdict()) for name in target]
            shares = [2 if '.kv.' in name else 1 for name in names]  # keys and values of timm are one tensor
            sizes = [len(value) * share // sum(shares) for share in shares] if len(names) > 1 else None
            for name, part in zip(names, value.split(sizes) if sizes else [value]):
                renamed[name] = part.contiguous()
    return renamed, [key for key in weights if key not in used]


def _changed(value: Tensor, change: str, to_ours: bool) -> Tensor:
    if change == 'T':
        return value.T
    if change == 'batch':
        return value[None] if to_ours else value[0]
    return value.reshape(()) if to_ours else value.reshape(1)
