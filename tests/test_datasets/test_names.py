"""Class lists as people have them, and which names are the same."""

import random
import unicodedata

import pytest

from mmcfmask.datasets.names import composed, first_difference, in_order, plain_name, read_names, read_text
from mmcfmask.errors import ConfigError, MissingFileError
from mmcfmask.models.class_embeddings.text import resolve_classnames

NAMES = ['café', 'dog', 'sea lion']
MAC = unicodedata.normalize('NFD', 'café')


@pytest.mark.parametrize(
    'raw',
    [
        'café\ndog\nsea lion\n'.encode(),
        b'\xef\xbb\xbfcaf\xc3\xa9\r\ndog\r\nsea lion',
        'café\rdog\rsea lion'.encode(),
        '\n café \n\n\ndog\t\n\n sea lion\n\n'.encode(),
        f'{MAC}\ndog\nsea lion'.encode(),
        'café\r\ndog\r\nsea lion\r\n'.encode('utf-16'),
    ],
)
def test_class_lists(tmp_path, raw):
    (tmp_path / 'classes.txt').write_bytes(raw)
    assert read_names(tmp_path / 'classes.txt') == NAMES == resolve_classnames(str(tmp_path / 'classes.txt'))


@pytest.mark.parametrize(
    'raw, message',
    [
        (b'', 'is empty: write one class name per line'),
        (b'\n \n', 'is empty'),
        (b'cat,dog,emu\n', "line 1: 'cat,dog,emu' is more than a class name: write one name per line"),
        (b'cat,\ndog,\n', "line 1: 'cat,' is more than a class name"),
        (b'cat\n\ndog;\n', "line 3: 'dog;'"),
        (b'0,cat\n1,dog\n', "line 1: '0,cat' begins with the number of the class"),
        (b'1\tcat\n2\tdog\n3\temu\n', 'begins with the number'),
        ('Käfer'.encode('latin-1'), 'not UTF-8 text .*: save it as UTF-8'),
    ],
)
def test_what_is_no_class_list(tmp_path, raw, message):
    (tmp_path / 'classes.txt').write_bytes(raw)
    with pytest.raises(ConfigError, match=f'classes.txt.* {message}'):
        read_names(tmp_path / 'classes.txt')


def test_names_with_commas_and_numbers(tmp_path):
    (tmp_path / 'classes.txt').write_text('tench, Tinca tinca\n707\n1, 2 or many\n')
    assert read_names(tmp_path / 'classes.txt') == ['tench, Tinca tinca', '707', '1, 2 or many']
    with pytest.raises(MissingFileError, match="the file .*gone.txt' does not exist"):
        read_text(tmp_path / 'gone.txt')


def test_names_that_stand_twice(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr('mmcfmask.datasets.names.print_log', lambda text, *args, **kwargs: said.append(text))
    (tmp_path / 'classes.txt').write_text(f'café\ndog\n{MAC}\n')
    assert read_names(tmp_path / 'classes.txt') == ['café', 'dog', 'café']
    assert len(said) == 1 and '1 class names are duplicates (café)' in said[0]


@pytest.mark.parametrize(
    'names',
    [
        [str(number) for number in range(12)],
        [str(number) for number in range(1, 13)],
        [f'class_{number}' for number in range(12)],
        [f'{number}_bird' for number in (1, 2, 10, 100)],
        [f'{number:03d}.Albatross' for number in range(12)],
        ['DC-10', 'DC-3', 'MD-11'],
        ['Bird', 'Dog', 'cat'],
        ['n01440764', 'n01443537', 'n15075141'],
        ['b', 'ca', MAC, 'cb', 'd'],
    ],
)
def test_order(names):
    """Numbers by their value; anything else as text, an accent as part of its letter."""
    if MAC in names:
        names = sorted(map(composed, names))
    shuffled = [unicodedata.normalize('NFD', name) for name in random.Random(0).sample(names, len(names))]
    assert list(map(composed, in_order(shuffled))) == names


def test_empty_names():
    for wrong in (['cat', ''], ['cat', ' \t']):
        with pytest.raises(ConfigError, match='class_weights.classnames: class name 2 of 2 is empty'):
            resolve_classnames(wrong)


def test_plain_names():
    assert plain_name('Sports_Car') == plain_name('sports-car ') == 'sports car' and plain_name(MAC) == 'café'
    different = ['C', 'C++', '😀', '😢', 'कि', 'की', '---']
    assert len(set(map(plain_name, different))) == len(different)


def test_difference():
    assert first_difference(['Cat', MAC], ['cat', 'café']) is None
    assert first_difference(['cat', 'dog'], ['dog', 'cat']) == 0 and first_difference(['cat', 'dog'], ['cat']) == 1
