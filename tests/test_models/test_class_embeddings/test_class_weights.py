import multiprocessing
import os
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import open_clip
import pytest
import torch
from mmpretrain.models import ClsDataPreprocessor
from mmpretrain.models.classifiers import ImageClassifier
from mmpretrain.registry import DATASETS
from PIL import Image
from safetensors.torch import load_file, save_file

from mmcfmask.datasets import FolderDataset
from mmcfmask.models.class_embeddings import build
from mmcfmask.models.class_embeddings import text as text_module
from mmcfmask.models.class_embeddings.build import build_class_weights, load_class_weights
from mmcfmask.models.class_embeddings.cache import cached
from mmcfmask.models.class_embeddings.features import draw_per_class
from mmcfmask.models.class_embeddings.linear_probe import fit_linear_probe
from mmcfmask.models.class_embeddings.text import resolve_classnames, resolve_templates, text_embeddings
from mmcfmask.models.towers.conversion import mmpretrain_config, open_clip_to_mmpretrain

NAMES = ['star', 'blue circle', 'star']  # a duplicate, as ImageNet has them
TEMPLATES = ['a photo of a {}.', 'a sketch of the {}, {{}}.', '{}']
PIPELINE = [dict(type='LoadImageFromFile', imdecode_backend='pillow'), dict(type='PackInputs')]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('MMCFMASK_CACHE', str(tmp_path / 'cache'))
    return tmp_path / 'cache'


@pytest.fixture
def classifier(tiny_pretrained):
    return ImageClassifier(
        backbone=dict(type='OpenCLIPBackbone', model_name='tiny-vit', pretrained=tiny_pretrained),
        data_preprocessor=dict(type='ClsDataPreprocessor', mean=[120.0] * 3, std=[60.0, 65.0, 70.0], to_rgb=True),
    )


@pytest.fixture
def calls(monkeypatch):
    """Counts computations: what the cache saves."""
    counted = []
    for module, name in ((text_module, 'text_class_weights'), (build, 'prototype_class_weights')):
        compute = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda *args, _compute=compute, **kwargs: counted.append(1) or _compute(*args, **kwargs)
        )
    return counted


# text
# ----------------------------------------------------------------------------------------------------------------------


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
    with pytest.raises(FileNotFoundError, match="neither 'imagenet', 'dataset' nor a file"):
        resolve_classnames('imagenette')
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


def test_names_of_the_dataset(classifier):
    torch.testing.assert_close(
        build_class_weights(text(classnames='dataset'), classifier, classnames=NAMES),
        build_class_weights(text(), classifier),
    )
    with pytest.raises(ValueError, match='class names are not known here'):
        build_class_weights(text(classnames='dataset'), classifier)


def test_text_tower_of_another_model(classifier, tiny_pretrained):
    own = build_class_weights(text(), classifier)
    other = build_class_weights(text(model_name='tiny-vit-quickgelu', pretrained=tiny_pretrained), classifier)
    assert (own - other).abs().max() > 1e-3
    foreign = SimpleNamespace(backbone=torch.nn.Identity())
    with pytest.raises(ValueError, match='Identity has no text tower of its own'):
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


# file
# ----------------------------------------------------------------------------------------------------------------------


def test_file(tmp_path, classifier):
    weight = torch.randn(5, 16) * 100
    expected = weight / weight.norm(dim=1, keepdim=True)
    torch.save(weight, tmp_path / 'a.pt')
    torch.save({'weight': weight.double(), 'bias': torch.zeros(5)}, tmp_path / 'b.pth')
    save_file({'weight': weight}, tmp_path / 'c.safetensors')
    np.save(tmp_path / 'd.npy', weight.numpy())
    for name in ('a.pt', 'b.pth', 'c.safetensors', 'd.npy'):
        loaded = build_class_weights(dict(type='file', path=str(tmp_path / name)), classifier)
        assert loaded.dtype == torch.float32
        torch.testing.assert_close(loaded, expected)


