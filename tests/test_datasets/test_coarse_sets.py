"""Class maps, layouts and errors of the benchmarks of backgrounds and shapes (tests/test_benchmark_sets.py has the
numbers)."""

import pytest
import trees

from mmcfmask.datasets import (
    CounterAnimalDataset,
    GeirhosDataset,
    ImageNet9Dataset,
    ImageNetDDataset,
    MissingSetError,
)
from mmcfmask.datasets.coarse_sets import read_cues
from mmcfmask.datasets.imagenet_labels import IMAGENET_CLASSES, IMAGENET_WNIDS, read_coarse_classes
from mmcfmask.errors import ConfigError, MissingFileError


@pytest.mark.parametrize(
    'name, source, sizes, known',
    [
        (
            'imagenet9',
            'MadryLab/backgrounds_challenge',
            [116, 52, 42, 36, 35, 27, 26, 20, 16],
            {'00_dog': 'Chihuahua', '02_wheeled vehicle': 'sports car', '08_fish': 'goldfish'},
        ),
        (
            'geirhos16',
            'bethgelab/model-vs-human',
            [1, 4, 2, 49, 5, 7, 3, 6, 4, 3, 109, 2, 2, 1, 1, 8],
            {'airplane': 'airliner', 'cat': 'Egyptian Mau', 'truck': 'garbage truck', 'knife': 'cleaver'},
        ),
        (
            'imagenet_d',
            'chenshuang-zhang/imagenet_d',
            None,
            {'alarm_clock': 'digital clock', 'banana': 'banana', 'helmet': 'crash helmet'},
        ),
    ],
)
def test_class_maps(name, source, sizes, known):
    """The columns agree, no class of ImageNet belongs to two, and sizes are those of the authors."""
    path = trees.ROOT / 'mmcfmask' / 'datasets' / 'class_maps' / f'{name}.txt'
    lines = path.read_text().splitlines()
    rows = [line.split(maxsplit=2) for line in lines if not line.startswith('#')]
    assert any(source in line for line in lines if line.startswith('#'))
    assert all(IMAGENET_WNIDS[int(index)] == wnid for wnid, index, _ in rows)
    groups = read_coarse_classes(name)
    indices = [index for group in groups.values() for index in group]
    assert len(indices) == len(set(indices)) == len(rows) and list(groups) == sorted(groups)
    assert sizes is None or [len(group) for group in groups.values()] == sizes
    for folder, title in known.items():
        assert title in {IMAGENET_CLASSES[index] for index in groups[folder]}, folder
    assert name != 'imagenet_d' or len(groups) == 113


def make_in9(root, variations=ImageNet9Dataset.VARIATIONS):
    for variation in variations:
        trees.make_tree(root / variation / 'val', read_coarse_classes('imagenet9'))
    return root


def test_imagenet9(tmp_path):
    make_in9(tmp_path / 'bg_challenge')
    dataset = ImageNet9Dataset(str(tmp_path))
    assert len(dataset) == 8 * 9 and dataset.metainfo['group_names'] == ImageNet9Dataset.VARIATIONS
    item = dataset.get_data_info(9 + 2)  # the second variation
    assert item['img_path'].endswith('mixed_same/val/02_wheeled vehicle/a.jpg')
    assert item['gt_label'] == 2 and item['group'] == 1
    classes, groups = dataset.metainfo['classes'], dataset.metainfo['label_groups']
    assert classes[:3] == ('dog', 'bird', 'wheeled vehicle') and len(classes) == len(groups) == 10
    assert sorted(index for group in groups for index in group) == list(range(1000)) and len(groups[9]) == 630
    two = ImageNet9Dataset(str(tmp_path / 'bg_challenge'), variations=['mixed_rand', 'mixed_same'])
    assert len(two) == 18 and two.metainfo['protocol']['images'] == 8100
    assert {item['group'] for item in map(two.get_data_info, range(9))} == {0}


