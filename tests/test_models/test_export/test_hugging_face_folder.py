"""transformers loads what was exported for it."""

import json

import numpy as np
import open_clip
import pytest
import tiny_siglip
import torch
from PIL import Image

from mmcfmask.models import CLIPDistillHead, OpenCLIPBackbone
from mmcfmask.models.export.hugging_face_folder import (
    text_config,
    vision_config,
    write_classifier,
    write_image_tower,
    write_whole_model,
)
from mmcfmask.models.export.parts import whole_model

IMAGES = torch.randn(2, 3, 32, 32)
NAMES = ['tiny-vit', 'tiny-vit-quickgelu', tiny_siglip.NAME]


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    monkeypatch.setenv('HF_MODULES_CACHE', str(tmp_path / 'modules'))
    return pytest.importorskip('transformers')


def load(kind, folder, **kwargs):
    """A model of transformers that finds exactly its weights."""
    model, info = kind.from_pretrained(folder, output_loading_info=True, **kwargs)
    assert not any(info[key] for key in ('missing_keys', 'unexpected_keys', 'mismatched_keys'))
    return model.eval()


@pytest.mark.parametrize('name', NAMES)
def test_the_image_tower(name, backbone, preprocessing, tmp_path, offline):
    ours = backbone(name)
    usage = write_image_tower(tmp_path, ours, preprocessing)
    siglip = name == tiny_siglip.NAME
    theirs = load(offline.SiglipVisionModel if siglip else offline.CLIPVisionModelWithProjection, tmp_path)
    with torch.no_grad():
        output = theirs(IMAGES)
        features = output.pooler_output if siglip else output.image_embeds
        torch.testing.assert_close(features, ours(IMAGES)[0], rtol=1e-5, atol=1e-5)

    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 60, 3), np.uint8))
    namespace = dict(image=image)
    exec(usage.replace('FOLDER', str(tmp_path)), namespace)
    torch.testing.assert_close(namespace['features'], ours(preprocessed(image, preprocessing))[0], rtol=0.05, atol=0.05)


def preprocessed(image, preprocessing):
    width, height = (round(side * preprocessing.edge / min(image.size)) for side in image.size)
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC), np.float32)
    top, left = (height - 32) // 2, (width - 32) // 2
    pixels = pixels[top : top + 32, left : left + 32] / 255
    return torch.tensor((pixels - preprocessing.mean) / preprocessing.std, dtype=torch.float32).permute(2, 0, 1)[None]


def test_pixels(backbone, preprocessing, tmp_path, offline):
    write_image_tower(tmp_path, backbone('tiny-vit'), preprocessing)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 60, 3), np.uint8))
    pixels = offline.AutoImageProcessor.from_pretrained(tmp_path)(image, return_tensors='pt')['pixel_values']
    assert (pixels - preprocessed(image, preprocessing)).abs().max() < 0.02  # a level of 255, over the std


@pytest.mark.parametrize('name', NAMES)
def test_the_whole_model(name, backbone, preprocessing, tmp_path, offline):
    ours = backbone(name)
    whole = whole_model(ours)
    write_whole_model(tmp_path, ours, whole, preprocessing)
    theirs = load(offline.AutoModel, tmp_path)
    texts = ['a photo of a star.', "Two  sketches, isn't it? 12 ÜBER"]
    tokens = whole.tokenizer(texts)
    with torch.no_grad():
        output = theirs(pixel_values=IMAGES, input_ids=tokens)
        for embeds, expected in (
            (output.image_embeds, ours(IMAGES)[0]),
            (output.text_embeds, whole.model.encode_text(tokens)),
        ):
            torch.testing.assert_close(embeds, torch.nn.functional.normalize(expected), rtol=1e-5, atol=1e-5)
        image, text = (
            torch.nn.functional.normalize(part) for part in (ours(IMAGES)[0], whole.model.encode_text(tokens))
        )
        expected = whole.weights['logit_scale'].exp() * image @ text.T + whole.weights.get('logit_bias', 0)
    torch.testing.assert_close(output.logits_per_image, expected, rtol=1e-4, atol=1e-4)
    words = offline.AutoTokenizer.from_pretrained(tmp_path)(texts, padding='max_length', max_length=16)['input_ids']
    for found, expected in zip(words, tokens.tolist()):
        length = expected.index(49407) + 1  # behind the end, CLIP pads with this token, open_clip with 0
        assert found[:length] == expected[:length]


@pytest.mark.parametrize('name', NAMES)
def test_the_classifier(name, backbone, preprocessing, tmp_path, offline):
    ours = backbone(name)
    head = CLIPDistillHead(5, in_channels=ours.embed_dims)
    classes = ['cat', 'dog', 'a "quoted" name', 'ünïcode', 'fox']
    usage = write_classifier(tmp_path, ours, head, preprocessing, classes)
    theirs = load(offline.AutoModelForImageClassification, tmp_path, trust_remote_code=True)
    with torch.no_grad():
        output = theirs(IMAGES, labels=torch.tensor([0, 3]))
        expected = head(ours(IMAGES))
    torch.testing.assert_close(output.logits, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output.loss, torch.nn.functional.cross_entropy(expected, torch.tensor([0, 3])))
    assert [theirs.config.id2label[index] for index in range(5)] == classes

    image = Image.new('RGB', (40, 40), 'red')
    namespace = dict(image=image)
    exec(usage.replace('FOLDER', str(tmp_path)).replace('classify(image)', 'scores = classify(image)'), namespace)
    with torch.no_grad():
        probabilities = head(ours(preprocessed(image, preprocessing))).softmax(1)[0]
    for score in namespace['scores']:
        assert score['score'] == pytest.approx(probabilities[classes.index(score['label'])].item(), abs=1e-4)


def test_names_of_classes(backbone, preprocessing, tmp_path):
    ours = backbone('tiny-vit')
    head = CLIPDistillHead(3, in_channels=ours.embed_dims)
    write_classifier(tmp_path, ours, head, preprocessing)
    assert json.loads((tmp_path / 'config.json').read_text())['id2label'] == {
        str(index): f'LABEL_{index}' for index in range(3)
    }
    with pytest.raises(ValueError, match='has 3 classes, but there are 2 names'):
        write_classifier(tmp_path, ours, head, preprocessing, ['cat', 'dog'])


@pytest.mark.parametrize(
    'name, what',
    [
        ('RN50', 'neither a CLIP ViT nor a SigLIP'),
        ('convnext_base', 'neither a CLIP ViT nor a SigLIP'),
        ('vit_medium_patch16_gap_256', 'no attention pool'),
        ('ViTamin-S', 'a gated MLP'),
        ('coca_ViT-B-32', 'weights that they lack: visual.attn_pool.query'),
    ],
)
def test_other_towers_are_refused(name, what):
    with pytest.raises(ValueError, match=f"of '{name}' .*{what}.*export it to open_clip, torch or onnx"):
        vision_config(OpenCLIPBackbone(name))


def test_rectangles_are_refused(backbone):
    with pytest.raises(ValueError, match='not square'):
        vision_config(backbone('tiny-vit', image_size=(16, 32)))


def test_other_text_towers_are_refused():
    model = open_clip.create_model('tiny-vit')
    assert text_config(model, siglip=False, name='tiny-vit')['eos_token_id'] == 49407
    model.text_pool_type = 'first'
    with pytest.raises(ValueError, match="text tower of 'tiny-vit' has no counterpart.*--part image"):
        text_config(model, siglip=False, name='tiny-vit')
