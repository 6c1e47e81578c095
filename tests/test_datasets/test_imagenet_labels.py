"""The files that say which image is of which class: class lists, ground truth, ObjectNet's mapping."""

import os
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import trees
from mmpretrain.datasets.categories import IMAGENET_CATEGORIES
from mmpretrain.registry import DATASETS

import mmcfmask.datasets.imagenet_labels as labels_module
from mmcfmask.datasets.imagenet_labels import (
    IMAGENET_CLASSES,
    IMAGENET_WNIDS,
    MAPPINGS,
    read_class_map,
    read_objectnet_mapping,
)
from mmcfmask.errors import ConfigError

REAL = Path(os.environ.get('MMCFMASK_TEST_DATA', '/nowhere'))


def build(name, root, **kwargs):
    return DATASETS.build(dict(type=name, data_root=str(root), **kwargs))


def test_order_of_imagenet():
    assert len(IMAGENET_WNIDS) == 1000 and list(IMAGENET_WNIDS) == sorted(IMAGENET_WNIDS)
    for index, wnid, name in (
        (0, 'n01440764', 'tench'),
        (65, 'n01751748', 'sea snake'),
        (134, 'n02012849', 'crane bird'),
        (517, 'n03126707', 'construction crane'),
        (999, 'n15075141', 'toilet paper'),
    ):
        assert (IMAGENET_WNIDS[index], IMAGENET_CLASSES[index]) == (wnid, name)
    # Another list in the same order, by other hands: most names have a word in common.
    shared = [
        bool(set(re.findall(r'\w+', a.lower())) & set(re.findall(r'\w+', b.lower())))
        for a, b in zip(IMAGENET_CATEGORIES, IMAGENET_CLASSES)
    ]
    assert np.mean(shared) > 0.9


@pytest.mark.parametrize(
    'name, known',
    [
        ('imagenet_r', {1: 'goldfish', 2: 'great white shark', 4: 'hammerhead shark', 107: 'jellyfish', 988: 'acorn'}),
        ('imagenet_a', {6: 'stingray', 11: 'goldfinch', 107: 'jellyfish', 310: 'ant', 988: 'acorn'}),
    ],
)
def test_subsets(name, known):
    lines = (Path(labels_module.__file__).parent / 'class_maps' / f'{name}.txt').read_text().splitlines()
    assert lines[0].startswith('#') and 'https://github.com/hendrycks/' in lines[0]
    rows = [line.split(maxsplit=2) for line in lines if not line.startswith('#')]
    wnids = read_class_map(name)
    assert wnids == tuple(row[0] for row in rows) and len(set(wnids)) == 200 and list(wnids) == sorted(wnids)
    for wnid, index, title in rows:  # the columns agree
        assert IMAGENET_WNIDS[int(index)] == wnid and IMAGENET_CLASSES[int(index)] == title
    indices = [int(row[1]) for row in rows]
    assert known.items() <= {index: IMAGENET_CLASSES[index] for index in indices}.items()
    # timm has the same lists, from the sets' own folders.
    import timm.data

    published = (Path(timm.data.__file__).parent / '_info' / f'{name}_synsets.txt').read_text().split()
    assert list(wnids) == published


def edit(path, old, new):
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))


def test_objectnet_mapping_files_that_do_not_fit(tmp_path):
    trees.make_objectnet_mappings(tmp_path / 'good')

    def broken(name, old, new, message):
        folder = tmp_path / f'{message[:5]}'
        shutil.copytree(tmp_path / 'good', folder)
        edit(folder / name, old, new)
        with pytest.raises(ValueError, match=message):
            read_objectnet_mapping(folder)

    broken(MAPPINGS[0], '{', '', 'is not valid JSON')
    broken(
        MAPPINGS[1], '"Alarm clock"', '"Alarm clocks"', 'Alarm clocks are not labels of folder_to_objectnet_label.json'
    )
    broken(MAPPINGS[1], '; ', '; axe; ', "axe of '.*' must match exactly one line of imagenet_to_label_2012_v2")
    broken(
        MAPPINGS[1], 'Alarm clock": "', 'Alarm clock": "crane; ', "crane of 'Alarm clock' must match exactly one line"
    )  # it is two
    broken(MAPPINGS[2], '"0": ', '"0": 1', 'pytorch_to_imagenet_2012_id.json does not number the 1000 lines')


def check_flat(dataset, wnids):
    assert len(dataset) == len(wnids)
    for index in range(len(dataset)):
        item = dataset.get_data_info(index)
        number = int(Path(item['img_path']).stem.rpartition('_')[2])
        assert IMAGENET_WNIDS[item['gt_label']] == wnids[number - 1]


