"""Towers for images of another size than they were trained with."""

import open_clip
import pytest
import torch
from open_clip.model import resize_pos_embed
from towers import register

from mmcfmask.counterfactual.towers import patch_grid
from mmcfmask.models import OpenCLIPBackbone, OpenCLIPTeacher

VISION = dict(image_size=32, layers=2, width=32, head_width=16, patch_size=8)
TEXT = dict(context_length=8, vocab_size=16, width=16, heads=1, layers=1)


@pytest.fixture(autouse=True)
def models():
    open_clip.factory._MODEL_CONFIGS['resizable-vit'] = dict(embed_dim=16, vision_cfg=VISION, text_cfg=TEXT)
    resnet = dict(image_size=64, layers=[1, 1, 1, 1], width=8, head_width=64)
    open_clip.factory._MODEL_CONFIGS['resizable-rn'] = dict(embed_dim=16, vision_cfg=resnet, text_cfg=TEXT)
    timm = dict(
        timm_model_name='vit_tiny_patch16_224', timm_model_pretrained=False, timm_pool='', timm_proj='linear',
        image_size=224,
    )  # fmt: skip
    open_clip.factory._MODEL_CONFIGS['resizable-timm'] = dict(embed_dim=16, vision_cfg=timm, text_cfg=TEXT)
    yield
    for name in 'resizable-vit', 'resizable-rn', 'resizable-timm':
        del open_clip.factory._MODEL_CONFIGS[name]


@pytest.mark.parametrize('size', [16, (48, 48), (16, 40), (8, 64)])
def test_features_equal_open_clip_with_a_checkpoint_of_another_size(tmp_path, size):
    torch.manual_seed(0)
    trained = open_clip.create_model('resizable-vit')
    path = tmp_path / 'weights.pt'
    torch.save(trained.state_dict(), path)
    backbone = OpenCLIPBackbone('resizable-vit', str(path), image_size=size)

    expected = open_clip.create_model('resizable-vit', force_image_size=size)
    state = trained.state_dict()
    resize_pos_embed(state, expected)
    expected.load_state_dict(state)
    shape = (size, size) if isinstance(size, int) else size
    images = torch.randn(2, 3, *shape)
    torch.testing.assert_close(backbone(images)[0], expected.encode_image(images))
    assert backbone.image_size == shape
    assert backbone.visual.positional_embedding.requires_grad


def test_as_many_patches_in_another_shape(tmp_path):
    """open_clip leaves the embeddings of a square in place, so that every patch gets a wrong position."""
    torch.manual_seed(0)
    path = tmp_path / 'weights.pt'
    torch.save(open_clip.create_model('resizable-vit').state_dict(), path)
    square, wide = (OpenCLIPBackbone('resizable-vit', str(path), image_size=size) for size in (32, (16, 64)))
    before, after = (tower.visual.positional_embedding.detach() for tower in (square, wide))
    rows = before[1:].view(4, 4, -1).permute(2, 0, 1)[None]
    expected = torch.nn.functional.interpolate(rows, (2, 8), mode='bicubic', antialias=True)[0].flatten(1).T
    torch.testing.assert_close(after, torch.cat([before[:1], expected]))


@pytest.mark.parametrize('name, size', [('resizable-rn', (96, 64)), ('resizable-timm', (112, 64))])
def test_other_towers(name, size):
    backbone = OpenCLIPBackbone(name, image_size=size)
    assert backbone(torch.randn(2, 3, *size))[0].shape == (2, 16)
    with pytest.raises(ValueError, match='no multiple of the patch size'):
        OpenCLIPBackbone(name, image_size=(size[0] + 1, size[1]))


@pytest.fixture(scope='module')
def families(tmp_path_factory):
    register(tmp_path_factory.mktemp('towers'))


@pytest.mark.parametrize('name', ['tiny-convnext', 'tiny-fastvit'])
def test_convolutions_take_every_size(families, name):
    """They compute what the tower of its own size computes on such images."""
    torch.manual_seed(0)
    trained = OpenCLIPBackbone(name).eval()
    resized = OpenCLIPBackbone(name, image_size=(96, 64)).eval()
    resized.load_state_dict(trained.state_dict())
    images = torch.randn(2, 3, 96, 64)
    torch.testing.assert_close(resized(images)[0], trained.visual(images))
    assert patch_grid(resized, images) == (3, 2)
    with pytest.raises(ValueError, match='takes images of 96x64 pixels, got 64x96'):
        resized(images.mT)


@pytest.mark.parametrize('size, grid', [((48, 64), (12, 16)), (40, (10, 10))])
def test_windows_follow_the_size(families, size, grid):
    """Of a Swin, to the last patch: every one has a say."""
    backbone = OpenCLIPBackbone('tiny-swin', image_size=size).eval()
    images = torch.randn(1, 3, *backbone.image_size, requires_grad=True)
    features = backbone(images)[0]
    features.square().sum().backward()
    assert features.shape == (1, 16) and images.grad.ne(0).float().mean() > 0.99
    assert patch_grid(backbone, images) == grid


def test_a_size_that_does_not_fit_is_an_error():
    with pytest.raises(
        ValueError, match=r'image_size=\(30, 32\) is no multiple of the patch size \(8, 8\).*\(32, 32\)'
    ):
        OpenCLIPBackbone('resizable-vit', image_size=(30, 32))
    for wrong in 0, -8, True, '32', (32,):
        with pytest.raises(ValueError, match='must be a number of pixels'):
            OpenCLIPBackbone('resizable-vit', image_size=wrong)
    backbone = OpenCLIPBackbone('resizable-vit', image_size=16)
    with pytest.raises(ValueError, match='takes images of 16x16 pixels, got 32x32: set image_size'):
        backbone(torch.randn(1, 3, 32, 32))


def test_another_model_as_teacher_takes_the_same_images(tmp_path):
    torch.manual_seed(0)
    torch.save(open_clip.create_model('resizable-vit').state_dict(), tmp_path / 'weights.pt')
    student = OpenCLIPBackbone('resizable-vit', image_size=16)
    teacher = OpenCLIPTeacher('resizable-vit', str(tmp_path / 'weights.pt'))
    teacher.setup(student)
    assert teacher(torch.randn(2, 3, 16, 16)).shape == (2, 16)
