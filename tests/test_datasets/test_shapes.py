import hashlib
from collections import Counter

import numpy as np
import pytest
import torch
from mmpretrain.registry import DATASETS
from trees import draw_slowly

from mmcfmask.datasets import shapes
from mmcfmask.datasets.shapes import (
    CLASS_BACKGROUNDS,
    GROUP_NAMES,
    OUTLINES,
    SHAPES_CLASSES,
    SHAPES_TEMPLATES,
    SPLITS,
    ShapesDataset,
    geometry,
)
from mmcfmask.errors import ConfigError
from mmcfmask.models.towers.loading import ASSETS


def scenes(split, count=400, seed=0):
    return [shapes.sample_scene(split, i % 10, shapes.image_rng(split, seed, i)) for i in range(count)]


@pytest.mark.parametrize('split', SPLITS)
def test_image_is_determined_by_split_seed_and_index(split):
    image, mask, scene = shapes.render(split, 3, 17)
    again, mask_again, scene_again = shapes.render(split, 3, 17)
    assert scene == scene_again and scene.label == 7
    np.testing.assert_array_equal(image, again)
    np.testing.assert_array_equal(mask, mask_again)
    assert image.shape == (64, 64, 3) and image.dtype == np.uint8
    assert mask.shape == (64, 64) and mask.dtype == bool
    for other in (shapes.render(split, 4, 17), shapes.render(split, 3, 27)):
        assert (other[0] != image).mean() > 0.2
    assert image.std() > 5  # not blank


