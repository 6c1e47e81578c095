"""Class and context embeddings from prompts."""

from pathlib import Path
from types import SimpleNamespace

import open_clip
import pytest
import torch
from mmpretrain.models.classifiers import ImageClassifier
from safetensors.torch import save_file

from mmcfmask.models.class_embeddings.build import build_class_weights
from mmcfmask.models.class_embeddings.text import resolve_classnames, resolve_templates, text_embeddings

NAMES = ['star', 'blue circle', 'star']  # a duplicate, as ImageNet has them
TEMPLATES = ['a photo of a {}.', 'a sketch of the {}, {{}}.', '{}']


def text(**kwargs):
    return dict(dict(type='text', classnames=NAMES, templates=TEMPLATES), **kwargs)


def test_text_equals_the_definition(classifier, tiny_pretrained):
    weights = build_class_weights(text(), classifier)
    model = open_clip.create_model('tiny-vit', pretrained=tiny_pretrained).eval()
    tokenizer = open_clip.get_tokenizer('tiny-vit')
    assert weights.shape == (3, 16) and weights.dtype == torch.float32 and not weights.requires_grad
    for name, row in zip(NAMES, weights):
        prompts = [f'a photo of a {name}.', f'a sketch of the {name}, {{}}.', name]
        with torch.no_grad():
            embeddings = [model.encode_text(tokenizer([prompt]))[0] for prompt in prompts]
        mean = sum(embedding / embedding.norm() for embedding in embeddings) / len(prompts)
        torch.testing.assert_close(row, mean / mean.norm(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(weights[0], weights[2])


def test_text_of_more_classes_than_a_batch(classifier, monkeypatch, tmp_path):
    names = text(classnames=[f'thing {index}' for index in range(7)])
    one_batch = build_class_weights(names, classifier)
    monkeypatch.setattr('mmcfmask.models.class_embeddings.text.PROMPTS_PER_BATCH', 3 * len(TEMPLATES))
    batches = build_class_weights(dict(names, cache_dir=str(tmp_path)), classifier)
    torch.testing.assert_close(batches, one_batch, rtol=1e-4, atol=1e-5)


def test_class_names(tmp_path):
    (tmp_path / 'names.txt').write_text('great white shark\n\n  café  \n', encoding='utf-8')
    assert resolve_classnames(str(tmp_path / 'names.txt')) == ['great white shark', 'café']
    imagenet = resolve_classnames('imagenet')
    assert len(imagenet) == 1000 and imagenet.count('missile') == 2 and imagenet.count('sunglasses') == 2
    with pytest.raises(FileNotFoundError, match="neither 'imagenet' nor an existing file"):
        resolve_classnames('imagenette')
    with pytest.raises(FileNotFoundError, match="'dataset' is no longer supported: list the names in label order"):
        resolve_classnames('dataset')
    with pytest.raises(ValueError, match='empty'):
        resolve_classnames([])


def test_templates():
    openai = resolve_templates('openai')
    assert len(openai) == 80
    assert [template.format('dog') for template in openai] == [
        template('dog') for template in open_clip.OPENAI_IMAGENET_TEMPLATES
    ]
    assert all('{}' in template for template in resolve_templates('shapes'))
    with pytest.raises(ValueError, match="templates='openia' is unknown"):
        resolve_templates('openia')
    for wrong in (['a photo'], [3], [], ['{} {}{x}'], ['{} {}'], ['{} {0}'], ['{:9}'], ['{!r} {}'], ['{'], ['{} }']):
        with pytest.raises(ValueError, match="strings with a '{}'"):
            resolve_templates(wrong)


def test_text_tower_of_another_model(classifier, tiny_pretrained):
    own = build_class_weights(text(), classifier)
    other = build_class_weights(text(model_name='tiny-vit-quickgelu', pretrained=tiny_pretrained), classifier)
    assert (own - other).abs().max() > 1e-3
    foreign = SimpleNamespace(backbone=torch.nn.Identity())
    with pytest.raises(ValueError, match='Identity has no text tower'):
        build_class_weights(text(), foreign)
    torch.testing.assert_close(
        build_class_weights(text(model_name='tiny-vit', pretrained=tiny_pretrained), foreign), own
    )


def test_textless_file(tmp_path, classifier):
    path = str(tmp_path / 'visual.safetensors')
    save_file({f'visual.{key}': value for key, value in classifier.backbone.visual.state_dict().items()}, path)
    with pytest.raises(ValueError, match="has no text tower; use class_weights=dict\\(type='prototype'"):
        build_class_weights(text(pretrained=path), classifier)


def test_text_cache_key(tmp_path, classifier, tiny_pretrained, calls, cache):
    first = build_class_weights(text(), classifier)
    assert torch.equal(build_class_weights(text(), classifier), first) and len(calls) == 1
    copy = tmp_path / 'copy.pt'  # the content counts, not the path
    copy.write_bytes(Path(tiny_pretrained).read_bytes())
    build_class_weights(text(pretrained=str(copy)), classifier)
    assert len(calls) == 1
    state = torch.load(tiny_pretrained, weights_only=True)
    state['text_projection'] *= 2
    torch.save(state, copy)
    changes = [
        dict(pretrained=str(copy)),
        dict(classnames=NAMES[:2]),
        dict(templates=TEMPLATES[:2]),
        dict(cache_dir=str(tmp_path)),
        dict(model_name='tiny-vit-quickgelu', pretrained=tiny_pretrained),
    ]
    for number, change in enumerate(changes, start=2):
        build_class_weights(text(**change), classifier)
        assert len(calls) == number, change


def test_random_text_tower_is_not_cached(calls, cache):
    classifier = ImageClassifier(backbone=dict(type='OpenCLIPBackbone', model_name='tiny-vit'))
    first, second = (build_class_weights(text(), classifier) for _ in range(2))
    assert len(calls) == 2 and not torch.equal(first, second) and not cache.exists()


def test_prompts_equal_a_loop(classifier, tiny_pretrained):
    model = open_clip.create_model('tiny-vit', pretrained=tiny_pretrained).eval()
    tokenizer = open_clip.get_tokenizer('tiny-vit')
    prompts = text_embeddings(classifier, 'prompt', NAMES, TEMPLATES)
    assert len(prompts) == len(NAMES) * len(TEMPLATES)
    for c, name in enumerate(NAMES):
        for k, template in enumerate(TEMPLATES):
            with torch.no_grad():
                embedding = model.encode_text(tokenizer([template.format(name)]))[0]
            torch.testing.assert_close(prompts[c * len(TEMPLATES) + k], embedding / embedding.norm())


def test_contexts_equal_a_loop(classifier, tiny_pretrained, monkeypatch):
    model, tokenizer = (
        open_clip.create_model('tiny-vit', pretrained=tiny_pretrained).eval(),
        open_clip.get_tokenizer('tiny-vit'),
    )
    expected = []
    for template in TEMPLATES:
        total = 0
        for name in NAMES:
            with torch.no_grad():
                embedding = model.encode_text(tokenizer([template.format(name)]))[0]
            total = total + embedding / embedding.norm()
        expected.append(total / total.norm())
    contexts = text_embeddings(classifier, 'context', NAMES, TEMPLATES)
    torch.testing.assert_close(contexts, torch.stack(expected))
    monkeypatch.setattr(
        'mmcfmask.models.class_embeddings.text.load_text_model', None
    )  # cached, and not under the key of the classes
    assert torch.equal(text_embeddings(classifier, 'context', NAMES, TEMPLATES), contexts)
    monkeypatch.setattr('mmcfmask.models.class_embeddings.text.PROMPTS_PER_BATCH', 1)
    with pytest.raises(TypeError):
        text_embeddings(classifier, 'text', NAMES, TEMPLATES)
