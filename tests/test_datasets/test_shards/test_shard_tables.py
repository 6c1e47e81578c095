import os

import pytest
from shards import image_bytes, make_table, write_arrow, write_parquet

from mmcfmask.datasets.shards import tables
from mmcfmask.datasets.shards.tables import read_cell, read_table
from mmcfmask.errors import ConfigError, MissingPackageError, StorageError

pa = pytest.importorskip('pyarrow', reason='pyarrow is not installed')
CONTENTS = [image_bytes(seed) for seed in range(10)]
LABELS = [0, 2, 1, 0, 2, 2, 1, 0, 0, 1]


@pytest.fixture(params=['parquet', 'arrow stream', 'arrow file'])
def write(request, tmp_path):
    def written(table):
        if request.param == 'parquet':
            return write_parquet(tmp_path / 'train-00000-of-00001.parquet', table)
        return write_arrow(tmp_path / 'data-00000-of-00001.arrow', table, as_file=request.param == 'arrow file')

    return written


def test_samples_with_their_places(write):
    path = write(make_table(LABELS, CONTENTS, names=['cat', 'dog', 'emu']))
    samples, names = read_table(path)
    assert names == ['cat', 'dog', 'emu']
    assert [sample.label for sample in samples] == list(map(str, LABELS))
    assert [sample.name for sample in samples] == [f'{number}.png' for number in range(10)]
    assert [sample[2:] for sample in samples] == [divmod(number, 4) for number in range(10)]
    assert [read_cell(str(path), *sample[2:]) for sample in samples] == CONTENTS


def test_images_without_names_labels_of_text_and_other_columns(write):
    table = make_table(['n02', 'n01'], CONTENTS[:2], ['/home/me/n02/a.jpg', None], column='wnid')
    table = table.append_column('caption', pa.array(['a', 'b']))
    samples, names = read_table(write(table))
    assert names is None
    assert [sample.label for sample in samples] == ['n02', 'n01']
    assert samples[0].name == 'n02/a.jpg' and samples[1].name.endswith('-of-00001-1')


def test_plain_bytes_and_a_field_of_labels(write):
    path = write(pa.table(dict(img=pa.array(CONTENTS[:3], pa.binary()), fine=pa.array([3, 1, 2]))))
    samples, _ = read_table(path, 'fine')
    assert [sample.label for sample in samples] == ['3', '1', '2']
    assert [read_cell(str(path), *sample[2:]) for sample in samples] == CONTENTS[:3]
    assert [sample.label for sample in read_table(path)[0]] == ['', '', '']


def test_bad_columns(write):
    path = write(make_table(LABELS, CONTENTS))
    with pytest.raises(ConfigError, match=r"no column label_field='kind': it has image, label"):
        read_table(path, 'kind')
    table = make_table(LABELS, CONTENTS)
    path = write(table.append_column('depth', table.column('image')))
    with pytest.raises(ConfigError, match='image, depth of the columns image, label, depth may hold the images'):
        read_table(path)
    with pytest.raises(ConfigError, match='none of the columns label may hold the images'):
        read_table(write(pa.table(dict(label=pa.array(LABELS)))))


def test_image_that_is_only_named(write):
    path = write(make_table([0, 1], [None, CONTENTS[0]]))
    samples, _ = read_table(path)
    with pytest.raises(StorageError, match='holds the path of the image only'):
        read_cell(str(path), *samples[0][2:])


def test_damaged_files_and_a_missing_package(tmp_path, monkeypatch):
    for name in ('0.parquet', '0.arrow'):
        (tmp_path / name).write_bytes(b'PAR1 and nothing')
        with pytest.raises(StorageError, match=rf'{name} cannot be read as a table'):
            read_table(tmp_path / name)
    monkeypatch.setitem(__import__('sys').modules, 'pyarrow', None)
    with pytest.raises(MissingPackageError, match=r"pip install 'mmcfmask\[parquet\]'"):
        read_table(tmp_path / '0.parquet')


def test_few_row_groups_are_kept(tmp_path, monkeypatch):
    path = str(write_parquet(tmp_path / '0.parquet', make_table(LABELS, CONTENTS)))
    kept = tables._Kept()
    sizes = [kept.images(path, group).nbytes for group in range(3)]
    assert list(kept.groups) == [(path, 0), (path, 1), (path, 2)]
    monkeypatch.setattr(tables, 'KEPT', sizes[0] + sizes[2])
    kept = tables._Kept()
    for group in (0, 2, 0, 1):
        kept.images(path, group)
    assert list(kept.groups) == [(path, 1)] or list(kept.groups) == [(path, 0), (path, 1)]
    assert sum(group.nbytes for group in kept.groups.values()) <= tables.KEPT
    kept.pid = os.getppid()  # as in a fork
    kept.images(path, 2)
    assert list(kept.groups) == [(path, 2)]
