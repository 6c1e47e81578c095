"""What a head is initialised with, by config."""

from pathlib import Path

import numpy as np
import pytest
import torch
from mmpretrain.registry import DATASETS
from safetensors.torch import save_file

import mmcfmask
from mmcfmask.datasets.imagenet_labels import IMAGENET_CLASSES, IMAGENET_WNIDS, read_class_rows
from mmcfmask.errors import ConfigError
from mmcfmask.models.class_embeddings.build import build_class_weights, load_class_weights
from mmcfmask.models.class_embeddings.linear_probe import fit_linear_probe


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
    with pytest.raises(FileNotFoundError, match='the file does not exist'):
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


def test_bad_config(classifier):
    with pytest.raises(ValueError, match="type='txt' is unknown: choose from 'text', 'file', 'prototype'"):
        build_class_weights(dict(type='txt'), classifier)
    with pytest.raises(ValueError, match="type='text'.*'tempaltes'"):
        build_class_weights(dict(type='text', classnames=['star'], tempaltes='openai'), classifier)
    with pytest.raises(ValueError, match="type='file'.*'path'"):
        build_class_weights(dict(type='file'), classifier)


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
    with pytest.raises(ValueError, match='chooses its strength on held-out images: set held_out to a dataset'):
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


def test_rows_of_a_file(tmp_path, classifier):
    """Each class is the normalised mean of the normalised rows, by plain loops."""
    table = np.random.default_rng(0).normal(size=(6, 16)) * [[1], [20], [300], [1], [5], [9]]
    np.save(tmp_path / 'table.npy', table)
    rows = [[4, 0], [2], [1, 2, 3]]
    loaded = build_class_weights(dict(type='file', path=str(tmp_path / 'table.npy'), rows=rows), classifier)
    for weight, members in zip(loaded, rows):
        units = [[value / sum(v * v for v in table[i]) ** 0.5 for value in table[i]] for i in members]
        total = [sum(column) for column in zip(*units)]
        expected = [value / sum(v * v for v in total) ** 0.5 for value in total]
        torch.testing.assert_close(weight, torch.tensor(expected, dtype=torch.float32))


def test_rows_of_text_embeddings(classifier, tiny_pretrained, tmp_path):
    text = dict(
        type='text', model_name='tiny-vit', pretrained=tiny_pretrained, templates=['a {}.'], cache_dir=str(tmp_path)
    )
    alone = build_class_weights(dict(text, classnames=['duck', 'jay', 'gull']), classifier)
    both = build_class_weights(dict(text, classnames=['duck', 'jay', 'gull'], rows=[[1], [0, 2]]), classifier)
    torch.testing.assert_close(both, torch.nn.functional.normalize(torch.stack([alone[1], alone[0] + alone[2]])))


def test_waterbirds_of_imagenet():
    """Every bird of ImageNet once, by its place in the list of classes and by its name."""
    land, water = read_class_rows('waterbirds')
    assert sorted(land + water) == [*range(7, 25), *range(80, 101), *range(127, 147)]
    names = [[IMAGENET_CLASSES[index] for index in rows] for rows in (land, water)]
    assert {'rooster', 'American robin', 'macaw', 'hummingbird', 'bustard', 'bald eagle'} <= set(names[0])
    assert {'duck', 'goose', 'black swan', 'pelican', 'albatross', 'crane bird', 'dunlin', 'flamingo'} <= set(names[1])
    text = (Path(mmcfmask.__file__).parent / 'datasets/class_maps/waterbirds.txt').read_text()
    for line in text.splitlines():
        if not line.startswith('#'):
            wnid, index, label, name = line.split(maxsplit=3)
            assert IMAGENET_WNIDS[int(index)] == wnid and IMAGENET_CLASSES[int(index)] == name
            assert int(index) in (land, water)[int(label)]


@pytest.mark.parametrize(
    'rows, message',
    [
        ('waterbird', "rows='waterbird' is unknown: give 'waterbirds', or .* Did you mean 'waterbirds'"),
        ([], r'rows=\[\] must be a list of row indices for every class'),
        ([[0], []], r'class 1 is \[\]'),
        ([[0], [-1]], r'class 1 is \[-1\]'),
        ([[0], [True]], r'class 1 is \[True\]'),
        ([[0], ['a']], r"class 1 is \['a'\]"),
        ([[0], [6]], 'names row 6, but there are 6'),
        ('waterbirds', 'names row 146, but there are 6'),
        ([[0], [1, 2]], 'the rows of class 1 cancel out'),
        (5, 'rows=5 must be a list of row indices'),
        ([0, 1], 'class 0 is 0'),
    ],
)
def test_wrong_rows(tmp_path, classifier, rows, message):
    table = np.ones((6, 16))
    table[2] = -1
    np.save(tmp_path / 'table.npy', table)
    with pytest.raises(ConfigError, match=message):
        build_class_weights(dict(type='file', path=str(tmp_path / 'table.npy'), rows=rows), classifier)
