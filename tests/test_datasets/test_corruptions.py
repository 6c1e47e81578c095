"""Images that are corrupted when they are read. What the package of the extra computes is compared with the formulas
of the publication where that package is installed; everything else runs without it."""

import io
import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import trees
from mmpretrain.registry import DATASETS, TRANSFORMS
from PIL import Image

from mmcfmask.datasets import Corrupt
from mmcfmask.datasets.imagenet_shifts import ALL_CORRUPTIONS
from mmcfmask.datasets.overlap import identify_images
from mmcfmask.errors import ConfigError, MissingPackageError
from mmcfmask.evaluation import describe_set

LOAD = dict(type='LoadImageFromFile', imdecode_backend='pillow', color_type='color_ignore_orientation')
PACK = dict(type='PackInputs', meta_keys=('sample_idx', 'img_path', 'corruption', 'severity'))


def photo(height=48, width=64):
    """A smooth BGR image without black or white, so that contrast and noise are not cut off everywhere."""
    y, x = np.mgrid[:height, :width]
    waves = [110 + 60 * np.sin(x / 9 + channel) * np.cos(y / 7) + 5 * channel for channel in range(3)]
    return np.stack(waves, axis=-1).astype(np.uint8)


@pytest.fixture
def fake(monkeypatch):
    """In place of the package: functions that show what they get."""

    def noise(image, severity=1):
        return np.array(image) * 0.0 + np.random.randint(0, 200) + severity

    def glass_blur(image, severity=1, seed=None):
        return np.array(image) * 0.0 + seed % 251

    functions = dict.fromkeys(ALL_CORRUPTIONS, noise)
    functions.update(glass_blur=glass_blur, contrast=lambda image, severity=1: np.array(image) + 0.9)
    monkeypatch.setitem(sys.modules, 'imagecorruptions', SimpleNamespace(corruption_dict=functions))


def corrupted(name, severity, image=None, seed=0):
    image = photo() if image is None else image
    return TRANSFORMS.build(dict(type='Corrupt', corruption=name, severity=severity, seed=seed))(dict(img=image))['img']


# without the package
# --------------------------------------------------------------------------------------------------------------------


def test_functions_get_rgb_and_are_cut_off(fake):
    """An image of one more than it was, cut off: the same pixels, in BGR again, though the function saw RGB."""
    image, before = photo(), photo()
    assert np.array_equal(corrupted('contrast', 1, image), image) and np.array_equal(image, before)
    seen = []
    step = Corrupt('contrast', 1)
    step.functions = dict(contrast=lambda image, severity: seen.append(np.array(image)) or image)
    step(dict(img=image))
    assert np.array_equal(seen[0], image[:, :, ::-1])


@pytest.mark.parametrize('name', ['fog', 'glass_blur'])
def test_noise_follows_from_seed_image_corruption_and_severity(fake, name):
    first = corrupted(name, 3)
    np.random.rand(5)
    assert np.array_equal(first, corrupted(name, 3))
    changed = photo()
    changed[0, 0, 0] += 1
    others = [corrupted(name, 3, seed=1), corrupted(name, 3, changed), corrupted(name, 4)]
    assert all(int(other[0, 0, 0]) - int(first[0, 0, 0]) not in (0, 1) for other in others)


def test_random_numbers_of_others_are_left_alone(fake):
    np.random.seed(7)
    expected = np.random.rand(4)
    np.random.seed(7)
    found = []
    for _ in range(4):
        corrupted('fog', 2)
        found.append(np.random.rand())
    assert found == expected.tolist()


@pytest.mark.parametrize(
    'settings, message',
    [
        (dict(corruption='fogg', severity=1), r'Corrupt: corruptions=.*fogg \(near fog\); choose from'),
        (dict(corruption='fog', severity=6), r'severities=\[6\] must be a selection of 1, 2, 3, 4, 5'),
        (dict(corruption='fog', severity=True), 'must be a selection'),
        (dict(corruption='fog', severity=math.nan), 'must be a selection'),
        (dict(corruption='fog'), "corruption='fog', severity=None: give both, or neither"),
        (dict(severity=2), 'give both, or neither'),
    ],
)
def test_bad_settings(fake, settings, message):
    with pytest.raises(ConfigError, match=message):
        TRANSFORMS.build(dict(type='Corrupt', **settings))


