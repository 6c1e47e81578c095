"""Class means of image features."""

import numpy as np
import pytest
import torch
from mmpretrain.models import ClsDataPreprocessor
from mmpretrain.models.classifiers import ImageClassifier
from PIL import Image

from mmcfmask.datasets import FolderDataset
from mmcfmask.models.class_embeddings.build import build_class_weights
from mmcfmask.models.class_embeddings.features import draw_per_class
from mmcfmask.models.towers.conversion import mmpretrain_config, open_clip_to_mmpretrain

PIPELINE = [dict(type='LoadImageFromFile', imdecode_backend='pillow'), dict(type='PackInputs')]


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
