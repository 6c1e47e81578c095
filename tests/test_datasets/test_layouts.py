"""Where the sets are found."""

import pytest
import trees

from mmcfmask.datasets import MissingSetError
from mmcfmask.datasets.layouts import CORRUPTIONS, SETS, find_imagenet, find_set
from mmcfmask.datasets.shards import find_shards

SIGNS = dict.fromkeys(SETS, 'n01440764')
SIGNS.update({name: '7' for name in SETS if name.startswith('imagenet-v2')})
SIGNS.update({'objectnet': 'images/alarm_clock', 'imagenet-c': 'weather/fog'})
SHIFTS = [name for name in SETS if SETS[name].folders and name not in ('imagenet', 'imagenet-train')]


def make(*folders):
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)


@pytest.mark.parametrize(
    'name, folder',
    [
        ('imagenet-v2', 'imagenetv2-matched-frequency-format-val'),
        ('imagenet-v2', 'ImageNetV2-matched-frequency'),
        ('imagenet-v2', 'imagenet_v2'),
        ('imagenet-v2', 'imagenetv2/imagenetv2-matched-frequency-format-val'),
        ('imagenet-v2-threshold-0.7', 'imagenetv2-threshold0.7-format-val'),
        ('imagenet-v2-threshold-0.7', 'imagenetv2/imagenetv2-threshold0.7-format-val'),
        ('imagenet-v2-top-images', 'imagenetv2-top-images-format-val'),
        ('imagenet-r', 'imagenet-r'),
        ('imagenet-r', 'ImageNet-R'),
        ('imagenet-r', 'imagenet_r/imagenet-r'),
        ('imagenet-a', 'imagenet-a'),
        ('imagenet-sketch', 'sketch'),
        ('imagenet-sketch', 'ImageNet-Sketch/sketch'),
        ('imagenet-sketch', 'imagenet_sketch'),
        ('objectnet', 'objectnet-1.0'),
        ('objectnet', 'ObjectNet/objectnet-1.0'),
        ('imagenet-c', 'ImageNet-C'),
    ],
)
def test_names_of_archives(tmp_path, name, folder):
    make(tmp_path / folder / SIGNS[name], tmp_path / 'something', tmp_path / 'imagenet/train')
    found = tmp_path / folder
    assert find_set(name, tmp_path) == found
    assert find_set(name, found) == found  # pointed at itself
    assert find_set(name, tmp_path / 'imagenet') == found  # beside ImageNet's folder


def test_inside_the_folder_of_imagenet(tmp_path):
    make(tmp_path / 'imagenet/val', tmp_path / 'imagenet/imagenet-r/n01443537', tmp_path / 'imagenet-r/n01443537')
    assert find_set('imagenet-r', tmp_path / 'imagenet') == tmp_path / 'imagenet/imagenet-r'


def test_folder_of_any_name(tmp_path):
    make(
        tmp_path / 'renditions/n01443537',
        tmp_path / 'numbers/123',
        tmp_path / 'corrupted/fog',
        tmp_path / 'objects/mappings',
    )
    (tmp_path / 'objects/mappings/folder_to_objectnet_label.json').touch()
    for name, folder in (
        ('imagenet-r', 'renditions'),
        ('imagenet-v2', 'numbers'),
        ('imagenet-c', 'corrupted'),
        ('objectnet', 'objects'),
    ):
        assert find_set(name, tmp_path / folder) == tmp_path / folder


def test_no_other_set_is_taken_for_it(tmp_path):
    make(
        tmp_path / 'imagenet-a/n01498041',
        tmp_path / 'imagenetv2-threshold0.7-format-val/7',
        tmp_path / 'pacs/sketch/dog',
        tmp_path / 'imagenet-r',
    )
    for name, folder in (
        ('imagenet-r', 'imagenet-a'),
        ('imagenet-v2', 'imagenetv2-threshold0.7-format-val'),
        ('imagenet-v2', ''),
        ('imagenet-sketch', 'pacs'),
        ('imagenet-sketch', 'pacs/sketch'),
    ):
        with pytest.raises(MissingSetError):
            find_set(name, tmp_path / folder)
    make(
        *(tmp_path / 'here' / split / 'n01443537' for split in ('train', 'val'))
    )  # ImageNet's own have the same WordNet ids
    for name in ('imagenet-r', 'imagenet-sketch'):
        for split in ('train', 'val'):
            with pytest.raises(MissingSetError):
                find_set(name, tmp_path / 'here' / split)
    # Not beside any folder, but only beside ImageNet's: a wrong data_root must not find another copy.
    make(tmp_path / 'other')
    with pytest.raises(MissingSetError):
        find_set('imagenet-a', tmp_path / 'other')
    # A folder of the right name is the set, with or without the right contents.
    assert find_set('imagenet-r', tmp_path) == tmp_path / 'imagenet-r'