def test_bad_images(fake):
    for image, shown in (
        (photo(31, 64), r'uint8 of shape \(31, 64, 3\)'),
        (photo() / 255, 'float64'),
        (photo()[..., 0], '64'),
    ):
        with pytest.raises(
            ConfigError, match=f'a.jpg: it takes uint8 colour images of at least 32x32 pixels, .*{shown}'
        ):
            Corrupt('fog', 1)(dict(img=image, img_path='a.jpg'))
    with pytest.raises(ConfigError, match='a.jpg has no corruption and severity: set both in the transform'):
        Corrupt()(dict(img=photo(), img_path='a.jpg'))


def test_without_the_package_its_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, 'imagecorruptions', None)  # as if it were not installed
    for build in (
        lambda: Corrupt('fog', 1),
        lambda: DATASETS.build(dict(type='CorruptedImageNetDataset', data_root='x')),
    ):
        with pytest.raises(MissingPackageError, match=r"imagecorruptions-imaug: pip install 'mmcfmask\[corruptions\]'"):
            build()


def test_the_original_package_is_refused(monkeypatch):
    """It has the same module name, but some of its noise cannot be seeded, and it breaks with NumPy 2."""
    functions = dict(glass_blur=lambda image, severity=1: image)
    monkeypatch.setitem(sys.modules, 'imagecorruptions', SimpleNamespace(corruption_dict=functions))
    with pytest.raises(MissingPackageError, match='is not that of imagecorruptions-imaug: pip uninstall'):
        Corrupt('fog', 1)
    monkeypatch.setitem(sys.modules, 'imagecorruptions', SimpleNamespace())
    with pytest.raises(MissingPackageError, match='is not that of imagecorruptions-imaug: pip uninstall'):
        Corrupt('fog', 1)


# the dataset
# --------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    return trees.make_imagenet(tmp_path_factory.mktemp('sets') / 'imagenet', ['val'])


def build(root, **settings):
    return DATASETS.build(
        dict(type='CorruptedImageNetDataset', data_root=str(root), **{'split_dir': 'val', 'pipeline': [], **settings})
    )


def test_every_image_comes_once_per_corruption_and_severity(root, fake):
    pipeline = [LOAD, dict(type='Resize', scale=40), dict(type='Corrupt'), PACK]
    dataset = build(root, corruptions=['snow', 'fog'], severities=[2, 5], pipeline=pipeline)
    assert len(dataset) == 4 * 1000 and dataset.metainfo['label_groups'] is None
    for index, name, severity in ((0, 'snow', 2), (1000, 'snow', 5), (2001, 'fog', 2), (3999, 'fog', 5)):
        item = dataset[index]
        sample = item['data_samples']
        assert (sample.corruption, sample.severity, int(sample.gt_label)) == (name, severity, index % 1000)
        assert sample.sample_idx == index
        clean = dict(img_path=sample.img_path)
        for step in dataset.pipeline.transforms[:2]:
            clean = step(clean)
        expected = corrupted(name, severity, clean['img'])
        assert np.array_equal(item['inputs'].numpy().transpose(1, 2, 0), expected)


def test_it_says_that_it_is_not_the_published_set(root, fake):
    described = describe_set(build(root, corruptions=['fog'], severities=[1, 2]))
    assert described['notes'] == [
        'made here by imagecorruptions-imaug, not the published ImageNet-C',
        'incomplete: 2,000 of 100,000 images',
    ]
    held_out = build(root, corruptions=['fog', 'snow'], severities=[3], holdout=dict(size=100, seed=0, part='held_out'))
    assert len(held_out) == 2 * 100 and held_out.metainfo['protocol']['images'] is None
    assert held_out.metainfo['notes'][1] == 'held out of an incomplete set: 2,000 of 100,000 images'
    paths = [held_out.get_data_info(index)['img_path'] for index in range(200)]
    assert paths[:100] == paths[100:]


def test_class_folders_without_a_split(root, fake):
    dataset = build(root / 'val', split_dir='', corruptions=['fog'], severities=[1])
    assert len(dataset) == 1000 and 'protocol' not in dataset.metainfo