def test_imagenet9_errors(tmp_path):
    make_in9(tmp_path / 'bg_challenge', ['original', 'mixed_same'])
    with pytest.raises(MissingFileError, match='6 of 8 variations are missing: mixed_rand, .*variations='):
        ImageNet9Dataset(str(tmp_path))
    with pytest.raises(
        ConfigError, match="variations=\\['mixed'\\] must be a list of some of original, .*Did you mean"
    ):
        ImageNet9Dataset(str(tmp_path), variations=['mixed'])
    for wrong in ([], 'original', ['original', 'original']):
        with pytest.raises(ConfigError, match='must be a list of some of'):
            ImageNet9Dataset(str(tmp_path), variations=wrong)
    (tmp_path / 'bg_challenge' / 'original' / 'val' / '09_boat').mkdir()
    with pytest.raises(ConfigError, match='1 folders are not known classes: 09_boat'):
        ImageNet9Dataset(str(tmp_path), variations=['original'])
    with pytest.raises(MissingSetError, match='bg_challenge .*Get it from https://github.com/MadryLab'):
        ImageNet9Dataset(str(tmp_path / 'bg_challenge' / 'original' / 'val' / '00_dog'))


def test_counteranimal(tmp_path):
    for folder in ('100 black swan', '9 ostrich'):
        for kind in ('common-ground', 'counter-water'):
            trees.save_small_image(tmp_path / 'LAION-final' / folder / kind / 'a.jpg')
    for root in (tmp_path, tmp_path / 'LAION-final'):
        dataset = CounterAnimalDataset(str(root))
        items = [dataset.get_data_info(index) for index in range(len(dataset))]
        assert [(item['gt_label'], item['group']) for item in items] == [(9, 0), (9, 1), (100, 0), (100, 1)]
    assert dataset.metainfo['classes'] == IMAGENET_CLASSES and dataset.metainfo['label_groups'] is None
    counter = CounterAnimalDataset(str(tmp_path), groups=['counter'])
    assert [counter.get_data_info(index)['group'] for index in range(len(counter))] == [0, 0]
    assert counter.metainfo['group_names'] == ('counter',)
    trees.save_small_image(tmp_path / 'LAION-final' / '9 ostrich' / 'usual' / 'a.jpg')
    with pytest.raises(ConfigError, match='9 ostrich: usual do not begin with common- or counter-'):
        CounterAnimalDataset(str(tmp_path))
    (tmp_path / 'LAION-final' / 'ostrich').mkdir()
    with pytest.raises(
        ConfigError, match='ostrich do not begin with the index of an ImageNet class, as in "9 ostrich"'
    ):
        CounterAnimalDataset(str(tmp_path))


def test_imagenet_d(tmp_path):
    trees.make_tree(tmp_path / 'background', ['helmet', 'banana'])
    trees.make_tree(tmp_path / 'texture', ['helmet'])
    with pytest.raises(MissingFileError, match='material of ImageNet-D are missing'):
        ImageNetDDataset(str(tmp_path))
    dataset = ImageNetDDataset(str(tmp_path), parts=['background', 'texture'])
    items = [dataset.get_data_info(index) for index in range(len(dataset))]
    assert [(item['gt_label'], item['group']) for item in items] == [([954], 0), ([518, 560], 0), ([518, 560], 1)]
    (tmp_path / 'texture' / 'helmets').mkdir()
    with pytest.raises(ConfigError, match='1 folders are not classes of ImageNet-D: helmets \\(near helmet\\)'):
        ImageNetDDataset(str(tmp_path), parts=['texture'])


def test_cue_conflicts(tmp_path):
    classes = list(read_coarse_classes('geirhos16'))
    for folder in classes:
        trees.save_small_image(tmp_path / 'cue-conflict' / folder / f'{folder}7-airplane3.png')
    dataset = GeirhosDataset(str(tmp_path))
    items = [dataset.get_data_info(index) for index in range(len(dataset))]
    assert [(item['gt_label'], item['texture']) for item in items] == [(label, 0) for label in range(16)]
    assert dataset.metainfo['label_groups'][classes.index('elephant')] == (385, 386)
    trees.save_small_image(tmp_path / 'cue-conflict' / 'cat' / 'dog7-airplane3.png')
    with pytest.raises(ConfigError, match='dog7-airplane3.png: by its name its shape is dog, which is not its folder'):
        GeirhosDataset(str(tmp_path))
    with pytest.raises(ConfigError, match="unknown stimuli='edge', .*Did you mean 'edges'"):
        GeirhosDataset(str(tmp_path), stimuli='edge')


def test_names_of_cue_conflicts():
    classes = ('airplane', 'cat')
    assert read_cues('x/cat7-airplane3.png', classes) == (1, 0)
    assert read_cues('x/0001_cue_airplane10-cat2.png', classes) == (0, 1)
    for name in ('cat7.png', 'cat7-dog3.png', 'cat-7.png'):
        with pytest.raises(ConfigError, match=f'{name}: the name must be that of a cue conflict'):
            read_cues(name, classes)