def test_bad_files(tmp_path):
    with pytest.raises(FileNotFoundError, match='no such file'):
        load_class_weights(tmp_path / 'none.pt')
    torch.save({'w': torch.zeros(2, 2)}, tmp_path / 'keys.pt')
    with pytest.raises(ValueError, match="no key 'weight'; its keys: w"):
        load_class_weights(tmp_path / 'keys.pt')
    np.save(tmp_path / 'shape.npy', np.zeros((2, 3, 4)))
    with pytest.raises(ValueError, match=r'holds \(2, 3, 4\)'):
        load_class_weights(tmp_path / 'shape.npy')
    weight = torch.ones(4, 2)
    weight[1], weight[3, 0] = 0, float('nan')
    torch.save(weight, tmp_path / 'rows.pt')
    with pytest.raises(ValueError, match=r'shape \(4, 2\): rows \[1, 3\] are zero or not finite'):
        load_class_weights(tmp_path / 'rows.pt')


# prototype
# -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def images(tmp_path):
    rng = np.random.default_rng(0)
    for name, number in dict(cat=5, dog=7, emu=6).items():
        (tmp_path / 'images' / name).mkdir(parents=True)
        for index in range(number):
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(
                tmp_path / 'images' / name / f'{index}.png'
            )
    return tmp_path / 'images'


def prototype(images, **kwargs):
    return dict(
        dict(
            type='prototype',
            dataset=dict(type='FolderDataset', data_root=str(images), pipeline=PIPELINE),
            per_class=4,
            batch_size=5,
        ),
        **kwargs,
    )


def test_prototype_equals_the_definition(classifier, images):
    weights = build_class_weights(prototype(images), classifier)
    assert weights.shape == (3, 16) and weights.dtype == torch.float32
    dataset = FolderDataset(str(images), pipeline=PIPELINE)
    drawn = draw_per_class(dataset, 4, seed=0)
    classifier.eval()
    for label in range(3):
        rows = []
        for index in drawn:
            info = dataset.get_data_info(index)
            if info['gt_label'] != label:
                continue
            rgb = torch.from_numpy(np.array(Image.open(info['img_path']))).permute(2, 0, 1).float()
            pixels = (rgb - 120) / torch.tensor([60.0, 65.0, 70.0])[:, None, None]
            with torch.no_grad():
                feature = classifier.backbone(pixels[None])[0][0]
            rows.append(feature / feature.norm())
        assert len(rows) == 4
        mean = torch.stack(rows).mean(dim=0)
        torch.testing.assert_close(weights[label], mean / mean.norm(), rtol=1e-4, atol=1e-5)


def test_prototype_leaves_the_classifier_as_it_was(classifier, images):
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    build_class_weights(prototype(images), classifier)
    assert classifier.training and all(
        parameter.requires_grad and parameter.grad is None for parameter in classifier.parameters()
    )
    for name, value in classifier.state_dict().items():
        assert torch.equal(value, before[name])


def test_draw_per_class(images):
    dataset = FolderDataset(str(images))
    drawn = draw_per_class(dataset, 4, seed=1)
    assert len(set(drawn)) == 12 and np.bincount(dataset.get_gt_labels()[drawn]).tolist() == [4, 4, 4]
    assert draw_per_class(dataset, 4, seed=1) == drawn != draw_per_class(dataset, 4, seed=2)
    with pytest.raises(ValueError, match=r'per_class=6, but these 1 classes have fewer images: cat \(5\)'):
        draw_per_class(dataset, 6)


def test_prototype_cache_key(classifier, images, calls):
    first = build_class_weights(prototype(images), classifier)
    assert torch.equal(build_class_weights(prototype(images, batch_size=3), classifier), first) and len(calls) == 1

    for number, change in enumerate([dict(per_class=3), dict(seed=1)], start=2):
        build_class_weights(prototype(images, **change), classifier)
        assert len(calls) == number, change
    flip = [PIPELINE[0], dict(type='RandomFlip', prob=1.0), PIPELINE[1]]
    dataset = dict(type='FolderDataset', data_root=str(images), pipeline=flip)
    assert (
        not torch.equal(build_class_weights(prototype(images, dataset=dataset), classifier), first) and len(calls) == 4
    )
    classifier.data_preprocessor = ClsDataPreprocessor(mean=[0] * 3, std=[255.0] * 3, to_rgb=True)
    build_class_weights(prototype(images), classifier)
    classifier.data_preprocessor = ClsDataPreprocessor(mean=[0] * 3, std=[255.0] * 3, to_rgb=False)
    build_class_weights(prototype(images), classifier)
    assert len(calls) == 6
    with torch.no_grad():
        classifier.backbone.visual.proj[0, 0] += 1
    build_class_weights(prototype(images), classifier)
    assert len(calls) == 7
    for path in (images / 'cat').iterdir():
        Image.new('RGB', (32, 32), 'red').save(path)
    build_class_weights(prototype(images), classifier)
    assert len(calls) == 8


