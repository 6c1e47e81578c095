"""Labels, classes and layouts of ImageNet and its shifts. Every trap of the published protocols has a test that fails
in it."""

import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import open_clip
import pytest
import trees
from mmengine.config import Config
from mmpretrain.registry import DATASETS
from PIL import Image

from mmcfmask.datasets import MissingSetError
from mmcfmask.datasets.imagenet_labels import (
    IMAGENET_WNIDS,
    MAPPINGS,
    read_objectnet_mapping,
)
from mmcfmask.errors import StorageError
from mmcfmask.evaluation import describe_set

CONFIGS = Path(__file__).parents[2] / 'configs'
REAL = Path(os.environ.get('MMCFMASK_TEST_DATA', '/nowhere'))


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    """All sets under one folder, by the names of their archives."""
    root = tmp_path_factory.mktemp('sets')
    trees.make_imagenet(root / 'imagenet')
    trees.make_v2(root / 'imagenetv2-matched-frequency-format-val')
    trees.make_r(root / 'imagenet-r')
    trees.make_a(root / 'imagenet-a')
    trees.make_tree(root / 'sketch', IMAGENET_WNIDS)
    trees.make_objectnet(root / 'objectnet-1.0')
    trees.make_corruptions(root / 'imagenet-c')
    return root


def build(name, root, **kwargs):
    return DATASETS.build(dict(type=name, data_root=str(root), **kwargs))


def labels_by_folder(dataset):
    items = [dataset.get_data_info(index) for index in range(len(dataset))]
    return {Path(item['img_path']).parent.name: item['gt_label'] for item in items}


def test_duplicate_class_names_are_kept(root):
    """Merged into a set or a dict, 'missile' and 'sunglasses' would shift all labels behind them."""
    for name in ('ImageNetV2Dataset', 'ImageNetSketchDataset'):
        classes = build(name, root).metainfo['classes']
        assert len(classes) == 1000 and classes == tuple(open_clip.IMAGENET_CLASSNAMES)
        assert classes.count('missile') == 2 and classes.count('sunglasses') == 2


# labels
# --------------------------------------------------------------------------------------------------------------------


def test_v2_folders_are_numbers(root):
    """Sorted as strings, "10" comes second and 989 of 1000 classes are wrong."""
    labels = labels_by_folder(build('ImageNetV2Dataset', root))
    assert labels == {str(number): number for number in range(1000)}
    metainfo = build('ImageNetV2Dataset', root).metainfo
    assert metainfo['label_groups'] is None and 'notes' not in metainfo


def test_another_variant_of_v2_is_noted(tmp_path):
    trees.make_tree(tmp_path / 'imagenetv2-top-images-format-val', map(str, range(1000)))
    described = describe_set(build('ImageNetV2Dataset', tmp_path, variant='top-images'))
    assert described['notes'][0] == 'the variant top-images, not matched-frequency, which is usually reported'


@pytest.mark.parametrize('name, num', [('ImageNetRDataset', 200), ('ImageNetADataset', 200)])
def test_labels_of_subsets_point_at_their_logits(root, name, num):
    dataset = build(name, root)
    classes, groups = dataset.metainfo['classes'], dataset.metainfo['label_groups']
    labels = labels_by_folder(dataset)
    assert len(classes) == len(groups) == len(labels) == num
    for wnid, label in labels.items():
        assert groups[label] == (IMAGENET_WNIDS.index(wnid),) and classes[label] == trees.class_name(wnid)
    assert sorted(labels.values()) == list(range(num))


def test_sketch(root):
    labels = labels_by_folder(build('ImageNetSketchDataset', root))
    assert labels == {wnid: label for label, wnid in enumerate(IMAGENET_WNIDS)}


