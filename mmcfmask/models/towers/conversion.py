"""From open_clip's Vision Transformer image towers to mmpretrain's ``VisionTransformer`` with a ``CLIPProjection``
neck."""

from __future__ import annotations

import re

import open_clip
import torch
from open_clip import CLIPVisionCfg
from open_clip.utils import to_2tuple

from ...errors import ConfigError
from ...messages import short_list
from .backbone import OpenCLIPBackbone
from .loading import check_model_name

# open_clip's names (without 'visual.') on the left, mmpretrain's on the right; norms and linears by module, rest by
# tensor.
RENAMES = (
    (r'class_embedding', 'backbone.cls_token'),
    (r'positional_embedding', 'backbone.pos_embed'),
    (r'proj', 'neck.proj'),
    (r'conv1\.weight', 'backbone.patch_embed.projection.weight'),
    (r'ln_pre\.(weight|bias)', r'backbone.pre_norm.\1'),
    (r'ln_post\.(weight|bias)', r'backbone.ln1.\1'),
    (r'transformer\.resblocks\.(\d+)\.ln_([12])\.(weight|bias)', r'backbone.layers.\1.ln\2.\3'),
    (r'transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)', r'backbone.layers.\1.attn.qkv.\2'),
    (r'transformer\.resblocks\.(\d+)\.attn\.out_proj\.(weight|bias)', r'backbone.layers.\1.attn.proj.\2'),
    (r'transformer\.resblocks\.(\d+)\.mlp\.c_fc\.(weight|bias)', r'backbone.layers.\1.ffn.layers.0.0.\2'),
    (r'transformer\.resblocks\.(\d+)\.mlp\.c_proj\.(weight|bias)', r'backbone.layers.\1.ffn.layers.1.\2'),
)


def open_clip_to_mmpretrain(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename the weights of an open_clip ViT image tower for an mmpretrain classifier (``backbone.*`` and
    ``neck.proj``).

    Args:
        state_dict: Weights of the tower, with keys ``visual.*`` (all other keys are then ignored) or without prefix.

    Returns:
        The same tensors under mmpretrain's names; the class token and the position embedding get a batch dimension.

    Raises:
        ConfigError: Keys that mmpretrain's VisionTransformer lacks (attention pooling, layer scale, timm towers).
    """
    visual = {
        key[len('visual.') :]: value for key, value in state_dict.items() if key.startswith('visual.')
    } or state_dict
    converted, unknown = {}, []
    for key, value in visual.items():
        for pattern, name in RENAMES:
            match = re.fullmatch(pattern, key)
            if match:
                name = match.expand(name)
                shape = {'backbone.cls_token': (1, 1, -1), 'backbone.pos_embed': (1, *value.shape)}.get(
                    name, value.shape
                )
                converted[name] = value.reshape(shape)
                break
        else:
            unknown.append(key)
    if unknown:
        raise ConfigError(
            f"Not a plain ViT tower of open_clip: mmpretrain's VisionTransformer lacks {short_list(unknown, 5)}."
        )
    return converted


def mmpretrain_model(backbone: OpenCLIPBackbone) -> tuple[dict, dict[str, torch.Tensor]]:
    """The mmpretrain model that equals an open_clip ViT, and its weights.

    Args:
        backbone: The image tower.

    Returns:
        ``dict(backbone=…, neck=…)`` for the size of images of the tower, and ``backbone.*`` and ``neck.proj``.

    Raises:
        ConfigError: A tower that mmpretrain's VisionTransformer cannot represent.
    """
    config = mmpretrain_config(backbone.model_name, backbone.pretrained)
    config['backbone']['img_size'] = backbone.image_size
    return config, open_clip_to_mmpretrain(backbone.visual.state_dict())


def mmpretrain_config(model_name: str, pretrained: str | None = None) -> dict:
    """The mmpretrain model that equals an open_clip ViT image tower: ``dict(backbone=..., neck=...)``.

    Args:
        model_name: Name of an open_clip model.
        pretrained: The tag of the weights, if any: some, like ``'openai'``, need QuickGELU with every model name.

    Raises:
        ConfigError: Unknown name, or a tower that mmpretrain's VisionTransformer cannot represent.
    """
    check_model_name(model_name)
    cfg = open_clip.get_model_config(model_name)
    vision = CLIPVisionCfg(**cfg['vision_cfg'])
    supported = CLIPVisionCfg(
        layers=vision.layers,
        width=vision.width,
        head_width=vision.head_width,
        mlp_ratio=vision.mlp_ratio,
        patch_size=vision.patch_size,
        image_size=vision.image_size,
        norm_kwargs=vision.norm_kwargs,
        output_tokens=vision.output_tokens,
    )
    if vision != supported or not isinstance(vision.layers, int):
        extra = [name for name, value in vars(vision).items() if value != getattr(supported, name)]
        raise ConfigError(
            f'The image tower of {model_name!r} is not a plain ViT with a class token '
            f'({", ".join(extra) or "layers"}): '
            "use dict(type='OpenCLIPBackbone', ...)."
        )
    quick_gelu = cfg.get('quick_gelu') or open_clip.get_pretrained_cfg(model_name, pretrained or '').get('quick_gelu')
    # The defaults differ: open_clip's LayerNorm has torch's 1e-5, mmpretrain's VisionTransformer 1e-6.
    norm_cfg = {'type': 'LN', 'eps': 1e-5, **(vision.norm_kwargs or {})}
    return dict(
        backbone=dict(
            type='VisionTransformer',
            arch=dict(
                embed_dims=vision.width,
                num_layers=vision.layers,
                num_heads=vision.width // vision.head_width,
                feedforward_channels=int(vision.width * vision.mlp_ratio),
            ),
            img_size=to_2tuple(vision.image_size),
            patch_size=vision.patch_size,
            pre_norm=True,  # also takes the bias from the patch embedding
            norm_cfg=norm_cfg,
            layer_cfgs=dict(act_cfg=dict(type='mmpretrain.QuickGELU' if quick_gelu else 'GELU')),
            out_type='cls_token',
        ),
        neck=dict(type='CLIPProjection', in_channels=vision.width, out_channels=cfg['embed_dim']),
    )