def test_prototype_of_rendered_images(classifier):
    """A dataset without files: the built-in benchmark, here for a tower of its size."""
    shapes = ImageClassifier(
        backbone=dict(type='OpenCLIPBackbone', model_name='ShapesCLIP-ViT-8-64'),
        data_preprocessor=dict(type='ClsDataPreprocessor', mean=[120.0] * 3, std=[60.0] * 3),
    )
    cfg = dict(
        type='prototype',
        dataset=dict(type='ShapesDataset', split='train', size=30, pipeline=[dict(type='PackInputs')]),
        per_class=2,
    )
    weights = build_class_weights(cfg, shapes)
    assert weights.shape == (10, 128)
    torch.testing.assert_close(weights.norm(dim=1), torch.ones(10))


def test_prototype_with_a_neck(tiny_pretrained, images):
    """mmpretrain's own tower: features are those after the projection."""
    preprocessor = dict(type='ClsDataPreprocessor', mean=[120.0] * 3, std=[60.0] * 3)
    theirs = ImageClassifier(**mmpretrain_config('tiny-vit'), data_preprocessor=preprocessor)
    theirs.load_state_dict(open_clip_to_mmpretrain(torch.load(tiny_pretrained, weights_only=True)))
    ours = ImageClassifier(
        backbone=dict(type='OpenCLIPBackbone', model_name='tiny-vit', pretrained=tiny_pretrained),
        data_preprocessor=preprocessor,
    )
    torch.testing.assert_close(
        build_class_weights(prototype(images), theirs),
        build_class_weights(prototype(images), ours),
        rtol=1e-4,
        atol=1e-5,
    )


# cache
# ---------------------------------------------------------------------------------------------------------------------


def test_cache_file(cache):
    expected = torch.randn(3, 4)
    assert torch.equal(cached(dict(type='text', a=1), lambda: expected), expected)
    (path,) = cache.glob('*.safetensors')
    assert torch.equal(load_file(path)['weight'], expected)
    assert path.stat().st_mode & 0o044 == 0o044 & ~os.umask(os.umask(0))  # other users may read it, as the umask says
    assert torch.equal(cached(dict(type='text', a=1), lambda: torch.zeros(3, 4)), expected)
    assert torch.equal(cached(dict(type='text', a=2), lambda: torch.ones(3, 4)), torch.ones(3, 4))


@pytest.mark.parametrize('damage', [lambda data: b'', lambda data: data[:-5], lambda data: b'x' * len(data)])
def test_damaged_cache_file_is_made_again(cache, damage):
    cached(dict(type='text'), lambda: torch.zeros(3, 4))
    (path,) = cache.glob('*.safetensors')
    path.write_bytes(damage(path.read_bytes()))
    for _ in range(2):
        assert torch.equal(cached(dict(type='text'), lambda: torch.ones(3, 4)), torch.ones(3, 4))


def test_failed_computation_leaves_nothing(cache):
    def fail():
        raise RuntimeError('out of memory')

    with pytest.raises(RuntimeError, match='out of memory'):
        cached(dict(type='text'), fail)
    assert not list(cache.glob('*.safetensors'))
    assert torch.equal(cached(dict(type='text'), lambda: torch.ones(1, 1)), torch.ones(1, 1))  # and the lock is free


def compute_slowly(folder, barrier, number):
    def compute():
        with open(f'{folder}/computations', 'a') as file:
            file.write('x')
        time.sleep(0.3)
        return torch.full((2, 2), float(number))

    barrier.wait()
    torch.save(cached(dict(type='text'), compute, folder), f'{folder}/result{number}')


