"""Pixels against Pillow's ``convert('RGB')``, which torchvision's and CLIP's loaders use; what it gets wrong, against
numpy or refused."""

import os
import struct
import warnings
import zlib
from collections import Counter

import cv2
import numpy as np
import PIL
import pytest
from mmengine.dataset import Compose
from mmengine.logging import MMLogger
from mmpretrain.registry import TRANSFORMS
from PIL import Image, features

from mmcfmask.datasets import FolderDataset
from mmcfmask.datasets.class_folders import sub_folders
from mmcfmask.datasets.images import find_images, left_out_words, read_image, to_rgb, why_unreadable
from mmcfmask.errors import StorageError

RNG = np.random.default_rng(0)
PIXELS = Image.fromarray(RNG.integers(0, 256, (30, 40, 4), dtype=np.uint8))
OTHER = Image.fromarray(RNG.integers(0, 256, (30, 40, 3), dtype=np.uint8))
WIDE = RNG.integers(0, 65536, (30, 40), dtype=np.uint16)
FLOATS = RNG.random((30, 40), dtype=np.float32)
ORDINARY = {
    **{f'{mode}.png': mode for mode in ('RGB', 'RGBA', 'L', 'LA', 'P', '1')},
    **{f'{mode}.jpg': mode for mode in ('RGB', 'L', 'CMYK')},
    **{f'{mode}.tif': mode for mode in ('RGB', 'RGBA', 'L', 'LA', 'P', '1', 'CMYK', 'LAB')},
    **({'YCbCr.tif': 'YCbCr'} if int(PIL.__version__.split('.')[0]) >= 13 else {}),  # Pillow 12 cannot read it
    **{f'{mode}.bmp': mode for mode in ('RGB', 'L', 'P', '1')},
    **{f'{mode}.tga': mode for mode in ('RGB', 'RGBA', 'L')},
    **{f'{mode}.webp': mode for mode in ('RGB', 'RGBA')},
    'RGB.jfif': 'RGB', 'L.gif': 'L', 'P.gif': 'P', 'RGB.ppm': 'RGB', 'L.pgm': 'L', '1.pbm': '1', 'P.dib': 'P',
    **({'RGB.avif': 'RGB', 'RGBA.avif': 'RGBA'} if features.check('avif') else {}),
    **({f'{mode}.jp2': mode for mode in ('RGB', 'RGBA', 'L', 'LA')} if features.check('jpg_2000') else {}),
}  # yapf: disable


def convert(mode):
    return PIXELS.convert('RGB').convert(mode) if mode in ('P', 'LAB', 'YCbCr', 'CMYK', '1') else PIXELS.convert(mode)


def save_odd(folder):
    """Images whose files say more than their mode does."""
    grey, palette = PIXELS.convert('L'), convert('P')
    grey.save(folder / 'grey with a transparent value.png', transparency=int(np.asarray(grey)[0, 0]))
    PIXELS.convert('RGB').save(folder / 'transparent colour.png', transparency=(1, 2, 3))
    palette.save(folder / 'transparent index.png', transparency=3)
    palette.save(folder / 'transparent palette.png', transparency=bytes(range(256)))
    palette.save(folder / 'transparent.gif', transparency=3)
    for name in ('animated.gif', 'animated.png', 'animated.webp'):
        palette.convert('RGB').save(folder / name, save_all=True, append_images=[OTHER], duration=50, loop=0)
    PIXELS.convert('RGB').save(folder / 'pages.tif', save_all=True, append_images=[OTHER])
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ('turned.jpg', 'turned.tif', 'turned.png', 'turned.webp'):
        PIXELS.convert('RGB').save(folder / name, exif=exif)
    PIXELS.convert('RGB').save(folder / 'JPEG in truth.png', 'JPEG')
    cv2.imwrite(str(folder / '16 bits of colour.png'), np.stack([WIDE] * 3, axis=-1))
    return sorted(path.name for path in folder.iterdir())


def published(path):
    with warnings.catch_warnings(), Image.open(path) as image:
        warnings.simplefilter('ignore')
        return np.asarray(image.convert('RGB'))


