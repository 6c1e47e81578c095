"""A tiny classifier, a folder of images, and a cache of its own for every test."""

import numpy as np
import pytest
from mmpretrain.models.classifiers import ImageClassifier
from PIL import Image

from mmcfmask.models.class_embeddings import build
from mmcfmask.models.class_embeddings import text as text_module


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