def test_processes_compute_once(tmp_path):
    context = multiprocessing.get_context('fork')
    barrier = context.Barrier(3)
    workers = [context.Process(target=compute_slowly, args=(str(tmp_path), barrier, number)) for number in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert (tmp_path / 'computations').read_text() == 'x'
    results = [torch.load(tmp_path / f'result{number}', weights_only=True) for number in range(3)]
    assert all(torch.equal(result, results[0]) for result in results)


def test_cache_folder_that_cannot_be_written(tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(
        OSError, match='cannot be written.*set cache_dir of class_weights or the environment variable MMCFMASK_CACHE'
    ):
        cached(dict(type='text'), lambda: torch.zeros(1, 1), str(tmp_path / 'file'))


def test_bad_config(classifier):
    with pytest.raises(ValueError, match="type='txt' is unknown: choose from 'text', 'file', 'prototype'"):
        build_class_weights(dict(type='txt'), classifier)
    with pytest.raises(ValueError, match="type='text'.*'tempaltes'"):
        build_class_weights(text(tempaltes='openai'), classifier)
    with pytest.raises(ValueError, match="type='file'.*'path'"):
        build_class_weights(dict(type='file'), classifier)


# contexts and linear probes
# ------------------------------------------------------------------------------------------------


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


def shapes_probe(**kwargs):
    pipeline = [dict(type='Resize', scale=32), dict(type='PackInputs')]
    return dict(
        dict(
            type='linear_probe',
            dataset=dict(type='ShapesDataset', split='train', size=40, pipeline=pipeline),
            held_out=dict(type='ShapesDataset', split='val', size=20, pipeline=pipeline),
            strengths=[1e-4, 1e-3, 1e-2],
        ),
        **kwargs,
    )


def test_linear_probe_is_that_of_the_features(classifier, monkeypatch):
    start = build_class_weights(shapes_probe(), classifier)
    assert start.shape == (10, 17)
    features, labels = {}, {}
    for part in ('dataset', 'held_out'):
        items = list(DATASETS.build(shapes_probe()[part]))
        batch = dict(inputs=[item['inputs'] for item in items], data_samples=[item['data_samples'] for item in items])
        with torch.no_grad():
            z = classifier.backbone(classifier.data_preprocessor(batch)['inputs'])[0]
        features[part] = z / z.norm(dim=1, keepdim=True)
        labels[part] = torch.tensor([int(item['data_samples'].gt_label) for item in items])
    probe = fit_linear_probe(
        features['dataset'], labels['dataset'], features['held_out'], labels['held_out'], 10, [1e-4, 1e-3, 1e-2]
    )
    logits = [
        features['held_out'] @ weight.T + bias
        for weight, bias in [(start[:, :-1], start[:, -1]), (probe.weight, probe.bias)]
    ]
    torch.testing.assert_close(*logits, rtol=1e-2, atol=1e-2)

    # Another choice of strengths needs no features again; the same choice needs nothing.
    monkeypatch.setattr('mmcfmask.models.class_embeddings.features.image_features', None)
    build_class_weights(shapes_probe(strengths=[1e-5]), classifier)
    monkeypatch.setattr('mmcfmask.models.class_embeddings.build.fit_linear_probe', None)
    assert torch.equal(build_class_weights(shapes_probe(), classifier), start)


def test_held_out_part_of_the_dataset_itself(classifier, images):
    pipeline = [
        dict(type='LoadImageFromFile', imdecode_backend='pillow'),
        dict(type='Resize', scale=(32, 32)),
        dict(type='PackInputs'),
    ]
    dataset = dict(
        type='FolderDataset', data_root=str(images), holdout=dict(fraction=0.5, seed=0, part='train'), pipeline=pipeline
    )
    cfg = dict(type='linear_probe', dataset=dataset, strengths=[1e-3])
    start = build_class_weights(cfg, classifier)
    held_out = dict(dataset, holdout=dict(dataset['holdout'], part='held_out'))
    torch.testing.assert_close(build_class_weights(dict(cfg, held_out=held_out), classifier), start)
    with pytest.raises(ValueError, match='chooses its strength on held-out images: give held_out, a dataset'):
        build_class_weights(dict(cfg, dataset=held_out), classifier)


def test_head_starts_as_the_linear_probe(tiny_pretrained):
    model = class_weights_model(tiny_pretrained)
    start = build_class_weights(shapes_probe(), model)
    features = torch.randn(4, 16)
    expected = torch.nn.functional.normalize(features) @ start[:, :-1].T + start[:, -1]
    torch.testing.assert_close(model.head((features,)), expected)


def class_weights_model(pretrained):
    from mmpretrain.registry import MODELS

    return MODELS.build(
        dict(
            type='CounterfactualClassifier',
            backbone=dict(type='OpenCLIPBackbone', model_name='tiny-vit', pretrained=pretrained),
            head=dict(type='CLIPDistillHead', num_classes=10, class_weights=shapes_probe()),
        )
    )