def test_pretraining_images_are_those_that_the_shipped_weights_saw():
    digest = hashlib.sha256()
    for index in range(40):
        image, mask, scene = shapes.render('pretrain', 0, index)
        caption = shapes.caption(scene, shapes.image_rng('pretrain', 0, index, stream=1))
        # Without the last bits of a pixel, which may depend on the version of a library.
        digest.update(repr((scene, caption, mask.sum().item() // 8)).encode())
    assert digest.hexdigest() == 'a6026651d2b44c402a742420b07a05e1caf70dbb879a8bfe9c1902b50480be11'


def test_splits_are_independent_draws():
    images = [shapes.render(split, 0, 0)[0] for split in SPLITS]
    for i, a in enumerate(images):
        for b in images[i + 1 :]:
            assert (a != b).mean() > 0.2


@pytest.mark.parametrize('split', SPLITS)
@pytest.mark.parametrize('label', range(10))
def test_every_object_is_visible(split, label):
    for index in range(label, 200, 10):
        image, mask, scene = shapes.render(split, 0, index)
        assert scene.label == label
        # The smallest object of the world has a radius of 8 pixels; even thin and cut ones leave these pixels.
        assert 15 < mask.sum() < 0.6 * mask.size
        rows, cols = np.nonzero(mask)
        reach = 1.35 * scene.radius + 3  # the stretch, the longest shape, the wobble
        assert np.hypot(cols + 0.5 - scene.center[0], rows + 0.5 - scene.center[1]).max() < reach


@pytest.mark.parametrize('name', sorted(geometry.POLYGONS))
def test_polygon_distance_is_that_of_an_independent_library(name):
    from matplotlib.path import Path as Outline

    vertices = geometry.POLYGONS[name]
    rng = np.random.default_rng(0)
    points = rng.uniform(-1.5, 1.5, (500, 2)).astype(np.float32)
    distance = shapes.signed_distance(name, points[:, 0], points[:, 1])
    closed = np.concatenate([vertices, vertices[:1]])
    outline = np.concatenate([np.linspace(a, b, 2000) for a, b in zip(closed[:-1], closed[1:])])
    nearest = np.array([np.hypot(*(outline - p).T).min() for p in points])
    np.testing.assert_allclose(np.abs(distance), nearest, atol=2e-3)
    clear = nearest > 1e-3
    np.testing.assert_array_equal((distance < 0)[clear], Outline(vertices).contains_points(points)[clear])


@pytest.mark.parametrize('name', [outline for outlines in OUTLINES.values() for outline in outlines])
def test_signed_distance_never_overstates_and_spans_the_unit_circle(name):
    y, x = np.mgrid[-1.6:1.6:200j, -1.6:1.6:200j].astype(np.float32)
    distance = shapes.signed_distance(name, x, y)
    for axis in (0, 1):
        assert np.abs(np.diff(distance, axis=axis)).max() < 1.02 * 3.2 / 199  # grows by at most one per unit
    radii = np.hypot(x, y)[distance < 0]
    assert 0.85 < radii.max() < 1.35
    assert 0.08 < (distance < 0).mean() * 3.2**2 / np.pi < 1


def test_edges_are_anti_aliased():
    """Where a disc of known radius is drawn flat, the mean of its coverage is its area to a fraction of a pixel row."""
    for radius in (10.25, 10.5, 10.75):
        y, x = np.mgrid[:64, :64] + 0.5
        coverage = geometry.coverage(np.hypot(x - 31.7, y - 32.4) - radius)
        assert abs(coverage.sum() - np.pi * radius**2) < 1
        assert ((coverage > 0) & (coverage < 1)).sum() > 30


def test_new_outlines_differ_from_those_of_pretraining():
    y, x = np.mgrid[-1.4:1.4:120j, -1.4:1.4:120j].astype(np.float32)
    for old, *new in OUTLINES.values():
        for outline in new:
            differ = (shapes.signed_distance(old, x, y) < 0) ^ (shapes.signed_distance(outline, x, y) < 0)
            assert differ.mean() > 0.04


def test_outlines_of_the_splits():
    for split in SPLITS:
        drawn = scenes(split, 2000)
        assert all(s.outline in OUTLINES[SHAPES_CLASSES[s.label]] for s in drawn)
        new = np.mean([s.outline != SHAPES_CLASSES[s.label] for s in drawn])
        assert new == 0 if split == 'pretrain' else abs(new - shapes.NEW_OUTLINE_RATE) < 0.04


def test_neither_texture_nor_colour_of_a_background_tells_classes_apart():
    combinations = [background for own in CLASS_BACKGROUNDS for background in own]
    assert len(set(combinations)) == len(combinations) == 9 + 9 + 4 + 4  # no two classes share one
    for part, count in ((0, 10), (1, 10)):
        shared = {}
        for label, own in enumerate(CLASS_BACKGROUNDS):
            values = [background[part] for background in own]
            assert len(set(values)) == len(values)  # each once
            shared.setdefault(frozenset(values), []).append(label)
        assert list(shared.values()) == [[0, 1, 2], [3, 4, 5], [6, 7], [8, 9]]
        assert sum(map(len, shared)) == count


def tied(scene):
    return (scene.texture, scene.background) in CLASS_BACKGROUNDS[scene.label]


@pytest.mark.parametrize('split', ['train', 'val', 'test'])
def test_id_background_is_tied_to_class(split):
    drawn = scenes(split, 2000)
    assert abs(np.mean([tied(s) for s in drawn]) - shapes.SPURIOUS_RATE) < 0.015
    assert {s.style for s in drawn} == {'photo'}
    combinations = {background for own in CLASS_BACKGROUNDS for background in own}
    assert {(s.texture, s.background) for s in drawn} == combinations  # the others are on another class's
    for label, own in enumerate(CLASS_BACKGROUNDS):  # a class has all of its own equally often
        counts = Counter((s.texture, s.background) for s in drawn if s.label == label and tied(s))
        assert set(counts) == set(own) and max(counts.values()) < 1.7 * min(counts.values())


@pytest.mark.parametrize('split', ['pretrain', 'v2', 'r', 'sketch'])
def test_background_is_independent_of_class_elsewhere(split):
    drawn = scenes(split, 2000)
    assert np.mean([tied(s) for s in drawn]) < 0.04
    for attribute, count in (('texture', 10), ('background', 12), ('color', 12)):
        counts = {}
        for s in drawn:
            key = (s.label, getattr(s, attribute))
            counts[key] = counts.get(key, 0) + 1
        assert len(counts) == 10 * count  # all combinations occur
        assert max(counts.values()) < 3 * 200 / count


def test_adversarial_background_is_the_usual_one_of_another_class():
    combinations = {background for own in CLASS_BACKGROUNDS for background in own}
    for s in scenes('a', 1000):
        assert (s.texture, s.background) in combinations and not tied(s)
        assert s.clutter >= 1


def test_groups_are_balanced_and_differ_in_the_background_alone():
    dataset = ShapesDataset('groups', size=40)
    assert dataset.metainfo['group_names'] == GROUP_NAMES and len(GROUP_NAMES) == 20
    groups = [dataset.get_data_info(i)['group'] for i in range(40)]
    assert np.bincount(groups).tolist() == [2] * 20
    for index, group in enumerate(groups):
        image, mask, scene = shapes.render('groups', 0, index)
        assert group == 2 * scene.label + (not tied(scene)) == 2 * (index % 10) + (index // 10) % 2
        assert scene.style == 'photo'
    assert GROUP_NAMES[:3] == ('circle, own background', 'circle, another background', 'square, own background')


def test_group_sizes_are_those_of_the_training_images():
    sizes = ShapesDataset('groups', size=20, train_size=60, seed=3).metainfo['group_sizes']
    train = ShapesDataset('train', size=60, seed=3)
    assert sizes == tuple(np.bincount([train.get_data_info(i)['group'] for i in range(60)], minlength=20))
    sizes = ShapesDataset('groups', size=20).metainfo['group_sizes']
    assert sum(sizes) == 2000 and 0.94 < sum(sizes[::2]) / 2000 < 0.96
    assert all(sizes[2 * label] + sizes[2 * label + 1] == 200 for label in range(10))


def test_styles_of_the_shifts():
    assert {s.style for s in scenes('pretrain', 1000)} == set(shapes.STYLES)
    assert {s.style for s in scenes('r')} == set(shapes.RENDITIONS)
    assert {s.style for s in scenes('sketch')} == {'sketch'}
    assert {s.style for split in ('v2', 'a', 'groups') for s in scenes(split)} == {'photo'}


def test_object_differs_from_background_in_brightness():
    from PIL import Image

    brightness = {
        name: Image.new('RGB', (1, 1), tuple(round(255 * c) for c in rgb)).convert('L').getpixel((0, 0)) / 255
        for name, rgb in shapes.COLORS.items()
    }
    assert all(abs(brightness[s.color] - brightness[s.background]) > 0.19 for split in SPLITS for s in scenes(split))


def test_no_sketch_has_colour():
    for index in range(20):
        image = shapes.render('sketch', 0, index)[0].astype(int)
        assert (image.max(-1) - image.min(-1)).max() < 40


def test_captions_name_shape_and_never_a_colour_that_is_not_there():
    texts = set()
    for index, scene in enumerate(scenes('pretrain', 1500)):
        text = shapes.caption(scene, shapes.image_rng('pretrain', 0, index, stream=1))
        assert text == shapes.caption(scene, shapes.image_rng('pretrain', 0, index, stream=1))
        words = text.replace(',', '').replace('.', '').split()
        assert len(words) <= 20
        assert [w for w in words if w in SHAPES_CLASSES] == [SHAPES_CLASSES[scene.label]]
        assert any(word in text for word in shapes.STYLE_WORDS[scene.style])
        named = {w for w in words if w in shapes.COLORS}
        assert named <= ({scene.color, scene.background} if scene.style not in ('inverted', 'sketch') else set())
        assert {w for w in words if w in shapes.TEXTURES} <= {scene.texture}
        texts.add(text)
    assert len(texts) > 700


def test_dataset_items():
    dataset = DATASETS.build(dict(type='ShapesDataset', split='a', size=20, seed=5))
    assert len(dataset) == 20 and dataset.metainfo['classes'] == SHAPES_CLASSES
    assert dataset.get_gt_labels().tolist() == list(range(10)) * 2
    item = dataset[13]
    image, mask, scene = shapes.render('a', 5, 13)
    np.testing.assert_array_equal(item['img'], image)
    np.testing.assert_array_equal(item['gt_mask'], mask)
    assert item['gt_label'] == scene.label == 3
    assert item['sample_idx'] == 13 and item['img_shape'] == item['ori_shape'] == (64, 64)
    item['img'][:] = 0  # a transform that works in place does not spoil the dataset
    np.testing.assert_array_equal(dataset[13]['img'], image)


def test_dataset_subset_keeps_images_with_labels():
    subset = ShapesDataset('test', size=30).get_subset([4, 25])
    np.testing.assert_array_equal(subset[1]['img'], shapes.render('test', 0, 25)[0])
    assert [subset[i]['gt_label'] for i in range(2)] == [4, 5]


@pytest.mark.parametrize('split', ['train', 'groups'])
def test_per_class(split):
    """Classes alternate, so the class of an image is the last digit of its number."""
    for number, seed in ((1, 0), (3, 0), (3, 2)):
        few = ShapesDataset(split, size=80, per_class=number, subset_seed=seed)
        expected = set()
        for label in range(10):
            expected |= draw_slowly([f'{split}/0/{index}' for index in range(80) if index % 10 == label], number, seed)
        assert few.image_keys() == [
            f'shapes/{split}/0/{index}' for index in range(80) if f'{split}/0/{index}' in expected
        ]
        assert Counter(few.get_gt_labels()) == dict.fromkeys(range(10), number)
    number = int(few.image_keys()[4].rpartition('/')[2])
    whole = ShapesDataset(split, size=80)
    np.testing.assert_array_equal(few[4]['img'], whole[number]['img'])
    assert few[4]['gt_label'] == whole[number]['gt_label'] and few[4]['group'] == whole[number]['group']
    assert few.metainfo == whole.metainfo
    with pytest.raises(ConfigError, match=r'per_class=3, but 5 classes have fewer images: heart \(2\)'):
        ShapesDataset(split, size=25, per_class=3)


def test_dataset_through_pack_inputs():
    dataset = ShapesDataset('train', size=10, pipeline=[dict(type='PackInputs', algorithm_keys=('gt_mask',))])
    packed = dataset[2]
    assert packed['inputs'].shape == (3, 64, 64) and packed['inputs'].dtype == torch.uint8
    np.testing.assert_array_equal(packed['inputs'].permute(1, 2, 0).numpy(), shapes.render('train', 0, 2)[0])
    assert packed['data_samples'].gt_label.item() == 2
    assert packed['data_samples'].gt_mask.shape == (64, 64)


@pytest.mark.parametrize(
    'bad, words',
    [
        (dict(split='imagenet'), "'imagenet', choose one of pretrain"),
        (dict(size=0), 'at least 1'),
        (dict(size=-5), 'at least 1'),
        (dict(train_size=0), 'train_size must be at least 1'),
        (dict(per_class=0), 'per_class=0 must be at least 1'),
    ],
)
def test_bad_arguments(bad, words):
    with pytest.raises(ValueError, match=words):
        ShapesDataset(**bad)


def test_unknown_names():
    grid = np.zeros((2, 2), np.float32)
    with pytest.raises(ValueError, match='unknown shape .*circle'):
        shapes.signed_distance('blob', grid, grid)
    with pytest.raises(ValueError, match='unknown texture .*brick'):
        shapes.texture_field('marble', np.random.default_rng(0))


@pytest.fixture(scope='module')
def mini_clip():
    import open_clip

    open_clip.add_model_config(ASSETS / 'ShapesCLIP-ViT-8-64.json')
    return open_clip.create_model(
        'ShapesCLIP-ViT-8-64', pretrained=str(ASSETS / 'ShapesCLIP-ViT-8-64.safetensors')
    ).eval()


def encode(model, images):
    from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD))
    with torch.no_grad():
        return model.encode_image((pixels - mean) / std)


def test_mini_clip_size_and_feature_scale(mini_clip):
    assert 1e6 <= sum(p.numel() for p in mini_clip.visual.parameters()) <= 4e6
    assert (ASSETS / 'ShapesCLIP-ViT-8-64.safetensors').stat().st_size <= 12e6
    features = encode(mini_clip, [shapes.render('pretrain', 1, i)[0] for i in range(200)])
    # As OpenAI's ViT-B/16 on photos, so that loss weights on raw features mean the same.
    assert 0.17 < features.square().mean() < 0.23


@pytest.mark.parametrize('split, least', [('test', 57), ('v2', 48), ('r', 54), ('sketch', 57), ('a', 33)])
def test_mini_clip_zero_shot(mini_clip, split, least):
    import open_clip

    tokenizer = open_clip.get_tokenizer('ShapesCLIP-ViT-8-64')
    prompts = [[template.format(name) for template in SHAPES_TEMPLATES] for name in SHAPES_CLASSES]
    with torch.no_grad():
        means = torch.stack([mini_clip.encode_text(tokenizer(texts), normalize=True).mean(0) for texts in prompts])
    weights = torch.nn.functional.normalize(means, dim=1)
    images, _, drawn = zip(*(shapes.render(split, 0, i) for i in range(200)))
    predicted = (encode(mini_clip, images) @ weights.T).argmax(1).tolist()
    assert 100 * np.mean([p == s.label for p, s in zip(predicted, drawn)]) > least
