"""Drawings on white whose objects are found by a fill from the border."""

import numpy as np
import pytest
from PIL import Image

from mmcfmask.datasets import ObjectsOnWhiteDataset
from mmcfmask.datasets.objects import object_on_white, paste
from mmcfmask.errors import UserError


def slow_object(image, white):
    """Fill from the border, pixel by pixel."""
    height, width = image.shape[:2]
    white = [[min(image[y, x]) > white for x in range(width)] for y in range(height)]
    waiting = [(y, x) for y in range(height) for x in range(width) if y in (0, height - 1) or x in (0, width - 1)]
    reached = set()
    while waiting:
        y, x = waiting.pop()
        if (y, x) not in reached and 0 <= y < height and 0 <= x < width and white[y][x]:
            reached.add((y, x))
            waiting += [(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)]
    return np.array([[(y, x) not in reached for x in range(width)] for y in range(height)])


def test_object_equals_slow_fill():
    rng = np.random.default_rng(0)
    for _ in range(5):
        image = rng.choice([0, 240, 250], (12, 14, 3), p=[0.15, 0.15, 0.7]).astype(np.uint8)
        found = object_on_white(image, 235)
        np.testing.assert_array_equal(found, slow_object(image, 235))
        assert found.any() and not found.all()


def test_white_inside_an_outline_is_object():
    image = np.full((20, 20, 3), 255, np.uint8)
    image[5:15, 5:15] = 0
    image[7:13, 7:13] = 255
    mask = object_on_white(image)
    assert mask[5:15, 5:15].all() and mask.sum() == 100


def draw(path, color, size=40, image=80):
    pixels = np.full((image, image, 3), 255, np.uint8)
    pixels[20 : 20 + size, 10 : 10 + size] = color
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def drawings(tmp_path):
    """Two classes: five good drawings each, one whose object is too small and one photo without white."""
    for label, color in dict(apple=(200, 0, 0), pear=(0, 200, 0)).items():
        for i in range(5):
            draw(tmp_path / 'drawings' / label / f'{i}.png', color)
        draw(tmp_path / 'drawings' / label / 'small.png', color, size=4)
        Image.new('RGB', (80, 80), (9, 9, 9)).save(tmp_path / 'drawings' / label / 'photo.png')
    for i, shade in enumerate((40, 90)):
        path = tmp_path / 'photos' / f'folder{i}' / 'scene.png'
        path.parent.mkdir(parents=True)
        Image.new('RGB', (120, 100), (shade, shade, shade)).save(path)
    return tmp_path


def test_items_have_image_and_object(drawings):
    dataset = ObjectsOnWhiteDataset(str(drawings), 'drawings', image_size=40)
    assert len(dataset) == 10 and dataset.metainfo['classes'] == ('apple', 'pear')
    assert not any('small' in item['img_path'] or 'photo' in item['img_path'] for item in dataset)
    item = dataset[0]
    assert item['img'].shape == (40, 40, 3) and item['img'].dtype == np.uint8 and item['gt_label'] == 0
    assert item['gt_mask'].dtype == bool and 0.2 < item['gt_mask'].mean() < 0.3
    assert item['img'][20, 15].tolist() == [0, 0, 200]  # BGR
    assert item['gt_mask'][11:29, 6:24].all() and not item['gt_mask'][:8].any()


def test_draw_of_a_class_is_seeded(drawings):
    def names(**settings):
        dataset = ObjectsOnWhiteDataset(str(drawings), 'drawings', image_size=40, **settings)
        return [dataset.get_data_info(i)['img_path'] for i in range(len(dataset))]

    assert len(names(per_class=2)) == 4 and names(per_class=2) == names(per_class=2)
    assert set(names(per_class=2)) < set(names(per_class=3)) < set(names())
    assert len({tuple(names(per_class=2, subset_seed=seed)) for seed in range(5)}) > 1


def test_pasted_objects_stand_on_scenes(drawings):
    settings = dict(split_dir='drawings', image_size=40, scenes=str(drawings / 'photos'))
    dataset = ObjectsOnWhiteDataset(str(drawings), **settings)
    shades = set()
    for item in dataset:
        inside, outside = item['img'][item['gt_mask']], item['img'][~item['gt_mask']]
        # The colour of the class; at the edge, mixed with the white around it.
        assert (inside.argmax(axis=1) == (2 if item['gt_label'] == 0 else 1)).mean() > 0.9
        assert len(np.unique(outside)) == 1
        shades.add(int(outside[0, 0]))
        # The square is a quarter of a drawing whose side is scaled to 15/28 to 5/7.
        assert 0.25 * 0.4**2 < item['gt_mask'].mean() < 0.25 * 0.8**2
    assert shades == {40, 90}
    again = ObjectsOnWhiteDataset(str(drawings), **settings)
    assert all(np.array_equal(a['img'], b['img']) for a, b in zip(dataset, again))
    other = ObjectsOnWhiteDataset(str(drawings), subset_seed=1, **settings)
    assert not all(np.array_equal(a['img'], b['img']) for a, b in zip(dataset, other))
    one = ObjectsOnWhiteDataset(str(drawings), scene_folders=['folder0'], **settings)
    assert {int(item['img'][~item['gt_mask']][0, 0]) for item in one} == {40}


def test_paste_reaches_the_corners():
    image, scene = np.zeros((10, 10, 3), np.uint8), np.full((10, 10, 3), 255, np.uint8)
    places = set()
    for seed in range(300):
        pasted, mask = paste(image, np.ones((10, 10), bool), scene, 0.8, np.random.default_rng(seed))
        assert mask.sum() == 64 and (pasted[mask] == 0).all() and (pasted[~mask] == 255).all()
        places.add(tuple(np.argwhere(mask)[0].tolist()))
    assert places == {(y, x) for y in range(3) for x in range(3)}


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(per_class=6), r"5 of 7 images of the class 'apple' .*, but per_class=6"),
        (dict(per_class=True), 'per_class=True must be at least 1'),
        (dict(white=255), 'white=255 must be a whole number from 0 to 254'),
        (dict(object_share=(0.5, 0.1)), r'object_share=\(0.5, 0.1\) must be two numbers'),
        (dict(object_share=(0.9, 0.95)), '0 of 7 images of the class'),
        (dict(object_scale=0.5), 'object_scale=0.5 must be two numbers'),
        (dict(object_scale=(0.5, float('nan'))), 'object_scale=.* must be two numbers'),
        (dict(scene_folders=['a']), 'scene_folders needs scenes'),
        (dict(scenes='nowhere'), 'nowhere.* are not folders; set scenes'),
        (dict(scenes='{}', scene_folders=[]), 'scene_folders=.* must be a list'),
        (dict(scenes='{}', scene_folders=['folder0', 'folder7']), 'folder7.* are not folders'),
        (dict(image_size=0), 'image_size=0 must be a number of pixels'),
    ],
)
def test_mistakes_are_named(drawings, settings, message):
    if settings.get('scenes') == '{}':
        settings = dict(settings, scenes=str(drawings / 'photos'))
    with pytest.raises(UserError, match=message):
        ObjectsOnWhiteDataset(str(drawings), 'drawings', **settings)
