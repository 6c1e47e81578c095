"""open_clip loads what was exported for it."""

import open_clip
import pytest
import tiny_siglip
import torch

from mmcfmask.models import OpenCLIPBackbone
from mmcfmask.models.export.open_clip_folder import model_config, write_image_tower, write_whole_model
from mmcfmask.models.export.parts import whole_model
from mmcfmask.models.towers.loading import load_image_tower

IMAGES = torch.randn(2, 3, 32, 32)


@pytest.mark.parametrize('name', ['tiny-vit', 'tiny-vit-quickgelu', tiny_siglip.NAME])
def test_the_whole_model(name, backbone, preprocessing, tmp_path):
    ours = backbone(name)
    before = open_clip.create_model(name, pretrained=ours.pretrained).eval()
    usage = write_whole_model(tmp_path, ours, whole_model(ours), preprocessing)
    assert 'local-dir:FOLDER' in usage
    model, _, preprocess = open_clip.create_model_and_transforms(f'local-dir:{tmp_path}')
    tokens = open_clip.get_tokenizer(f'local-dir:{tmp_path}')(['a star', 'a sketch'])
    with torch.no_grad():
        torch.testing.assert_close(model.eval().encode_image(IMAGES), ours(IMAGES)[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(model.encode_text(tokens), before.encode_text(tokens), rtol=0, atol=0)
        assert (before.encode_image(IMAGES) - ours(IMAGES)[0]).abs().max() > 0.01
    assert tuple(preprocess.transforms[-1].mean) == preprocessing.mean
    assert tuple(preprocess.transforms[-1].std) == preprocessing.std


def test_the_activation_of_a_tag(backbone, monkeypatch):
    """OpenAI's weights have QuickGELU, also under a name without it."""
    ours = backbone('tiny-vit')
    assert not model_config(ours).get('quick_gelu')
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, 'tiny-vit', dict(tag=dict(quick_gelu=True)))
    ours.pretrained = 'tag'
    assert model_config(ours)['quick_gelu'] is True


@pytest.mark.parametrize('size', [(16, 16), (16, 32)])
def test_another_size_of_images(size, backbone, preprocessing, tmp_path):
    ours, images = backbone('tiny-vit', image_size=size), torch.randn(2, 3, *size)
    write_whole_model(tmp_path, ours, whole_model(ours), preprocessing)
    model = open_clip.create_model(f'local-dir:{tmp_path}').eval()
    with torch.no_grad():
        torch.testing.assert_close(model.encode_image(images), ours(images)[0], rtol=1e-5, atol=1e-5)


def test_a_size_that_open_clip_cannot_build(backbone):
    with pytest.raises(ValueError, match='for images of 32 pixels only.*--part image'):
        model_config(backbone(tiny_siglip.NAME, image_size=64))


@pytest.mark.parametrize('name', ['tiny-vit', tiny_siglip.NAME])
def test_the_image_tower(name, backbone, preprocessing, tmp_path):
    ours = backbone(name)
    usage = write_image_tower(tmp_path, ours, preprocessing)
    namespace = dict(images=IMAGES)
    with torch.no_grad():
        exec(usage.replace('FOLDER', str(tmp_path)).replace('features =', 'model.eval(); features ='), namespace)
        torch.testing.assert_close(namespace['features'], ours(IMAGES)[0], rtol=1e-5, atol=1e-5)
        again = load_image_tower(name, str(tmp_path / 'open_clip_model.safetensors')).visual.eval()
        torch.testing.assert_close(again(IMAGES), ours(IMAGES)[0], rtol=1e-5, atol=1e-5)


def test_the_image_tower_for_another_size(backbone, preprocessing, tmp_path):
    assert 'force_image_size=(16, 32)' in write_image_tower(
        tmp_path, backbone('tiny-vit', image_size=(16, 32)), preprocessing
    )


def test_a_text_tower_that_was_trained(backbone):
    """FLYP trains it; its checkpoints hold it among the weights of the loss."""
    ours = backbone('tiny-vit')
    trained = {key: value + 1 for key, value in whole_model(ours).weights.items() if not key.startswith('visual.')}
    checkpoint = {f'losses.1.text.{key}': value for key, value in trained.items()}
    weights = whole_model(
        ours, {**checkpoint, 'losses.0.other': torch.zeros(1), 'head.fc.bias': torch.zeros(1)}
    ).weights
    assert weights.keys() == whole_model(ours).weights.keys()
    assert all(torch.equal(weights[key], value) for key, value in trained.items())


def test_no_text_tower(backbone, preprocessing, tmp_path):
    ours = backbone('tiny-vit')
    write_image_tower(tmp_path, ours, preprocessing)
    for pretrained, message in (
        (None, 'has no weights'),
        (str(tmp_path / 'open_clip_model.safetensors'), 'has no text tower'),
    ):
        with pytest.raises(ValueError, match=f'{message}.*--part image'):
            whole_model(OpenCLIPBackbone('tiny-vit', pretrained))