def transformed(path, *transforms):
    return Compose([TRANSFORMS.build(dict(transform)) for transform in transforms])(dict(img_path=str(path)))['img'][
        :, :, ::-1
    ]


def check(path, expected):
    """By every way to read it."""
    load = dict(type='LoadImageFromFile', imdecode_backend='pillow', color_type='color_ignore_orientation')
    np.testing.assert_array_equal(np.asarray(read_image(path)), expected)
    np.testing.assert_array_equal(transformed(path, load), expected)
    resized = transformed(
        path, load, dict(type='ResizeEdge', scale=20, edge='short', backend='pillow', interpolation='bicubic')
    )
    np.testing.assert_array_equal(transformed(path, dict(type='LoadResizedImage', scale=20)), resized)
    assert why_unreadable(path) is None


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('name', ORDINARY)
def test_pixels_are_those_of_the_published_loader(tmp_path, name):
    convert(ORDINARY[name]).save(tmp_path / name)
    check(tmp_path / name, published(tmp_path / name))


@pytest.mark.filterwarnings('error')
def test_pixels_of_odd_files_are_those_of_the_published_loader(tmp_path):
    names = save_odd(tmp_path)
    assert len(names) == 15
    for name in names:
        check(tmp_path / name, published(tmp_path / name))
    np.testing.assert_array_equal(
        np.asarray(read_image(tmp_path / 'pages.tif')), np.asarray(PIXELS.convert('RGB'))
    )  # the first


@pytest.mark.parametrize('mode', ['PA', 'La', 'RGBa', 'HSV', 'RGBX'])
def test_modes_that_few_files_have(mode):
    image = PIXELS.convert({'PA': 'P', 'La': 'LA', 'RGBa': 'RGBA'}.get(mode, 'RGB')).convert(mode)
    try:
        expected = image.convert('RGB')
    except ValueError:
        with pytest.raises(ValueError):
            to_rgb(image)
    else:
        assert to_rgb(image.copy()).tobytes() == expected.tobytes()


