import hashlib

import pytest
from mmpretrain.models import ClsDataPreprocessor
from mmpretrain.registry import DATASETS
from oracle import PIPELINE, write_tree

from mmcfmask.evaluation import describe_set, versions
from mmcfmask.evaluation.protocol import describe_checkpoint

GROUPS = tuple((index,) for index in range(3))


@pytest.fixture
def build(tmp_path):
    write_tree(tmp_path / 'set', GROUPS, 4)
    return lambda **settings: DATASETS.build(
        dict(type='AvailableFolder', data_root=str(tmp_path / 'set'), pipeline=PIPELINE, **settings)
    )


def test_complete(build, tmp_path):
    described = describe_set(
        build(published=dict(images=12, num_classes=3, source='here')),
        ClsDataPreprocessor(mean=[1, 2, 3], std=[4, 5, 6], to_rgb=True),
    )
    assert described['complete'] is True and described['notes'] == [] and described['root'] == str(tmp_path / 'set')
    assert (
        described['images'],
        described['published_images'],
        described['classes'],
        described['published_classes'],
    ) == (12, 12, 3, 3)
    assert described['dataset'] == 'AvailableFolder' and described['skipped'] == 0
    assert described['transform'][0].startswith('LoadImageFromFile(') and len(described['transform']) == 3
    assert described['transform'][-1] == 'Normalize(mean=[1.0, 2.0, 3.0], std=[4.0, 5.0, 6.0], to_rgb=True)'


def test_nothing_is_published(build):
    described = describe_set(build())
    assert described['complete'] is None and described['published_images'] is None and described['notes'] == []


@pytest.mark.parametrize(
    'settings, note',
    [
        (dict(published=dict(images=50000, num_classes=3)), 'incomplete: 12 of 50,000 images'),
        (dict(published=dict(images=11, num_classes=3)), 'not the published set: 12 images instead of 11'),
        (dict(published=dict(images=12, num_classes=4)), '3 classes instead of 4'),
        (dict(published=dict(images=12, num_classes=3), per_class=2), 'a subset (per_class=2): 6 of 12 images'),
        (dict(published=dict(images=12), indices=5), 'a subset (indices=5): 5 of 12 images'),
        (dict(published=dict(images=12), indices=[0, 7]), 'a subset (2 indices): 2 of 12 images'),
    ],
)
def test_incomplete(build, settings, note):
    described = describe_set(build(**settings))
    assert described['complete'] is False and described['notes'] == [note]


def test_subset_of_an_unpublished_set(build):
    described = describe_set(build(per_class=1))
    assert described['complete'] is None and described['notes'] == ['a subset (per_class=1): 3 images']


def test_unreadable_images_are_counted(build):
    described = describe_set(build(published=dict(images=14, num_classes=3), skipped=2))
    assert (
        described['notes'] == ['incomplete: 12 of 14 images', '2 unreadable images were left out']
        and described['skipped'] == 2
    )
    assert describe_set(build(skipped=1))['notes'] == ['1 unreadable image was left out']


def test_checkpoint_and_versions(tmp_path):
    path = tmp_path / 'weights.pth'
    path.write_bytes(b'x' * (3 << 20))
    assert describe_checkpoint(str(path)) == dict(path=str(path), sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    assert describe_checkpoint(None) is None
    assert {'mmcfmask', 'torch', 'mmengine', 'mmpretrain', 'open_clip', 'python'} <= set(versions())