def test_every_set_has_its_protocol(root):
    for name, images, classes in (
        ('ImageNetV2Dataset', 10_000, 1000),
        ('ImageNetRDataset', 30_000, 200),
        ('ImageNetADataset', 7_500, 200),
        ('ImageNetSketchDataset', 50_889, 1000),
        ('ObjectNetDataset', 18_574, 113),
    ):
        protocol = build(name, root).metainfo['protocol']
        assert (protocol['images'], protocol['num_classes']) == (images, classes) and protocol['source'].startswith(
            'https://'
        )
    for split, images in (('val', 50_000), ('train', 1_281_167)):
        assert build('ImageNetDataset', root, split_dir=split).metainfo['protocol']['images'] == images
    part = build('ImageNetDataset', root, split_dir='train', holdout=dict(size=9, part='held_out'))
    assert part.metainfo['protocol']['images'] is None  # nothing was published about our hold-out
    some = build('ImageNetCDataset', root, corruptions=['contrast'], severities=[1, 5])
    assert some.metainfo['protocol']['images'] == 2 * 50_000


# ObjectNet
# -----------------------------------------------------------------------------------------------------------------


def test_objectnet_many_to_one(tmp_path):
    truth = trees.make_objectnet(tmp_path / 'objectnet-1.0', names=('a.png', 'b.png'))
    dataset = build('ObjectNetDataset', tmp_path)
    groups = dataset.metainfo['label_groups']
    assert len(groups) == 113 and Counter(map(len, groups)) == {1: 104, 2: 6, 3: 3}
    assert len(dataset) == 2 * 113  # the other 200 folders are there, known, and left out
    labels = labels_by_folder(dataset)
    assert {folder: groups[label] for folder, label in labels.items()} == truth
    folder = next(folder for folder in truth if folder.endswith('_closed'))
    assert (
        dataset.metainfo['classes'][labels[folder]]
        == folder.replace('_closed', ' (closed)').replace('_', ' ').capitalize()
    )


def test_objectnet_needs_only_the_folders_that_count(tmp_path):
    truth = trees.make_objectnet(tmp_path / 'objectnet')
    images = tmp_path / 'objectnet/images'
    spare, needed = sorted(path.name for path in images.iterdir() if path.name not in truth)[0], sorted(truth)[5]
    (images / spare).unlink()
    assert len(build('ObjectNetDataset', tmp_path)) == 113
    (images / 'things_7_closed').mkdir()
    (images / needed).unlink()
    with pytest.raises(
        ValueError,
        match=rf'1 of 113 class folders are missing: {needed}; '
        r'1 folders are not known classes: things_7_closed \(near thing_7_closed\)',
    ):
        build('ObjectNetDataset', tmp_path)


def test_objectnet_mappings_elsewhere(tmp_path):
    trees.make_objectnet(tmp_path / 'objectnet-1.0')
    shutil.move(tmp_path / 'objectnet-1.0/mappings', tmp_path / 'maps')
    with pytest.raises(
        FileNotFoundError,
        match=r'mappings lacks folder_to_objectnet_label.json, objectnet_to_imagenet_1k.json.*'
        r'objectnet.dev, mappings/ in objectnet-1.0.zip',
    ):
        build('ObjectNetDataset', tmp_path)
    assert len(build('ObjectNetDataset', tmp_path, mappings=str(tmp_path / 'maps'))) == 113
    for path in (tmp_path / 'maps').iterdir():
        shutil.move(path, tmp_path / 'objectnet-1.0')
    assert len(build('ObjectNetDataset', tmp_path / 'objectnet-1.0')) == 113


@pytest.mark.parametrize('name', MAPPINGS)
def test_objectnet_without_a_mapping_file(tmp_path, name):
    trees.make_objectnet(tmp_path / 'objectnet')
    (tmp_path / 'objectnet/mappings' / name).unlink()
    with pytest.raises(FileNotFoundError, match=f'lacks {name}; the mapping files.*objectnet.dev') as error:
        build('ObjectNetDataset', tmp_path)
    assert not isinstance(error.value, MissingSetError)  # the set is there: it must not be skipped