def test_sixteen_bits_of_grey_are_not_white(tmp_path):
    expected = np.repeat((WIDE // 256).astype(np.uint8)[:, :, None], 3, axis=2)
    Image.fromarray(WIDE).save(tmp_path / 'grey.png')
    Image.fromarray(WIDE).save(tmp_path / 'grey.tif')
    (tmp_path / 'grey.pgm').write_bytes(b'P5 40 30 65535\n' + WIDE.astype('>u2').tobytes())
    Image.frombytes('I;16B', (40, 30), WIDE.astype('>u2').tobytes()).save(tmp_path / 'big-endian.tif')
    for name in ('grey.png', 'grey.tif', 'grey.pgm', 'big-endian.tif'):
        check(tmp_path / name, expected)


def tiff(bits, photometric, data):
    """An uncompressed grey TIFF of 40 x 30 pixels; photometric 0: white is zero."""
    tags = {256: 40, 257: 30, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: 30, 279: len(data)}
    entries = b''.join(struct.pack('<HHII', tag, 4, 1, value) for tag, value in tags.items())
    return struct.pack('<2sHI', b'II', 42, 8 + len(data)) + data + struct.pack('<H', len(tags)) + entries + bytes(4)


def test_grey_tiffs_of_twelve_bits_and_where_white_is_zero(tmp_path):
    grey = np.repeat((WIDE // 256).astype(np.uint8)[:, :, None], 3, axis=2)
    first, second = (WIDE[:, part::2].astype(np.uint32) >> 4 for part in (0, 1))
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=-1).astype(np.uint8).tobytes()
    for photometric, expected in (1, grey), (0, 255 - grey):
        for bits, data in (16, WIDE.astype('<u2').tobytes()), (12, packed):
            (tmp_path / f'{bits}.tif').write_bytes(tiff(bits, photometric, data))
            if bits == 16 or photometric:  # Pillow knows no 12 bits where white is zero
                check(tmp_path / f'{bits}.tif', expected)
            else:
                assert 'not in a supported image format' in why_unreadable(tmp_path / f'{bits}.tif')


def test_turned_by_exif_only_where_it_is_asked_for(tmp_path):
    save_odd(tmp_path)
    for name in ('turned.jpg', 'turned.png', 'turned.webp'):
        expected = np.rot90(published(tmp_path / name), -1)
        np.testing.assert_array_equal(
            transformed(tmp_path / name, dict(type='LoadImageFromFile', imdecode_backend='pillow')), expected
        )


TRUNCATED = ('truncated.png', 'truncated.jpg', 'truncated.gif', 'truncated.tif', 'truncated.webp')


def save_broken(folder):
    """Files that no pixels can be read of, and why."""
    Image.fromarray(FLOATS).save(folder / 'floats.tif')
    Image.fromarray(WIDE.astype(np.int32)).save(folder / 'integers.tif')
    (folder / 'floats.pfm.tif').write_bytes(b'Pf\n40 30\n-1.0\n' + FLOATS.tobytes())
    for name in TRUNCATED:
        OTHER.save(folder / name)
        (folder / name).write_bytes((folder / name).read_bytes()[:-900])
    (folder / 'empty.jpg').touch()
    (folder / 'text.jpg').write_text('not an image')
    (folder / 'program.jpg').write_text(
        '%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(/tmp/x) (w) file\n'
    )
    header = bytearray((folder / 'truncated.png').read_bytes())
    header[16:24] = (20000).to_bytes(4, 'big') * 2
    header[29:33] = zlib.crc32(header[12:29]).to_bytes(4, 'big')
    (folder / 'bomb.png').write_bytes(header)
    os.mkfifo(folder / 'pipe.jpg')
    (folder / 'folder.jpg').mkdir()
    return {
        'floats.tif': 'floating-point numbers, and nothing says which values are black and white',
        'integers.tif': '32-bit integers',
        'floats.pfm.tif': 'floating-point',
        'empty.jpg': 'the file is empty',
        'text.jpg': 'not in a supported image format',
        'program.jpg': 'not in a supported image format',
        'bomb.png': '400000000 pixels|20000 x 20000 pixels',
        'pipe.jpg': 'not a regular file',
        'folder.jpg': 'not a regular file',
        'missing.jpg': 'No such file',
        **dict.fromkeys(TRUNCATED, ''),
    }


def test_what_cannot_be_read_is_refused_by_path(tmp_path):
    for name, reason in save_broken(tmp_path).items():
        for load in (
            dict(type='LoadImageFromFile', imdecode_backend='pillow', color_type='color_ignore_orientation'),
            dict(type='LoadResizedImage', scale=20),
        ):
            with pytest.raises(StorageError, match=f'{name} cannot be read as an image .*({reason})'):
                transformed(tmp_path / name, load)
        assert name in why_unreadable(tmp_path / name)


def test_own_limit_of_pixels(tmp_path, monkeypatch):
    """Other packages set Pillow's to None."""
    save_broken(tmp_path)
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', None)
    with pytest.raises(
        StorageError, match='bomb.png cannot be read .*20000 x 20000 pixels are more than the 178,956,970 allowed'
    ):
        read_image(tmp_path / 'bomb.png')


# which files count
# -----------------------------------------------------------------------------------------------------------


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_hidden_files_and_folders_at_any_depth(tmp_path):
    touch(
        tmp_path,
        'a.png',
        'deep/er/b.JFIF',
        '.hidden.png',
        '._a.png',
        '.ipynb_checkpoints/a-checkpoint.png',
        'deep/.git/c.png',
        'deep/@eaDir/a.png/thumb.jpg',
        '__MACOSX/a.png',
        'Thumbs.db',
    )
    left_out = Counter()
    assert find_images(tmp_path, left_out=left_out) == ['a.png', 'deep/er/b.JFIF'] and not left_out


def test_what_is_left_out_is_counted(tmp_path):
    touch(tmp_path, 'a.png', 'b.HEIC', 'c.heic', 'sub/notes.txt', 'LICENSE')
    os.mkfifo(tmp_path / 'pipe.png')
    (tmp_path / 'lost.png').symlink_to(tmp_path / 'nothing.png')
    (tmp_path / 'd.png').symlink_to(tmp_path / 'a.png')
    (tmp_path / 'e.png').symlink_to(tmp_path / 'f.png')
    (tmp_path / 'f.png').symlink_to(tmp_path / 'e.png')
    left_out = Counter()
    assert find_images(tmp_path, left_out=left_out) == ['a.png', 'd.png']
    assert left_out == {'.heic': 2, '.txt': 1, 'none': 1, '': 4}
    words = '4 not a regular file, 2 .heic, 1 without extension, 1 .txt'
    assert left_out_words(left_out) == f'8 files ({words})'
    left_out.update(f'.{number}' for number in range(100))
    assert left_out_words(left_out) == f'108 files ({words}, 1 .0, 1 .1, 1 .2, 1 .3, 96 others)'
    assert sub_folders(tmp_path) == ['sub']


def test_every_real_folder_is_visited_once(tmp_path):
    root = tmp_path / 'set'
    touch(root, 'cat/1.png', 'cat/sub/2.png', 'dog/3.png')
    touch(tmp_path, 'elsewhere/4.png', 'elsewhere/more/5.png')
    (root / 'cat/sub/up').symlink_to(root / 'cat')
    (root / 'cat/whole').symlink_to(root)
    (root / 'cat/above').symlink_to(tmp_path)
    (root / 'cat/here').symlink_to('.')
    (root / 'cat/dogs').symlink_to(root / 'dog')  # they count as dogs
    (root / 'cat/others').symlink_to(tmp_path / 'elsewhere')
    (root / 'cat/others again').symlink_to(tmp_path / 'elsewhere')
    (tmp_path / 'elsewhere/more/back').symlink_to(tmp_path / 'elsewhere')
    (root / 'pets').symlink_to(tmp_path / 'elsewhere')  # a class folder that lies elsewhere
    (root / 'loop').symlink_to(root)
    dataset = FolderDataset(str(root))
    assert dataset.metainfo['classes'] == ('cat', 'dog', 'pets')
    names = [os.path.relpath(dataset.get_data_info(i)['img_path'], root) for i in range(len(dataset))]
    assert names == [
        'cat/1.png',
        'cat/others/4.png',
        'cat/others/more/5.png',
        'cat/sub/2.png',
        'dog/3.png',
        'pets/4.png',
        'pets/more/5.png',
    ]


def test_dataset_says_what_it_leaves_out(tmp_path, monkeypatch):
    touch(tmp_path, 'cat/1.png', 'cat/2.heic', 'dog/3.png', 'dog/4.heic', 'dog/notes.txt')
    messages = []
    monkeypatch.setattr(MMLogger.get_current_instance(), 'log', lambda level, message, *args: messages.append(message))
    dataset = FolderDataset(str(tmp_path))
    assert dataset.left_out == {'.heic': 2, '.txt': 1}
    assert messages[0].startswith(f'{tmp_path}: ignores 3 files (2 .heic, 1 .txt) that are not images')
    touch(tmp_path, 'emu/5.heic')
    with pytest.raises(
        ValueError, match=r'no images in the 1 class folders emu; 4 files \(3 .heic, 1 .txt\) are not images'
    ):
        FolderDataset(str(tmp_path))


def test_folder_that_cannot_be_read(tmp_path):
    with pytest.raises(StorageError, match="cannot read the folder '.*nowhere'"):
        find_images(tmp_path / 'nowhere')


def test_names_that_are_no_utf8(tmp_path):
    odd = os.fsdecode(b'caf\xe9.png')
    for folder in ('cat', os.fsdecode(b'\xe9t\xe9')):
        (tmp_path / folder).mkdir()
        for name in ('a.png', 'b.png', 'c.png', odd):
            OTHER.save(tmp_path / folder / name)
    load = [dict(type='LoadImageFromFile', imdecode_backend='pillow'), dict(type='PackInputs')]
    parts = [
        FolderDataset(str(tmp_path), holdout=dict(fraction=0.5, part=part), pipeline=load, skip_unreadable=True)
        for part in ('train', 'held_out')
    ]
    found = [part[i]['data_samples'].img_path for part in parts for i in range(len(part))]
    assert len(found) == 8 and sum(path.endswith(odd) for path in found) == 2
