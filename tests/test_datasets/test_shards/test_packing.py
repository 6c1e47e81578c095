"""Folders as shards for WebDataset: what they hold, kills, and changed images."""

import json
import os

import pytest
from kills import run
from shards import SIZES, make_folders, rows
from trees import make_flat_val, write_devkit

from mmcfmask.datasets import FolderDataset, ImageNetDataset
from mmcfmask.datasets.shards.packing import pack, plan_shards
from mmcfmask.datasets.shards.tars import read_tar
from mmcfmask.errors import ConfigError, StorageError


@pytest.fixture
def folder(tmp_path):
    root = make_folders(tmp_path / 'folders')
    for name in ('IMG.2019.01.png', 'é %2E.png', 'deep/er/7.png'):
        (root / 'cat' / name).parent.mkdir(parents=True, exist_ok=True)
        (root / 'cat' / name).write_bytes(rows()[0][-1])
    return root


@pytest.fixture
def small(monkeypatch):
    """Shards of about 20 kB, with 8 images each."""
    from mmcfmask.datasets.shards import packing

    monkeypatch.setattr(packing, 'MEGABYTE', 20_000)


def names(root):
    dataset = FolderDataset(str(root))
    return {
        (dataset.get_data_info(i)['gt_label'], dataset.get_data_info(i)['img_path'][-8:]) for i in range(len(dataset))
    }


def test_data_set_of_the_shards_is_that_of_the_folder(folder, small, tmp_path):
    plan = plan_shards(folder, 1)
    pack(plan, tmp_path / 'out')
    assert len(plan.shards) == 3 and sorted(map(str, (tmp_path / 'out').glob('*.tar'))) == [
        str(tmp_path / 'out' / name) for name in plan.shards
    ]
    shards = FolderDataset(str(tmp_path / 'out'), holdout=dict(fraction=0.4, part='train'))
    plain = FolderDataset(str(folder), holdout=dict(fraction=0.4, part='train'))
    assert shards.metainfo == plain.metainfo and names(tmp_path / 'out') == names(folder)
    ours, theirs = ([dataset.get_data_info(i) for i in range(len(dataset))] for dataset in (shards, plain))
    assert [info['img_path'].rpartition('#')[2] for info in ours] == [
        os.path.relpath(info['img_path'], folder) for info in theirs
    ]
    for part in plan.shards.values():
        assert len({label for _, label in part}) > 1  # classes are mixed


def test_webdataset_reads_them(folder, tmp_path):
    webdataset = pytest.importorskip('webdataset', reason='webdataset is not installed')
    pack(plan_shards(folder), tmp_path / 'out')
    samples = list(webdataset.WebDataset([str(tmp_path / 'out' / '0000.tar')], shardshuffle=False).decode())
    assert len(samples) == sum(SIZES.values()) + 3 and {int(sample['cls']) for sample in samples} == {0, 1, 2}
    assert all(sample['__key__'].startswith(list(SIZES)[sample['cls']]) for sample in samples)
    stored = {sample['__key__']: sample['png'] for sample in samples if 'png' in sample}
    assert len(stored) == len(samples)


def _pack(root, out, size):
    from mmcfmask.datasets.shards import packing

    packing.MEGABYTE = size
    pack(plan_shards(root, 1), out)


@pytest.mark.parametrize('kill', [(0, 'middle'), (2, 'before'), (2, 'middle'), (3, 'after')])
def test_killed_and_continued(folder, tmp_path, kill):
    args = (folder, tmp_path / 'out', 20_000)
    run((__name__, '_pack'), *args, log=tmp_path / 'log', kill=kill)
    written = run((__name__, '_pack'), *args, log=tmp_path / 'log')
    done = kill[0] + (kill[1] == 'after')
    assert written == ['pack.json', '0000.tar', '0001.tar', '0002.tar'][done:]
    assert names(tmp_path / 'out') == names(folder) and not list((tmp_path / 'out').glob('*.part'))
    assert not list((tmp_path / 'out').glob('.*.part'))


@pytest.mark.parametrize('change', ['bytes', 'label', 'truncated'])
def test_shards_are_compared_with_the_images(folder, small, tmp_path, change):
    plan, out = plan_shards(folder, 1), tmp_path / 'out'
    pack(plan, out)
    path = out / '0001.tar'
    content = bytearray(path.read_bytes())
    sample = read_tar(path)[1]
    if change == 'bytes':
        content[sample.first + 50] ^= 1
    elif change == 'label':
        name, label = plan.shards['0001.tar'][0]
        plan.shards['0001.tar'][0] = (name, label + 1)
    else:
        content = content[: sample.first + 20]
    path.write_bytes(content)
    with pytest.raises(StorageError, match=r'0001\.tar'):
        pack(plan, out)


def test_folder_of_other_shards_or_files(folder, tmp_path):
    out = tmp_path / 'out'
    pack(plan_shards(folder), out)
    (folder / 'dog' / 'new.png').write_bytes(b'7')
    with pytest.raises(ConfigError, match='out holds shards of other images, of another --shard-size or --seed'):
        pack(plan_shards(folder), out)
    assert json.loads((out / 'pack.json').read_text())['images'] == sum(SIZES.values()) + 3
    with pytest.raises(ConfigError, match=r'is not empty \(cat, dog, emu\)'):
        pack(plan_shards(folder), folder)


def test_folders_that_cannot_be_packed(folder, tmp_path):
    (folder / 'dog' / 'dog_1.jpg').write_bytes(b'')
    with pytest.raises(ConfigError, match=r'dog/dog_1\.jpg and dog/dog_1\.png differ only in their ending'):
        plan_shards(folder)
    (tmp_path / 'two' / 'train' / 'cat').mkdir(parents=True)
    (tmp_path / 'two' / 'val' / 'cat').mkdir(parents=True)
    with pytest.raises(ConfigError, match="train, val are parts of a data set, .* split_dir='train'"):
        plan_shards(tmp_path / 'two')
    (folder / 'yak').mkdir()
    (folder / 'dog' / 'dog_1.jpg').unlink()
    with pytest.raises(ConfigError, match='no images in the class folders yak'):
        plan_shards(folder)


def test_flat_validation_images(tmp_path):
    wnids = make_flat_val(tmp_path / 'val')
    write_devkit(tmp_path, wnids)
    pack(plan_shards(tmp_path / 'val'), tmp_path / 'packed' / 'val')
    flat, packed = (ImageNetDataset(str(root), 'val') for root in (tmp_path, tmp_path / 'packed'))
    assert packed.get_gt_labels().tolist() == flat.get_gt_labels().tolist()
    stems = [[info['img_path'][-28:] for info in map(dataset.get_data_info, range(1000))] for dataset in (flat, packed)]
    assert stems[0] == stems[1]