def test_objectnet_border_goes_before_the_resize(tmp_path):
    """Cropped after the resize, or not at all, red is left in the corners of what the model sees."""
    pipeline = Config.fromfile(CONFIGS / '_base_/imagenet.py').test_dataloader['objectnet'].dataset.pipeline
    trees.make_objectnet_mappings(tmp_path / 'objectnet/mappings')
    groups = read_objectnet_mapping(tmp_path / 'objectnet/mappings').groups
    path = trees.save_image(tmp_path / 'image.png', 500, 460, border=2)
    trees.make_tree(tmp_path / 'objectnet/images', groups, image=path)

    transform = open_clip.image_transform(224, is_train=False, mean=(0, 0, 0), std=(1, 1, 1))

    def reference(image):
        return (transform(image) * 255).round().byte().numpy()[::-1]  # BGR

    image = Image.open(path)
    item = build('ObjectNetDataset', tmp_path, pipeline=pipeline)[0]
    assert (item['inputs'].numpy() == reference(image.crop((2, 2, 498, 458)))).all()
    assert item['data_samples'].img_shape == (224, 224)
    load, border, crop, pack = pipeline
    late = [load, crop, border, pack]
    for wrong in (late, [load, crop, pack]):
        assert not np.array_equal(
            build('ObjectNetDataset', tmp_path, pipeline=wrong)[0]['inputs'].numpy(), item['inputs'].numpy()
        )


# ImageNet-C
# ----------------------------------------------------------------------------------------------------------------


def test_corruptions(root):
    pipeline = Config.fromfile(CONFIGS / '_base_/imagenet.py').test_dataloader['imagenet-c'].dataset.pipeline
    dataset = build(
        'ImageNetCDataset', root, corruptions=['contrast', 'defocus_blur'], severities=[1, 5], pipeline=pipeline
    )
    assert len(dataset) == 2 * 2 * 1000 and dataset.metainfo['label_groups'] is None
    for index, corruption, severity in ((0, 'contrast', 1), (1000, 'contrast', 5), (3999, 'defocus_blur', 5)):
        sample = dataset[index]['data_samples']
        assert (sample.corruption, sample.severity, int(sample.gt_label)) == (corruption, severity, index % 1000)
        assert f'/{corruption}/{severity}/{IMAGENET_WNIDS[index % 1000]}/' in sample.img_path


def test_corruptions_without_the_folders_of_the_archives(tmp_path):
    trees.make_corruptions(tmp_path / 'imagenet-c', ['fog'], [3])
    assert len(build('ImageNetCDataset', tmp_path, corruptions=['fog'], severities=[3])) == 1000
    with pytest.raises(
        FileNotFoundError, match=r'74 of 75 folders are missing: gaussian_noise/1, .*zenodo.*select existing ones'
    ):
        build('ImageNetCDataset', tmp_path)


def test_a_part_of_the_corruptions_is_the_same_images(tmp_path):
    trees.make_corruptions(tmp_path / 'imagenet-c', ['weather/fog', 'weather/snow'], [1])
    for place in ('fog', 'snow'):
        folder = tmp_path / f'imagenet-c/weather/{place}/1/n01440764'
        folder.unlink()
        folder.mkdir()
        for index in range(5):
            (folder / f'ILSVRC2012_val_0000000{index}.JPEG').symlink_to(tmp_path / '.c0.png')
    dataset = build('ImageNetCDataset', tmp_path, corruptions=['fog', 'snow'], severities=[1], per_class=1)
    items = [dataset.get_data_info(index) for index in range(len(dataset))]
    fog, snow = (
        [Path(item['img_path']).name for item in items if item['corruption'] == name] for name in ('fog', 'snow')
    )
    assert len(fog) == 1000 and fog == snow


@pytest.mark.parametrize(
    'setting, message',
    [
        (dict(corruptions=['fogg']), r'fogg \(near fog\); choose from gaussian_noise, '),
        (dict(corruptions=[]), 'none; choose from'),
        (dict(severities=[0]), r'severities=\[0\] must be a selection of 1, 2, 3, 4, 5'),
        (dict(severities=[True]), r'severities=\[True\] must be a selection'),
        (dict(severities=[]), r'severities=\[\] must be a selection'),
        (dict(severities=[3, 3]), r'severities=\[3, 3\] lists one of them twice'),
        (dict(corruptions=['fog', 'fog']), 'lists one of them twice'),
    ],
)
def test_bad_corruptions(root, setting, message):
    with pytest.raises(ValueError, match=message):
        build('ImageNetCDataset', root, **setting)