def test_flat_val_with_the_devkit(tmp_path):
    """The devkit's numbers are neither from 0 nor in the order of the WordNet ids."""
    wnids = trees.make_flat_val(tmp_path / 'ILSVRC2012_img_val')
    with pytest.raises(
        FileNotFoundError, match='labels were not found.*Unpack ILSVRC2012_devkit_t12.tar.gz from https://image-net.org'
    ):
        build('ImageNetDataset', tmp_path, split_dir='val')
    trees.write_devkit(tmp_path / 'ILSVRC2012_devkit_t12/data', wnids)
    check_flat(build('ImageNetDataset', tmp_path, split_dir='val'), wnids)

    moved = tmp_path / 'mine'
    shutil.move(tmp_path / 'ILSVRC2012_devkit_t12/data', moved)
    truth = moved / 'ILSVRC2012_validation_ground_truth.txt'
    check_flat(build('ImageNetDataset', tmp_path, split_dir='val', ground_truth=str(truth)), wnids)
    edit(truth, '\n', '\n0\n')
    with pytest.raises(ValueError, match="label '0' of ILSVRC2012_val_00000002 is not one of ImageNet's 1000 classes"):
        build('ImageNetDataset', tmp_path, split_dir='val', ground_truth=str(truth))
    (moved / 'meta.mat').unlink()
    with pytest.raises(FileNotFoundError, match='meta.mat does not exist; it maps the numbers'):
        build('ImageNetDataset', tmp_path, split_dir='val', ground_truth=str(truth))


def test_flat_val_with_a_list_of_synsets(tmp_path):
    wnids = trees.make_flat_val(tmp_path / 'val')
    (tmp_path / 'imagenet_2012_validation_synset_labels.txt').write_text('\n'.join(wnids))
    check_flat(build('ImageNetDataset', tmp_path, split_dir='val'), wnids)
    (tmp_path / 'val/ILSVRC2012_val_00001001.JPEG').symlink_to(tmp_path / '.val.png')
    with pytest.raises(ValueError, match='lacks 1 of 1001 images: ILSVRC2012_val_00001001.JPEG'):
        build('ImageNetDataset', tmp_path, split_dir='val')


def test_flat_val_with_labels_of_mmpretrain(tmp_path):
    wnids = trees.make_flat_val(tmp_path / 'val')
    (tmp_path / 'meta').mkdir()
    (tmp_path / 'meta/val.txt').write_text(
        ''.join(
            f'ILSVRC2012_val_{number:08d}.JPEG {IMAGENET_WNIDS.index(wnid)}\n'
            for number, wnid in enumerate(wnids, start=1)
        )
    )
    check_flat(build('ImageNetDataset', tmp_path, split_dir='val'), wnids)


def test_flat_val_of_kaggle(tmp_path):
    wnids = trees.make_flat_val(tmp_path / 'ILSVRC/Data/CLS-LOC/val')
    rows = [
        f'ILSVRC2012_val_{number:08d},{wnid} 111 108 230 366 {wnid} 1 2 3 4 '
        for number, wnid in enumerate(wnids, start=1)
    ]
    (tmp_path / 'LOC_val_solution.csv').write_text(
        '\n'.join(['ImageId,PredictionString', *reversed(rows)]), encoding='utf-8-sig'
    )
    for root in (tmp_path, tmp_path / 'ILSVRC', tmp_path / 'ILSVRC/Data/CLS-LOC'):
        check_flat(build('ImageNetDataset', root, split_dir='val'), wnids)


def test_kaggles_table_without_its_columns(tmp_path):
    trees.make_flat_val(tmp_path / 'val', count=2)
    (tmp_path / 'LOC_val_solution.csv').write_text('image,label\nILSVRC2012_val_00000001,0\n')
    with pytest.raises(ConfigError, match='lacks the columns ImageId and PredictionString .*; it has image, label'):
        build('ImageNetDataset', tmp_path, split_dir='val')


def test_flat_val_without_a_class(tmp_path):
    wnids = trees.make_flat_val(tmp_path / 'val', count=998)
    trees.write_devkit(tmp_path, wnids)
    with pytest.raises(ValueError, match='no images in the 2 class folders n'):
        build('ImageNetDataset', tmp_path, split_dir='val')


@pytest.mark.skipif(
    not (REAL / 'objectnet-1.0/mappings').is_dir(), reason='needs $MMCFMASK_TEST_DATA/objectnet-1.0/mappings'
)
def test_real_mapping_files_of_objectnet():
    mapping = read_objectnet_mapping(REAL / 'objectnet-1.0/mappings')
    groups = {folder: group for folder, group in mapping.groups.items() if group}
    assert (
        len(mapping.groups) == 313 and len(groups) == 113 and Counter(map(len, groups.values())) == {1: 104, 2: 6, 3: 3}
    )
    assert {IMAGENET_CLASSES[index] for index in groups['chair']} == {'barber chair', 'folding chair', 'rocking chair'}
    assert {IMAGENET_CLASSES[index] for index in groups['alarm_clock']} == {'analog clock', 'digital clock'}
    assert [IMAGENET_CLASSES[index] for index in groups['banana']] == ['banana'] and mapping.labels[
        'book_closed'
    ] == 'Book (closed)'
