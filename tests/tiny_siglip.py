"""A SigLIP small enough for tests: timm's tower with attention pooling, and a text tower of open_clip."""

import json

import open_clip
from timm.models import register_model
from timm.models.vision_transformer import VisionTransformer

NAME = 'tiny-sigmoid'  # of the name depends which tokenizer open_clip takes: this one is on the machine


@register_model
def tiny_siglip(pretrained=False, img_size=32, **kwargs):
    model = VisionTransformer(
        img_size=img_size,
        patch_size=8,
        embed_dim=32,
        depth=2,
        num_heads=4,
        mlp_ratio=2,
        class_token=False,
        act_layer='gelu_tanh',
        num_classes=0,
        global_pool=kwargs.get('global_pool', 'map'),
    )
    model.default_cfg = {}
    return model


def register(folder):
    """Let open_clip know the model as :data:`NAME`."""
    config = dict(
        embed_dim=32,
        init_logit_bias=-10,
        custom_text=True,
        vision_cfg=dict(image_size=32, timm_model_name='tiny_siglip', timm_pool='map', timm_proj='none'),
        text_cfg=dict(
            context_length=16,
            vocab_size=49408,
            width=32,
            heads=4,
            layers=2,
            no_causal_mask=True,
            proj_bias=True,
            pool_type='last',
            norm_kwargs=dict(eps=1e-6),
            act_kwargs=dict(approximate='tanh'),
        ),
    )
    (folder / f'{NAME}.json').write_text(json.dumps(config))
    open_clip.add_model_config(folder / f'{NAME}.json')


def shaken(model, seed=1):
    """A model with weights, biases and norms away from 0 and 1, which would hide a mistake; in eval mode."""
    import torch

    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()
