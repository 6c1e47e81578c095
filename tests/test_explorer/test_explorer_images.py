"""Images of the explorer."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from mmcfmask.engine.config import load_config
from mmcfmask.errors import UserError
from mmcfmask.explorer.images import ImageShelf, Source


@pytest.fixture(scope='module')
def shelf():
    return ImageShelf(load_config('configs/shapes/cfmask.py', {'test_dataloader.test.dataset.size': 30}))


def folders(root, names):
    for name in names:
        (root / name).mkdir(parents=True)
        for index in range(2):
            Image.new('RGB', (70, 80), (40 * index, 9, 9)).save(root / name / f'{index}.png')


@pytest.fixture
def pets(tmp_path):
    """A config of folders: an ID set, a shift with some of its classes in another order, and one that is missing."""
    folders(tmp_path / 'pets', ['cat', 'dog', 'fox'])
    folders(tmp_path / 'shift', ['fox', 'cat'])
    steps = """[
    dict(type='LoadImageFromFile'), dict(type='ResizeEdge', scale=32, edge='short'),
    dict(type='CenterCrop', crop_size=32), dict(type='PackInputs')]"""
    (tmp_path / 'config.py').write_text(f"""
model = dict(type='CounterfactualClassifier', data_preprocessor=dict(to_rgb=True))
pipeline = {steps}
test_dataloader = dict(
    pets=dict(dataset=dict(type='FolderDataset', data_root={str(tmp_path / 'pets')!r}, pipeline=pipeline)),
    shift=dict(dataset=dict(type='FolderShiftDataset', data_root={str(tmp_path / 'shift')!r}, pipeline=pipeline,
        head_classes=['cat', 'dog', 'fox'])),
    gone=dict(dataset=dict(type='FolderDataset', data_root={str(tmp_path / 'gone')!r}, pipeline=pipeline)))
test_cfg = dict(type='MultiSetTestLoop', id_set='pets')
""")
    return ImageShelf(load_config(str(tmp_path / 'config.py')))


def test_names_and_words(shelf):
    assert shelf.names[:2] == ['test', 'val'] and shelf.names[-1] == 'train' and 'sketch' in shelf.names
    assert Source('test', 3).words == 'test 3' and Source('/a/b/photo.jpg').words == 'photo.jpg'


def test_items_are_those_of_the_set(shelf):
    item, dataset = shelf.item(Source('test', 4)), shelf.dataset('test')
    assert torch.equal(item['inputs'], dataset[4]['inputs'])
    assert torch.equal(item['gt_mask'], torch.as_tensor(dataset.get_data_info(4)['gt_mask']))
    assert shelf.item(Source('test', 4)) is item  # kept
    assert shelf.label(Source('test', 4), 10) == 4 and shelf.label(Source('test', 4), 4) is None


def test_pages_show_every_image(shelf):
    pages = [shelf.pick('test', 12, page) for page in range(3)]
    assert all(len(set(page)) == 12 for page in pages) and pages[0] == shelf.pick('test', 12)
    assert {source.index for page in pages for source in page} == set(range(30))
    assert len(shelf.pick('test', 99)) == 30


def test_folders(pets, tmp_path):
    assert pets.names == ['test', 'pets', 'shift', 'gone']
    assert [pets.label(Source('pets', index), 3) for index in range(6)] == [0, 0, 1, 1, 2, 2]
    labels = {Path(pets.dataset('shift').get_data_info(i)['img_path']).parent.name: i for i in range(4)}
    assert {name: pets.label(Source('shift', index), 3) for name, index in labels.items()} == {'cat': 0, 'fox': 2}
    item = pets.item(Source('pets', 1))
    assert 'gt_mask' not in item and item['inputs'].shape == (3, 32, 32)
    file = pets.item(Source(str(tmp_path / 'pets' / 'cat' / '1.png')))
    assert torch.equal(file['inputs'], item['inputs'])
    with pytest.raises(UserError, match='gone'):
        pets.item(Source('gone', 0))
    assert pets.label(Source(str(tmp_path / 'pets' / 'cat' / '1.png')), 3) is None
