"""The image pipeline of the configs, made of mmpretrain's own transforms, equals open_clip's pixel by pixel."""

import numpy as np
import open_clip
import pytest
from mmengine.dataset import Compose
from mmpretrain.registry import TRANSFORMS
from PIL import Image

PIPELINE = [
    dict(type='LoadImageFromFile', imdecode_backend='pillow', color_type='color_ignore_orientation'),
    dict(type='ResizeEdge', scale=224, edge='short', backend='pillow', interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=224),
]
SIZES = [
    (333, 500),
    (500, 333),
    (501, 375),
    (375, 500),
    (224, 224),
    (224, 225),
    (225, 224),
    (223, 224),
    (1000, 227),
    (227, 1000),
    (100, 80),
    (301, 1999),
    (299, 448),
]


def photo(width, height):
    """Smooth and noisy parts."""
    rng = np.random.default_rng(width * height)
    y, x = np.mgrid[:height, :width]
    waves = [127 + 90 * np.sin(x / (5 + 9 * channel) + y / 17) for channel in range(3)]
    return np.clip(np.stack(waves, axis=-1) + rng.normal(0, 20, (height, width, 3)), 0, 255).astype(np.uint8)


def compare(path, resize_and_crop=PIPELINE[1:]):
    # Without normalisation, in 0-255.
    transform = open_clip.image_transform(224, is_train=False, mean=(0, 0, 0), std=(1, 1, 1))
    expected = (transform(Image.open(path)).permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    pipeline = Compose([TRANSFORMS.build(dict(transform)) for transform in [PIPELINE[0], *resize_and_crop]])
    rgb = pipeline(dict(img_path=str(path)))['img'][:, :, ::-1]  # loaded as BGR
    np.testing.assert_array_equal(rgb, expected)


@pytest.mark.parametrize('width, height', SIZES)
def test_pipeline_equals_open_clip(tmp_path, width, height):
    Image.fromarray(photo(width, height)).save(tmp_path / 'image.jpg')
    compare(tmp_path / 'image.jpg')
    compare(tmp_path / 'image.jpg', [dict(type='ResizeCenterCrop', image_size=224)])


@pytest.mark.parametrize('size', [(224, 112), (112, 224), (64, 96)])
@pytest.mark.parametrize('width, height', SIZES)
def test_rectangles_are_covered_by_the_image(width, height, size):
    image = photo(width, height)
    crop = TRANSFORMS.build(dict(type='ResizeCenterCrop', image_size=size))
    result = crop(dict(img=image))
    assert result['img'].shape == (*size, 3) and result['img_shape'] == size
    covering = max(size[0] / height, size[1] / width)
    new = [max(wanted, int(covering * side + 1e-9)) for side, wanted in zip((width, height), size[::-1])]
    left, top = (round((side - wanted) / 2) for side, wanted in zip(new, size[::-1]))
    resized = np.asarray(Image.fromarray(image).resize(new, Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(result['img'], resized[top : top + size[0], left : left + size[1]])


@pytest.mark.parametrize('size', [0, -1, True, 2.5, '224', (224,), (1, 2, 3), (224, 0), None])
def test_image_size_must_be_pixels(size):
    with pytest.raises(ValueError, match='image_size=.* must be a number of pixels, or height and width'):
        TRANSFORMS.build(dict(type='ResizeCenterCrop', image_size=size))


def test_greyscale_and_turned_photos(tmp_path):
    image = Image.fromarray(photo(333, 500))
    image.convert('L').save(tmp_path / 'grey.jpg')
    compare(tmp_path / 'grey.jpg')
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation, which CLIP's preprocessing does not look at
    image.save(tmp_path / 'turned.jpg', exif=exif)
    compare(tmp_path / 'turned.jpg')


def test_crop_border():
    crop = TRANSFORMS.build(dict(type='CropBorder'))
    img = np.arange(7 * 9 * 3, dtype=np.uint8).reshape(7, 9, 3)
    results = crop(dict(img=img, img_shape=(7, 9), ori_shape=(7, 9)))
    expected = [[img[y, x].tolist() for x in range(2, 7)] for y in range(2, 5)]
    assert results['img'].tolist() == expected and results['img_shape'] == (3, 5) and results['ori_shape'] == (7, 9)
    assert TRANSFORMS.build(dict(type='CropBorder', border=0))(dict(img=img))['img'].shape == (7, 9, 3)
    with pytest.raises(ValueError, match='tiny.png: 9x4 pixels are too few for a border of 2'):
        crop(dict(img=img[:4], img_path='tiny.png'))
    with pytest.raises(ValueError, match='border=-1 must not be negative'):
        TRANSFORMS.build(dict(type='CropBorder', border=-1))
    assert repr(crop) == 'CropBorder(border=2)'


@pytest.mark.parametrize('width, height', SIZES)
def test_load_resized_image_equals_the_pair_of_transforms(tmp_path, width, height):
    path = tmp_path / 'image.jpg'
    Image.fromarray(photo(width, height)).save(path)
    check_load_resized(path)


def test_load_resized_image_equals_the_pair_in_other_modes_and_formats(tmp_path):
    image = Image.fromarray(photo(100, 80))
    for mode, suffix in [
        ('L', 'jpg'),
        ('CMYK', 'jpg'),
        ('RGBA', 'png'),
        ('LA', 'png'),
        ('P', 'png'),
        ('1', 'png'),
        ('RGB', 'webp'),
    ]:
        image.convert(mode).save(tmp_path / f'{mode}.{suffix}')
        check_load_resized(tmp_path / f'{mode}.{suffix}')
        check_load_resized(tmp_path / f'{mode}.{suffix}', reducing_gap=None if suffix == 'jpg' else 1)


def check_load_resized(path, **kwargs):
    pair = Compose([TRANSFORMS.build(dict(transform)) for transform in PIPELINE[:2]])(dict(img_path=str(path)))
    one = TRANSFORMS.build(dict(type='LoadResizedImage', scale=224, **kwargs))(dict(img_path=str(path)))
    np.testing.assert_array_equal(one['img'], pair['img'])
    assert {name: value for name, value in one.items() if name != 'img'} == {
        name: value for name, value in pair.items() if name != 'img'
    }


def test_reduced_decoding_is_near_and_keeps_the_geometry(tmp_path):
    """A smooth image, moved by nothing: the reduced one differs by little, and most where the gap is smallest."""
    y, x = np.mgrid[:1003, :1301]
    waves = np.stack([127 + 90 * np.sin(x / 41 + channel) * np.cos(y / 37) for channel in range(3)], axis=-1)
    Image.fromarray(waves.astype(np.uint8)).save(tmp_path / 'image.jpg', quality=95)
    exact = TRANSFORMS.build(dict(type='LoadResizedImage', scale=224))(dict(img_path=str(tmp_path / 'image.jpg')))
    for gap in (1, 2):
        near = TRANSFORMS.build(dict(type='LoadResizedImage', scale=224, reducing_gap=gap))(
            dict(img_path=str(tmp_path / 'image.jpg'))
        )
        assert near['img'].shape == exact['img'].shape and near['ori_shape'] == (1003, 1301)
        difference = np.abs(near['img'].astype(int) - exact['img'])
        assert 0 < difference.mean() < 1 and difference.max() < 8


@pytest.mark.parametrize(
    'gap, size, factor',
    [(1, (447, 600), 1), (1, (448, 600), 2), (2, (448, 600), 1), (2, (900, 900), 2), (1, (1800, 3000), 8)],
)
def test_a_jpeg_is_decoded_at_the_smallest_size_that_leaves_the_gap(tmp_path, monkeypatch, gap, size, factor):
    Image.new('RGB', size).save(tmp_path / 'image.jpg')
    sizes = []
    resize = Image.Image.resize
    monkeypatch.setattr(
        Image.Image, 'resize', lambda self, *args, **kwargs: sizes.append(self.size) or resize(self, *args, **kwargs)
    )
    TRANSFORMS.build(dict(type='LoadResizedImage', scale=224, reducing_gap=gap))(
        dict(img_path=str(tmp_path / 'image.jpg'))
    )
    assert sizes == [tuple(-(-side // factor) for side in size)]


def test_settings_of_load_resized_image_are_checked():
    with pytest.raises(ValueError, match='reducing_gap=0.5 must be at least 1'):
        TRANSFORMS.build(dict(type='LoadResizedImage', scale=224, reducing_gap=0.5))
    with pytest.raises(ValueError, match='scale=0'):
        TRANSFORMS.build(dict(type='LoadResizedImage', scale=0))
