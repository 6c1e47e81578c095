"""Graphs compute what the model computes, for any number of images."""

import sys

import numpy as np
import pytest
import tiny_siglip
import torch
from mmpretrain.models.classifiers import ImageClassifier

from mmcfmask.models.export.graphs import check_onnx, export_graph, write_graph, write_onnx
from mmcfmask.models.export.mmpretrain_folder import write_mmpretrain
from mmcfmask.models.towers.conversion import mmpretrain_config

IMAGES = torch.randn(5, 3, 32, 32)
NAMES = ['tiny-vit', 'tiny-vit-quickgelu', tiny_siglip.NAME]


def classifier(ours):
    head = dict(type='CLIPDistillHead', num_classes=4, in_channels=ours.embed_dims)
    return ImageClassifier(ours, head=head).eval()


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('part', ['logits', 'features'])
def test_torch_export(name, part, backbone, tmp_path):
    model = classifier(backbone(name))
    usage = write_graph(tmp_path, export_graph(model, (32, 32), part == 'logits'), part)
    results = dict(images=IMAGES)
    exec(usage.replace('FOLDER', str(tmp_path)), results)
    with torch.no_grad():
        expected = model(IMAGES) if part == 'logits' else model.backbone(IMAGES)[0]
    torch.testing.assert_close(results[part], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('part', ['logits', 'features'])
def test_onnx(name, part, backbone, tmp_path):
    for package in ('onnx', 'onnxscript', 'onnxruntime'):
        pytest.importorskip(package)
    model = classifier(backbone(name))
    usage = write_onnx(tmp_path, export_graph(model, (32, 32), part == 'logits'), part)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith('model')] == ['model.onnx']
    results = dict(images=IMAGES.numpy())
    exec(usage.replace('FOLDER', str(tmp_path)), results)
    with torch.no_grad():
        expected = model(IMAGES) if part == 'logits' else model.backbone(IMAGES)[0]
    np.testing.assert_allclose(results[part], expected.numpy(), rtol=1e-5, atol=1e-5)


def test_onnx_with_the_weights_apart(backbone, tmp_path, monkeypatch):
    pytest.importorskip('onnxscript')
    onnxruntime = pytest.importorskip('onnxruntime')
    monkeypatch.setattr('mmcfmask.models.export.graphs.LARGEST_FILE', 1000)
    model = classifier(backbone('tiny-vit'))
    write_onnx(tmp_path, export_graph(model, (32, 32), True), 'logits')
    assert (tmp_path / 'model.onnx.data').stat().st_size > 1000
    session = onnxruntime.InferenceSession(tmp_path / 'model.onnx')
    assert session.get_inputs()[0].shape == ['batch', 3, 32, 32] and session.get_outputs()[0].shape == ['batch', 4]
    (logits,) = session.run(None, dict(images=IMAGES.numpy()))
    with torch.no_grad():
        np.testing.assert_allclose(logits, model(IMAGES).numpy(), rtol=1e-5, atol=1e-5)


def test_a_backbone_of_mmpretrain(tmp_path):
    config = mmpretrain_config('tiny-vit')
    model = ImageClassifier(**config, head=dict(type='CLIPDistillHead', num_classes=4, in_channels=16)).eval()
    graph = export_graph(model, (32, 32), True).module()
    with torch.no_grad():
        torch.testing.assert_close(graph(IMAGES), model(IMAGES), rtol=1e-5, atol=1e-5)


def test_a_model_that_cannot_be_traced(backbone):
    model = classifier(backbone('tiny-vit'))
    model.backbone.forward = lambda images: (images.flatten(1)[:, : int(images.sum())],)
    with pytest.raises(ValueError, match='torch.export cannot trace this OpenCLIPBackbone'):
        export_graph(model, (32, 32), False)


def test_without_onnx(monkeypatch):
    monkeypatch.setitem(sys.modules, 'onnxscript', None)
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None if name == 'onnxscript' else object())
    with pytest.raises(ImportError, match=r"needs onnxscript: pip install 'mmcfmask\[export\]'"):
        check_onnx()


@pytest.mark.parametrize('options', [{}, dict(image_size=(16, 32))])
def test_mmpretrain(options, backbone, tmp_path):
    ours = backbone('tiny-vit-quickgelu', **options)
    usage = write_mmpretrain(tmp_path, ours)
    results = dict(images=torch.randn(2, 3, *ours.image_size))
    with torch.no_grad():
        exec(usage.replace('FOLDER', str(tmp_path)), results)
        torch.testing.assert_close(results['features'], ours(results['images'])[0], rtol=1e-5, atol=1e-5)