# the config, and bad input
# -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('data_root', ['', 'imagenet'])
def test_config_finds_all_sets(root, data_root):
    cfg = Config.fromfile(CONFIGS / 'cfmask_vitb16.py')
    assert list(cfg.test_dataloader)[:7] == [
        'imagenet',
        'imagenet-v2',
        'imagenet-r',
        'imagenet-a',
        'imagenet-sketch',
        'objectnet',
        'imagenet-c',
    ]
    usual = [cfg.test_cfg.id_set, *cfg.test_cfg.shifts, 'imagenet-c']
    assert usual == list(cfg.test_dataloader)[:7] and cfg.test_cfg.skip_missing
    loaders = {
        **{name: cfg.test_dataloader[name] for name in usual},
        'train': cfg.train_dataloader,
        'held out': cfg.val_dataloader,
    }
    for name, loader in loaders.items():
        assert loader.dataset.data_root == 'data/imagenet/'
        some = dict(corruptions=['defocus_blur', 'contrast'], severities=[1, 5]) if name == 'imagenet-c' else {}
        dataset = DATASETS.build({**loader.dataset, **some, 'data_root': str(root / data_root)})
        item = dataset[len(dataset) - 1]
        assert (
            item['inputs'].shape == (3, 224, 224)
            and int(item['data_samples'].gt_label) == len(dataset.metainfo['classes']) - 1
            or (name in ('train', 'held out'))
        )


def test_unreadable_images_are_counted(root, tmp_path):
    trees.make_a(tmp_path / 'imagenet-a')
    folder = tmp_path / 'imagenet-a/n01498041'
    folder.unlink()
    folder.mkdir()
    (folder / 'a.jpg').symlink_to(tmp_path / '.imagenet-a.png')
    (folder / 'b.jpg').write_bytes((tmp_path / '.imagenet-a.png').read_bytes()[:-60])
    pipeline = [dict(type='LoadImageFromFile', imdecode_backend='pillow'), dict(type='PackInputs')]
    with pytest.raises(StorageError, match='n01498041/b.jpg cannot be read as an image'):
        build('ImageNetADataset', tmp_path, pipeline=pipeline)[1]
    dataset = build('ImageNetADataset', tmp_path, skip_unreadable=True)
    assert len(dataset) == 200 and dataset.num_skipped == 1
    assert build('ImageNetADataset', root).num_skipped == 0


def test_wrong_folders(root, tmp_path):
    """One set under the name of another."""
    shutil.copytree(root / 'imagenet-a', tmp_path / 'imagenet-r', symlinks=True)
    with pytest.raises(
        ValueError, match=r'of 200 class folders are missing: n01443537.*folders are not known classes: n'
    ):
        build('ImageNetRDataset', tmp_path)
    (tmp_path / 'imagenetv2-matched-frequency').mkdir()
    with pytest.raises(FileNotFoundError, match='no class folders') as error:
        build('ImageNetV2Dataset', tmp_path)
    assert not isinstance(error.value, MissingSetError)
    with pytest.raises(
        ValueError, match="unknown variant 'top', choose one of matched-frequency, threshold-0.7, top-images"
    ):
        build('ImageNetV2Dataset', tmp_path, variant='top')


# real data, where MMCFMASK_TEST_DATA points at some
# ------------------------------------------------------------------------


@pytest.mark.skipif(not (REAL / 'imagenet_sample').is_dir(), reason='needs $MMCFMASK_TEST_DATA/imagenet_sample')
def test_real_images(tmp_path):
    (tmp_path / 'val').symlink_to(REAL / 'imagenet_sample')
    pipeline = Config.fromfile(CONFIGS / '_base_/imagenet.py').pipeline
    dataset = build('ImageNetDataset', tmp_path, split_dir='val', pipeline=pipeline)
    assert len(dataset) == 1000
    name = Path(dataset.get_data_info(65)['img_path']).name
    assert name.startswith('n01751748') and dataset.metainfo['classes'][65] == 'sea snake'
    assert dataset[65]['inputs'].shape == (3, 224, 224) and int(dataset[65]['data_samples'].gt_label) == 65
