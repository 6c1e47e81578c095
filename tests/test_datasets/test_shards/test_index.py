import os

import numpy as np
import pytest
from shards import make_tars

from mmcfmask.datasets.shards import index as module
from mmcfmask.datasets.shards.index import read_index

SAMPLES = [dict(key=f'{number:02d}', png=bytes(number), cls=str(number % 3)) for number in range(10)]


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.setenv('MMCFMASK_CACHE', str(tmp_path / 'cache'))
    return sorted(make_tars(tmp_path / 'shards', SAMPLES).glob('*.tar'))


@pytest.fixture
def made(monkeypatch):
    """Grows whenever an index is read from the shards."""
    calls, make = [], module.make_index
    monkeypatch.setattr(module, 'make_index', lambda *args: calls.append(1) or make(*args))
    return calls


def equal(one, other):
    return (
        one.samples == other.samples and np.array_equal(one.files, other.files) and one.class_names == other.class_names
    )


def test_is_read_from_the_shards_once(files, made):
    first = read_index(files)
    assert [sample.label for sample in first.samples] == [sample['cls'] for sample in SAMPLES]
    assert first.files.tolist() == [0] * 4 + [1] * 4 + [2] * 2
    assert equal(read_index(files), first) and len(made) == 1
    assert [path.name for path in files[0].parent.iterdir() if path.name.startswith('.')] == [
        path.name for path in files[0].parent.glob('.mmcfmask-*.npz')
    ]


@pytest.mark.parametrize('change', ['content', 'another field', 'fewer files', 'damage'])
def test_is_made_again(files, made, change):
    read_index(files)
    if change == 'content':
        os.utime(files[1], ns=(1, 1))
    elif change == 'fewer files':
        files = files[:2]
    elif change == 'damage':
        (path,) = files[0].parent.glob('.mmcfmask-*.npz')
        path.write_bytes(path.read_bytes()[:300])
    found = read_index(files, 'cls' if change == 'another field' else None)
    assert len(made) == 2 and len(found.samples) == (8 if change == 'fewer files' else 10)
    assert equal(read_index(files, 'cls' if change == 'another field' else None), found) and len(made) == 2


def test_lies_in_the_cache_folder_where_shards_are_read_only(files, made, monkeypatch, tmp_path):
    write = module.atomic_write

    def read_only(path, *args):
        if path.parent == files[0].parent:
            raise module.StorageError('read-only')
        return write(path, *args)

    monkeypatch.setattr(module, 'atomic_write', read_only)
    first = read_index(files)
    assert equal(read_index(files), first) and len(made) == 1
    assert len(list((tmp_path / 'cache').glob('shards-*.npz'))) == 1
