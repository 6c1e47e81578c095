"""Errors and choices of the sets whose labels come in files (tests/test_benchmark_sets.py has the numbers)."""

import json

import pytest
import trees

from mmcfmask.datasets import ImageNetHardDataset, ImageNetRealDataset, ImageNetXDataset, MissingSetError
from mmcfmask.datasets.imagenet_labels import IMAGENET_WNIDS
from mmcfmask.datasets.relabelled import FACTORS, find_labels, read_jsonl, val_number
from mmcfmask.errors import ConfigError


@pytest.fixture(scope='module')
def imagenet(tmp_path_factory):
    """Two images of each class, in links: ILSVRC2012_val_00000001 and -2."""
    root = tmp_path_factory.mktemp('data') / 'imagenet'
    trees.make_tree(root / 'val', IMAGENET_WNIDS, [f'ILSVRC2012_val_{number:08d}.JPEG' for number in (1, 2)])
    return root


def test_real_labels(imagenet, tmp_path):
    file = tmp_path / 'labels.json'
    file.write_text(json.dumps([[3, 4], []]))
    dataset = ImageNetRealDataset(str(imagenet.parent), annotations=str(file))
    assert len(dataset) == 1000 and dataset.get_data_info(0)['gt_label'] == [3, 4]
    assert dataset.metainfo['protocol']['images'] == 46_837 and dataset.num_listed == 1000
    for content, message in {
        '[[3], [1000]]': r'entry 2: \[1000\] is not a list of indices of ImageNet',
        '[[3]]': 'has labels of 1 images, but not of .*00000002',
        '{}': 'must hold a list with a list of classes',
        '[': 'is not valid JSON',
        '[[], []]': 'annotates none of the images',
    }.items():
        file.write_text(content)
        with pytest.raises(ConfigError, match=message):
            ImageNetRealDataset(str(imagenet), annotations=str(file))
    with pytest.raises(
        MissingSetError, match='there is no file real.json in .*Get it from https://github.com/google-res'
    ):
        ImageNetRealDataset(str(imagenet))
    with pytest.raises(MissingSetError, match='there is no file .*none.json'):
        ImageNetRealDataset(str(imagenet), annotations=str(tmp_path / 'none.json'))


def test_where_the_file_is_found(tmp_path):
    """In data_root, then in the folder of the images, then beside it."""
    val = tmp_path / 'imagenet' / 'val'
    val.mkdir(parents=True)
    places = [tmp_path, val, val.parent]
    for folder in places:
        (folder / 'real.json').touch()
    for folder in places:
        assert find_labels(None, str(tmp_path), val, ('x.json', 'real.json'), '', '') == folder / 'real.json'
        (folder / 'real.json').unlink()
    with pytest.raises(MissingSetError, match='ReaL: there is no file x.json or real.json in .*Get it from the shop'):
        find_labels(None, str(tmp_path), val, ('x.json', 'real.json'), 'ReaL', 'the shop')


def test_factors(imagenet, tmp_path):
    file = tmp_path / 'x.jsonl'
    row = dict.fromkeys(FACTORS, 0) | dict(file_name='ILSVRC2012_val_00000002.JPEG', pose=1, larger=1)
    file.write_text(json.dumps(row) + '\n\n')
    dataset = ImageNetXDataset(str(imagenet), annotations=str(file))
    assert len(dataset) == 1000
    assert [FACTORS[group] for group in dataset.get_data_info(5)['group']] == ['pose', 'larger']
    assert dataset.get_data_info(5)['gt_label'] == 5
    assert 'with the prototypes: there is no prototypical_paths.csv' in dataset.metainfo['notes'][0]
    del row['texture']
    file.write_text(json.dumps(row))
    with pytest.raises(ConfigError, match='x.jsonl, line 1: there is no texture'):
        ImageNetXDataset(str(imagenet), annotations=str(file))


def test_lines(tmp_path):
    file = tmp_path / 'x.jsonl'
    for content, message in {
        '{"a": 1}\n{': 'line 2: not valid JSON',
        '[]': 'line 1: there is no a',
        '\n': 'lists no',
    }.items():
        file.write_text(content)
        with pytest.raises(ConfigError, match=message):
            read_jsonl(file, ['a'])
    assert val_number('x/ILSVRC2012_val_00000017.JPEG') == 17
    for name in ('cat.jpg', 'ILSVRC2012_val_00000000.JPEG', 'ILSVRC2012_val_17.JPEG'):
        with pytest.raises(ConfigError, match='must have their names'):
            val_number(name)


def test_imagenet_hard(tmp_path):
    root = tmp_path / 'imagenet-hard'

    def write(*rows):
        (root / 'metadata.jsonl').write_text(
            '\n'.join(json.dumps(dict(zip(('file_name', 'label'), row))) for row in rows)
        )
        return str(tmp_path)

    trees.save_small_image(root / 'a' / '1.jpg')
    with pytest.raises(MissingSetError, match='ImageNet-Hard.*metadata.jsonl'):
        ImageNetHardDataset(str(root))
    dataset = ImageNetHardDataset(write(('a/1.jpg', [5, 6]), ('a/2.jpg', [1])))
    assert len(dataset) == 1 and dataset.get_data_info(0)['gt_label'] == [5, 6]
    for rows, error, message in [
        ([('a/1.jpg', [])], ConfigError, 'a/1.jpg have no label'),
        ([('a/1.jpg', 5)], ConfigError, 'is not a list of indices'),
        ([('a/1.jpg', [5]), ('a/1.jpg', [6])], ConfigError, '1 images stand in several lines: a/1.jpg'),
        ([('a/3.jpg', [5])], MissingSetError, 'all 1 images of metadata.jsonl are missing, such as a/3.jpg'),
    ]:
        with pytest.raises(error, match=message):
            ImageNetHardDataset(write(*rows))
    with pytest.raises(ConfigError, match='has no holdout'):
        ImageNetHardDataset(str(root), holdout=dict(fraction=0.1, part='train'))
