"""Tiny towers of every family, with random weights large enough for attention to be far from uniform."""

import json

import open_clip
import timm
import torch
from mmpretrain.registry import MODELS
from timm.models import register_model
from timm.models.convnext import ConvNeXt
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import mmcfmask  # noqa: F401

TEXT = dict(context_length=16, vocab_size=49408, width=16, heads=2, layers=1)
VIT = dict(image_size=32, layers=2, width=32, head_width=8, patch_size=8)
TIMM = dict(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=4, num_classes=0)
MMPRETRAIN = dict(
    img_size=32, patch_size=8, arch=dict(embed_dims=32, num_layers=2, num_heads=4, feedforward_channels=64)
)

# What open_clip.add_model_config takes.
OPEN_CLIP = {
    'tiny-coca': dict(
        embed_dim=16,
        vision_cfg=dict(VIT, attentional_pool=True, attn_pooler_heads=2, attn_pooler_queries=4, output_tokens=True),
        text_cfg=dict(TEXT, embed_cls=True, output_tokens=True),
        custom_text=True,
        multimodal_cfg=TEXT,
    ),
    'tiny-clipa': dict(
        embed_dim=16,
        vision_cfg=dict(VIT, no_ln_pre=True, pool_type='avg', final_ln_after_pool=True),
        text_cfg=TEXT,
    ),
    'tiny-mean': dict(embed_dim=16, vision_cfg=dict(VIT, pool_type='avg'), text_cfg=TEXT),
    'tiny-resnet': dict(
        embed_dim=16, vision_cfg=dict(image_size=64, layers=[1, 1, 1, 1], width=8, head_width=64), text_cfg=TEXT
    ),
    **{
        name: dict(
            embed_dim=16,
            vision_cfg=dict(
                timm_model_name=name.replace('-', '_'),
                timm_pool='',
                timm_proj='linear',
                timm_drop_path=0.5,
                image_size=size,
            ),
            text_cfg=TEXT,
        )
        for name, size in {'tiny-convnext': 64, 'tiny-swin': 32, 'tiny-fastvit': 64, 'tiny-map-pool': 64}.items()
    },
}


@register_model
def tiny_convnext(pretrained=False, pretrained_cfg=None, pretrained_cfg_overlay=None, cache_dir=None, **kwargs):
    return _with_cfg(ConvNeXt(depths=(1, 1, 1, 1), dims=(8, 8, 16, 16), **kwargs))


@register_model
def tiny_swin(pretrained=False, pretrained_cfg=None, pretrained_cfg_overlay=None, cache_dir=None, **kwargs):
    sizes = dict(img_size=32, patch_size=2, window_size=4, embed_dim=8, depths=(2, 1), num_heads=(1, 2))
    return _with_cfg(SwinTransformer(**sizes, **kwargs))


@register_model
def tiny_map_pool(pretrained=False, pretrained_cfg=None, pretrained_cfg_overlay=None, cache_dir=None, **kwargs):
    sizes = dict(img_size=64, patch_size=18, embed_dim=32, depth=2, num_heads=4, global_pool='map', class_token=False)
    return _with_cfg(VisionTransformer(**sizes, **kwargs))


@register_model
def tiny_fastvit(pretrained=False, pretrained_cfg=None, pretrained_cfg_overlay=None, cache_dir=None, **kwargs):
    return timm.create_model('fastvit_t8', layers=(1, 1, 1, 1), embed_dims=(8, 8, 16, 16), **kwargs)


def _with_cfg(model):
    model.default_cfg = {}
    return model


def register(folder):
    """Make the names of ``OPEN_CLIP`` known to open_clip."""
    for name, config in OPEN_CLIP.items():
        (folder / f'{name}.json').write_text(json.dumps(config))
    open_clip.add_model_config(folder)


def enlarge(module):
    """Weights three times as large as at random initialisation; biases and latent queries are no longer zero."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)
            if not parameter.any() or name.endswith('latent'):
                nn.init.normal_(parameter)
    return module


def build(kind, name, **options):
    """A tower in float64 and eval mode: of ``open_clip``, ``timm`` or ``mmpretrain``."""
    torch.manual_seed(1)
    if kind == 'open_clip':
        tower = MODELS.build(dict(type='OpenCLIPBackbone', model_name=name))
    elif kind == 'timm':
        tower = timm.create_model(name, **{**TIMM, **options})
    else:
        plain = not options.keys() & {'arch', 'depth'}
        tower = MODELS.build(dict(type=name, **({**MMPRETRAIN, **options} if plain else options)))
    enlarge(tower).double().eval()
    return tower