def test_the_pipeline_must_corrupt(root, fake):
    for pipeline in ([LOAD, PACK], [LOAD, dict(type='Corrupt', corruption='fog', severity=1), PACK]):
        with pytest.raises(ConfigError, match=r"must have a dict\(type='Corrupt'\) after the crop"):
            build(root, corruptions=['snow'], severities=[1], pipeline=pipeline)
    with pytest.raises(ConfigError, match=r'CorruptedImageNetDataset: corruptions=.*fogg \(near fog\)'):
        build(root, corruptions=['fogg'])


def test_the_images_are_known_as_those_of_imagenet(root, fake):
    """Or images that choose the checkpoint could hide among them."""
    plain = dict(type='ImageNetDataset', data_root=str(root), split_dir='val')
    ours = dict(
        plain, type='CorruptedImageNetDataset', corruptions=['fog'], pipeline=[LOAD, dict(type='Corrupt'), PACK]
    )
    assert set(identify_images(ours)) == set(identify_images(plain))


# with the package
# --------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def package():
    pytest.importorskip('imagecorruptions', reason="needs pip install 'mmcfmask[corruptions]'")


@pytest.mark.parametrize('name', ALL_CORRUPTIONS)
def test_every_corruption_is_deterministic_and_grows(package, name):
    image = np.kron(photo(32, 32), np.ones((7, 7, 1), np.uint8))  # blocks that pixelate does not keep
    results = [corrupted(name, severity, image) for severity in (1, 5)]
    assert all(result.shape == image.shape and result.dtype == np.uint8 for result in results)
    assert np.array_equal(results[1], corrupted(name, 5, image))
    mild, strong = (np.abs(result.astype(float) - image).mean() for result in results)
    assert mild > 0 and strong > 0
    assert mild < strong or name in ('frost', 'elastic_transform')  # other pictures of frost, finer waves


@pytest.mark.parametrize('severity', [1, 2, 3, 4, 5])
def test_contrast_equals_the_formula(package, severity):
    """Every channel is drawn to its mean, by the published factors."""
    image, factor = photo(), (0.4, 0.3, 0.2, 0.1, 0.05)[severity - 1]
    expected = np.empty_like(image)
    for channel in range(3):
        values = image[:, :, channel] / 255
        mean = values.sum() / values.size
        for y, x in np.ndindex(values.shape):
            expected[y, x, channel] = int(min(max((values[y, x] - mean) * factor + mean, 0), 1) * 255)
    assert np.abs(corrupted('contrast', severity, image).astype(int) - expected).max() <= 1  # at whole numbers
    assert (corrupted('contrast', severity, image) == expected).mean() > 0.99


@pytest.mark.parametrize('severity', [1, 3, 5])
def test_gaussian_noise_has_the_published_deviation(package, severity):
    """On grey, where little is cut off: the quantiles of a normal distribution, and no two pixels alike."""
    deviation = {1: 0.08, 3: 0.18, 5: 0.38}[severity]
    noise = corrupted('gaussian_noise', severity, np.full((224, 224, 3), 128, np.uint8)).astype(float) / 255
    for quantile, place in ((-1, 0.1587), (-0.5, 0.3085), (0, 0.5), (0.5, 0.6915), (1, 0.8413)):
        assert np.quantile(noise, place) == pytest.approx(128 / 255 + quantile * deviation, abs=0.006)
    assert abs(np.corrcoef(noise[:, 1:].ravel(), noise[:, :-1].ravel())[0, 1]) < 0.02
    assert abs(np.corrcoef(noise[..., 0].ravel(), noise[..., 1].ravel())[0, 1]) < 0.02


@pytest.mark.parametrize('severity', [1, 2, 3, 4, 5])
def test_jpeg_has_the_published_quality(package, severity):
    image, file = photo(), io.BytesIO()
    Image.fromarray(image[:, :, ::-1]).save(file, 'JPEG', quality=(25, 18, 15, 10, 7)[severity - 1])
    expected = np.asarray(Image.open(file))[:, :, ::-1]
    assert np.array_equal(corrupted('jpeg_compression', severity, image), expected)


def test_the_version_is_recorded(package):
    assert repr(Corrupt('fog', 3, seed=5)).startswith(
        "Corrupt(corruption='fog', severity=3, seed=5; imagecorruptions-imaug "
    )
    assert repr(Corrupt()).startswith('Corrupt(seed=0; imagecorruptions-imaug ')
