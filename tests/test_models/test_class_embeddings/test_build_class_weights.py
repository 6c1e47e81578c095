"""What a head is initialised with, by config."""

import numpy as np
import pytest
import torch
from mmpretrain.registry import DATASETS
from safetensors.torch import save_file

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
