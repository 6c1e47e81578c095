import tarfile
from concurrent.futures import ThreadPoolExecutor

import pytest
from shards import image_bytes, write_tar

from mmcfmask.datasets.shards import tars
from mmcfmask.datasets.shards.samples import Sample
from mmcfmask.datasets.shards.tars import file_name, read_member, read_tar, split_name, tar_name
from mmcfmask.errors import ConfigError, StorageError


def test_split_name_is_that_of_webdataset():
    webdataset = pytest.importorskip('webdataset', reason='webdataset is not installed')
    for name in ('a.jpg', 'x.y/a.b.jpg', 'train/n01/7.seg.png', 'x/a.b/c.JPEG'):
        assert split_name(name) == webdataset.tariterators.base_plus_ext(name)


def test_samples_with_their_places(tmp_path):
    members = [
        ('0.png', b'first'),
        ('0.cls', b'003\n'),
        ('note.txt', b'no image'),
        ('1.cls', b'4'),
        ('1.png', b'second'),
    ]
    path = write_tar(tmp_path / '0.tar', members)
    samples = read_tar(path)
    assert [(sample.name, sample.label) for sample in samples] == [('0.png', '3'), ('1.png', '4')]
    assert [read_member(str(path), *sample[2:]) for sample in samples] == [b'first', b'second']
    with tarfile.open(path) as archive:
        assert samples[1] == Sample('1.png', '4', archive.getmember('1.png').offset_data, 6)


@pytest.mark.parametrize(
    ('extension', 'content', 'field', 'label'),
    [
        ('cls', '7', None, '7'),
        ('json', '{"wnid": "n01440764", "filename": "x"}', None, 'n01440764'),
        ('json', '{"label": 12.0}', None, '12'),
        ('json', '{"label": 12, "kind": "dog"}', 'kind', 'dog'),
        ('kind', ' dog\n', 'kind', 'dog'),
        ('txt', 'a photo of a dog', None, ''),
    ],
)
def test_labels(tmp_path, extension, content, field, label):
    path = write_tar(tmp_path / '0.tar', [('5.jpg', b''), (f'5.{extension}', content.encode())])
    assert [sample.label for sample in read_tar(path, field)] == [label]


def test_names_with_several_dots_and_hidden_files(tmp_path):
    names = ('cat/holiday.1.jpg', 'cat/holiday.2.jpg', '._1.jpg', '.cache/2.jpg', './dog/3.jpg')
    path = write_tar(tmp_path / '0.tar', [(name, b'') for name in names])
    assert [sample.name for sample in read_tar(path)] == ['cat/holiday.1.jpg', 'cat/holiday.2.jpg', 'dog/3.jpg']


def test_bad_samples(tmp_path):
    path = write_tar(tmp_path / '0.tar', [('7.jpg', b''), ('7.seg.png', b''), ('7.cls', b'1')])
    with pytest.raises(ConfigError, match=r'0\.tar: the sample 7 has the images 7\.jpg, 7\.seg\.png'):
        read_tar(path)
    path = write_tar(tmp_path / '1.tar', [('7.jpg', b''), ('7.json', b'{"label"')])
    with pytest.raises(ConfigError, match=r'1\.tar: 7\.json is not valid JSON'):
        read_tar(path)
    path = write_tar(tmp_path / '2.tar', [('7.jpg', b''), ('7.cls', b'1')])
    with pytest.raises(ConfigError, match=r"the sample 7 has no label_field='kind': it has jpg, cls"):
        read_tar(path, 'kind')


def test_damaged_files(tmp_path):
    path = write_tar(tmp_path / '0.tar', [('7.png', image_bytes(0))])
    whole = path.read_bytes()
    for content, message in (
        (whole[:700], r'0\.tar is (cut off within 7\.png|not a whole)'),
        (b'', 'not a whole, uncompressed tar file'),
        (b'\x1f\x8b' + bytes(2000), 'not a whole, uncompressed tar file'),
    ):
        path.write_bytes(content)
        with pytest.raises(StorageError, match=message):
            read_tar(path)
    with pytest.raises(StorageError, match='shorter than its index says'):
        read_member(str(write_tar(tmp_path / '1.tar', [('7.png', b'')])), 512, 10**6)


def test_names_of_files_come_back():
    for name in ('a/b.c/d.e.f.jpg', 'plain.png', '100%.jpg', 'x%2E.jpg', 'a/%25.y.jpg'):
        assert file_name(tar_name(name)) == name
        assert split_name(tar_name(name))[1].count('.') == 0
    assert tar_name('cat/IMG.2019.jpg') == 'cat/IMG%2E2019.jpg' and tar_name('cat/7.jpg') == 'cat/7.jpg'


def test_many_threads_read_one_file(tmp_path):
    members = [(f'{number}.png', bytes([number % 256]) * (1000 + number)) for number in range(300)]
    path = write_tar(tmp_path / '0.tar', members)
    samples = read_tar(path)
    for _ in range(5):
        tars._open.cache_clear()
        with ThreadPoolExecutor(16) as pool:
            found = pool.map(lambda sample: read_member(str(path), *sample[2:]), samples)
            assert list(found) == [content for _, content in members]