def test_links_are_not_followed_to_what_lies_beside_their_target(tmp_path):
    make(tmp_path / 'disk/imagenet/val', tmp_path / 'disk/imagenet-r/n01443537', tmp_path / 'data/imagenet-r/n01443537')
    (tmp_path / 'data/imagenet').symlink_to(tmp_path / 'disk/imagenet')
    assert find_set('imagenet-r', tmp_path / 'data/imagenet') == tmp_path / 'data/imagenet-r'


@pytest.mark.parametrize('name', SHIFTS)
def test_missing_set(tmp_path, name):
    make(tmp_path / 'imagenet/train')
    with pytest.raises(MissingSetError) as error:
        find_set(name, tmp_path / 'imagenet')
    message = str(error.value)
    assert SETS[name].source in message and SETS[name].folders[0] in message
    assert f'{tmp_path}/imagenet and {tmp_path}.' in message
    with pytest.raises(MissingSetError, match='the folder .*nowhere does not exist'):
        find_set(name, tmp_path / 'nowhere')


@pytest.mark.parametrize(
    'folder',
    [
        'val',
        'ILSVRC2012_img_val',
        'imagenet/val',
        'ImageNet-1k/validation',
        'ILSVRC2012/ILSVRC2012_img_val',
        'ILSVRC/Data/CLS-LOC/val',
        'Data/CLS-LOC/val',
        'imagenet-object-localization-challenge/ILSVRC/Data/CLS-LOC/val',
        'imagenet/ILSVRC/Data/CLS-LOC/val',
    ],
)
def test_imagenet(tmp_path, folder):
    make(tmp_path / folder)
    assert find_imagenet(tmp_path, 'val') == find_imagenet(tmp_path / folder, 'val') == tmp_path / folder
    with pytest.raises(
        MissingSetError,
        match=r'ImageNet \(train\) was not found: looked for train or ILSVRC2012_img_train in .*image-net',
    ):
        find_imagenet(tmp_path, 'train')


def test_home_and_relative_paths(tmp_path, monkeypatch):
    make(tmp_path / 'data/imagenet/val', tmp_path / 'data/imagenet-r/n01443537')
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for root in ('~/data', 'data', 'data/imagenet/', './data/../data/imagenet'):
        assert find_imagenet(root, 'val') == tmp_path / 'data/imagenet/val'
        assert find_set('imagenet-r', root) == tmp_path / 'data/imagenet-r'


def test_corruptions_are_the_published_ones():
    assert {group: len(names) for group, names in CORRUPTIONS.items()} == dict(noise=3, blur=4, weather=4, digital=4)
    assert SETS['imagenet-c'].images == 3_750_000


def test_make_trees_is_recognised(tmp_path):
    trees.make_objectnet(tmp_path / 'a')
    trees.make_corruptions(tmp_path / 'b', ['noise/shot_noise'], [1])
    assert (
        find_set('objectnet', tmp_path / 'a') == tmp_path / 'a'
        and find_set('imagenet-c', tmp_path / 'b') == tmp_path / 'b'
    )


def test_shards(tmp_path):
    """By the name of the folder or of the shards; archives of published sets are no shards."""

    def touch(*names):
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()

    touch('a/imagenet-r/test/0.tar', 'a/data/train-0.parquet', 'a/data/validation-0.parquet', 'a/data/test-0.parquet')
    assert find_set('imagenet-r', tmp_path / 'a') == tmp_path / 'a/imagenet-r'
    assert find_shards(find_imagenet(tmp_path / 'a', 'train')) == [tmp_path / 'a/data/train-0.parquet']
    assert find_shards(find_imagenet(tmp_path / 'a', 'val')) == [tmp_path / 'a/data/validation-0.parquet']
    with pytest.raises(MissingSetError):
        find_set('imagenet-a', tmp_path / 'a')
    touch('b/renditions/0.arrow')
    assert find_set('imagenet-r', tmp_path / 'b/renditions') == tmp_path / 'b/renditions'
    assert find_set('imagenet-r', tmp_path / 'b/renditions/*.arrow') == tmp_path / 'b/renditions/*.arrow'
    touch('c/imagenet-r.tar', 'c/imagenet-a.tar', 'c/ILSVRC2012_img_val.tar')
    for name in ('imagenet-r', 'imagenet-sketch'):
        with pytest.raises(MissingSetError):
            find_set(name, tmp_path / 'c')
    with pytest.raises(MissingSetError):
        find_imagenet(tmp_path / 'c', 'val')
    touch('d/imagenet1k-train-0000.tar', 'd/imagenet1k-validation-00.tar')
    assert find_shards(find_imagenet(tmp_path / 'd', 'val')) == [tmp_path / 'd/imagenet1k-validation-00.tar']
