import json

import open_clip
import pytest
import torch
from mmpretrain.models.classifiers import ImageClassifier
from mmpretrain.registry import MODELS

from mmcfmask.models import OpenCLIPBackbone


def test_equals_encode_image(tiny_pretrained):
    # in float64: the two order their sums differently, and by how much float32 then rounds apart depends on the CPU
    backbone = OpenCLIPBackbone('tiny-vit', tiny_pretrained).eval().double()
    model = open_clip.create_model('tiny-vit', pretrained=tiny_pretrained).eval().double()
    images = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        (features,) = backbone(images)
        torch.testing.assert_close(features, model.encode_image(images))
    assert features.shape == (3, 16)
    assert (features.norm(dim=1) - 1).abs().min() > 0.01  # not normalised


def test_attributes(tiny_pretrained):
    backbone = MODELS.build(dict(type='OpenCLIPBackbone', model_name='tiny-vit', pretrained=tiny_pretrained))
    assert backbone.model_name == 'tiny-vit' and backbone.pretrained == tiny_pretrained
    assert (backbone.embed_dims, backbone.image_size, backbone.patch_size) == (16, (32, 32), (8, 8))
    assert isinstance(backbone.logit_scale, float)
    assert all(name.startswith('visual.') for name in backbone.state_dict())
    assert all(parameter.requires_grad for parameter in backbone.parameters()) and backbone.training


def test_init_weights_keeps_what_was_loaded(tiny_pretrained):
    classifier = ImageClassifier(
        backbone=dict(type='OpenCLIPBackbone', model_name='tiny-vit', pretrained=tiny_pretrained),
        head=dict(type='LinearClsHead', num_classes=4, in_channels=16),
    )
    before = {name: value.clone() for name, value in classifier.backbone.state_dict().items()}
    classifier.init_weights()
    for name, value in classifier.backbone.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_init_cfg_is_applied_on_top(tiny_pretrained):
    loaded = OpenCLIPBackbone('tiny-vit', tiny_pretrained)
    backbone = OpenCLIPBackbone('tiny-vit', tiny_pretrained, init_cfg=dict(type='Constant', layer='LayerNorm', val=3.0))
    backbone.init_weights()
    assert (backbone.visual.ln_post.weight == 3).all()
    assert torch.equal(backbone.visual.proj, loaded.visual.proj)


def test_frozen(tiny_pretrained):
    backbone = OpenCLIPBackbone('tiny-vit', tiny_pretrained, frozen=True)
    assert backbone.train() is backbone
    assert not any(module.training for module in backbone.modules())
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    images = torch.randn(1, 3, 32, 32)
    assert not backbone(images)[0].requires_grad


def test_grad_checkpointing_gives_the_same_gradients(tiny_pretrained):
    images = torch.randn(2, 3, 32, 32)
    gradients = []
    for on in (False, True):
        backbone = OpenCLIPBackbone('tiny-vit', tiny_pretrained, grad_checkpointing=on)
        assert backbone.visual.transformer.grad_checkpointing is on
        backbone(images)[0].pow(2).sum().backward()
        gradients.append(backbone.visual.conv1.weight.grad)
    torch.testing.assert_close(*gradients)


def test_image_size_is_checked():
    backbone = OpenCLIPBackbone('tiny-vit')
    with pytest.raises(ValueError, match=r"'tiny-vit' takes images of 32x32 pixels, got 40x32"):
        backbone(torch.zeros(1, 3, 40, 32))


TEXT = dict(context_length=16, vocab_size=49408, width=16, heads=2, layers=1)
OTHER_TOWERS = {
    'tiny-resnet': dict(
        embed_dim=16, vision_cfg=dict(image_size=64, layers=[1, 1, 1, 1], width=8, head_width=64), text_cfg=TEXT
    ),
    'tiny-coca': dict(
        embed_dim=16,
        vision_cfg=dict(
            image_size=32,
            layers=1,
            width=32,
            head_width=8,
            patch_size=8,
            attentional_pool=True,
            attn_pooler_heads=2,
            attn_pooler_queries=4,
            output_tokens=True,
        ),
        text_cfg=dict(TEXT, embed_cls=True, output_tokens=True),
        custom_text=True,
        multimodal_cfg=dict(context_length=16, vocab_size=49408, width=16, heads=2, layers=1),
    ),
    'tiny-wide': dict(
        embed_dim=16,
        vision_cfg=dict(image_size=[16, 32], layers=1, width=32, head_width=8, patch_size=8),
        text_cfg=TEXT,
    ),
}


@pytest.mark.parametrize(
    'name, size, patch',
    [('tiny-resnet', (64, 64), None), ('tiny-coca', (32, 32), (8, 8)), ('tiny-wide', (16, 32), (8, 8))],
)
def test_other_towers_equal_encode_image(name, size, patch, tmp_path):
    """Convolutions with attention pooling; a tower that also returns tokens; images that are not square."""
    (tmp_path / f'{name}.json').write_text(json.dumps(OTHER_TOWERS[name]))
    open_clip.add_model_config(tmp_path / f'{name}.json')
    model = open_clip.create_model(name).eval()
    torch.save(model.state_dict(), tmp_path / 'weights.pt')
    backbone = OpenCLIPBackbone(name, str(tmp_path / 'weights.pt')).eval()
    assert backbone.image_size == size and backbone.patch_size == patch
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        torch.testing.assert_close(backbone(images)[0], model.encode_image(images, normalize=False))
