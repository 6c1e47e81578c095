import random

import numpy as np
import open_clip
import pytest
from mmengine.logging import MMLogger
from mmpretrain.registry import DATASETS
from PIL import Image
from timm.data import ImageNetInfo

from mmcfmask.datasets import FolderDataset, ImageNetDataset, PACSDataset
from mmcfmask.datasets.folder import split_holdout
from mmcfmask.errors import StorageError
from mmcfmask.evaluation import describe_set

LOAD = [dict(type='LoadImageFromFile', imdecode_backend='pillow'), dict(type='PackInputs')]


def save_image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def root(tmp_path):
    """cat: 10 images, dog: 12, emu: 14, made in a random order of names."""
    names = [f'{name}/{name}_{index}.png' for name, number in dict(cat=10, dog=12, emu=14).items() for index in range(number)]
    random.Random(0).shuffle(names)
    for name in names:
        save_image(tmp_path / name)
    return tmp_path


@pytest.fixture
def log(monkeypatch):
    """What is logged as a warning."""
    messages = []
    monkeypatch.setattr(MMLogger.get_current_instance(), 'log', lambda level, message, *args: messages.append(message))
    return messages


def names(dataset):
    return [dataset.get_data_info(index)['img_path'] for index in range(len(dataset))]


def counts(dataset):
    return np.bincount(dataset.get_gt_labels(), minlength=len(dataset.metainfo['classes'])).tolist()


def test_items(root):
    dataset = DATASETS.build(dict(type='FolderDataset', data_root=str(root), pipeline=LOAD))
    assert dataset.metainfo['classes'] == ('cat', 'dog', 'emu')
    assert counts(dataset) == [10, 12, 14]
    assert names(dataset) == sorted(names(dataset))
    item = dataset[11]
    assert item['inputs'].shape == (3, 6, 8) and item['inputs'].dtype.is_floating_point is False
    assert item['data_samples'].gt_label.item() == 1
    assert item['data_samples'].img_path == str(root / 'dog' / 'dog_1.png')


def test_class_names_and_order_of_folders(root):
    dataset = FolderDataset(str(root), classes=['Emu bird', 'house cat', 'dog'], folders=['emu', 'cat', 'dog'])
    assert dataset.metainfo['classes'] == ('Emu bird', 'house cat', 'dog')
    assert counts(dataset) == [14, 10, 12]
    with pytest.raises(ValueError, match='3 class folders, but 2 class names'):
        FolderDataset(str(root), classes=['a', 'b'])


def test_split_dir_extensions_and_hidden_files(tmp_path):
    for name in ('train/x/1.JPEG', 'train/x/2.webp', 'train/x/deep/3.PNG', 'train/y/4.jpg'):
        save_image(tmp_path / name)
    (tmp_path / 'train/x/notes.txt').write_text('no image')
    (tmp_path / 'train/x/._1.JPEG').write_bytes(b'resource fork')
    (tmp_path / 'train/.cache').mkdir()
    dataset = FolderDataset(str(tmp_path), split_dir='train')
    assert counts(dataset) == [3, 1]


def test_works_with_indices_and_without_serialisation(root):
    whole = FolderDataset(str(root))
    assert names(FolderDataset(str(root), indices=5)) == names(whole)[:5]
    assert names(FolderDataset(str(root), indices=[3, 20], serialize_data=False)) == [names(whole)[3], names(whole)[20]]
    assert names(whole.get_subset([1, 2])) == names(whole)[1:3]
    lazy = FolderDataset(str(root), lazy_init=True)
    lazy.full_init()
    assert names(lazy) == names(whole)


# hold-out ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('setting', [dict(size=7), dict(size=9), dict(fraction=0.2), dict(fraction=0.01)])
def test_holdout_parts_are_disjoint_and_complete(root, setting):
    train, held_out = (FolderDataset(str(root), holdout=dict(setting, seed=3, part=part)) for part in ('train', 'held_out'))
    assert not set(names(train)) & set(names(held_out))
    assert set(names(train)) | set(names(held_out)) == set(names(FolderDataset(str(root))))


def test_holdout_is_stratified(root):
    assert sorted(counts(FolderDataset(str(root), holdout=dict(size=8, part='held_out')))) == [2, 3, 3]
    assert counts(FolderDataset(str(root), holdout=dict(size=9, part='held_out'))) == [3, 3, 3]
    assert counts(FolderDataset(str(root), holdout=dict(fraction=0.25, part='held_out'))) == [2, 3, 4]
    assert counts(FolderDataset(str(root), holdout=dict(fraction=0.25, part='train'))) == [8, 9, 10]


def test_holdout_depends_on_seed_and_names_only(root):
    first = names(FolderDataset(str(root), holdout=dict(size=9, seed=0, part='held_out')))
    assert names(FolderDataset(str(root), holdout=dict(size=9, seed=0, part='held_out'))) == first
    assert names(FolderDataset(str(root), holdout=dict(size=9, seed=1, part='held_out'))) != first

    images = dict(cat=[f'cat/{i}' for i in range(10)], dog=[f'dog/{i}' for i in range(10)])
    shuffled = {folder: random.Random(5).sample(members, 10) for folder, members in reversed(images.items())}
    split = split_holdout(images, part='held_out', size=5)
    other = split_holdout(shuffled, part='held_out', size=5)
    assert {folder: sorted(members) for folder, members in other.items()} == split
    # The same on every machine and in every version.
    assert split == dict(cat=['cat/2', 'cat/4'], dog=['dog/0', 'dog/7', 'dog/8'])


def test_large_holdout_is_lowered_with_a_warning(tmp_path, log):
    """Published is 10,240; a sample of ImageNet with one image per class must still run."""
    for index in range(20):
        save_image(tmp_path / f'class{index}' / 'only.png')
    parts = [FolderDataset(str(tmp_path), holdout=dict(size=10240, part=part)) for part in ('train', 'held_out')]
    assert [len(part) for part in parts] == [10, 10]
    assert any('holdout.size=10240 is more than half of the 20 images: 10 are held out' in message for message in log)
    assert any('no image to train on in 10 of 20 classes' in message for message in log)


@pytest.mark.parametrize('setting, message', [
    (dict(part='train'), 'needs either size or fraction'),
    (dict(size=3, fraction=0.1, part='train'), 'needs either size or fraction'),
    (dict(size=0, part='train'), 'size=0'),
    (dict(fraction=1.5, part='train'), 'between 0 and 1'),
    (dict(size=3), "part=None must be 'train' or 'held_out'"),
    (dict(size=3, part='val'), "part='val'"),
    (dict(siez=3, part='train'), 'no setting siez'),
])
def test_bad_holdout(root, setting, message):
    with pytest.raises(ValueError, match=message):
        FolderDataset(str(root), holdout=setting)


def test_holdout_larger_than_a_class(root):
    for index in range(100):
        save_image(root / 'dog' / f'more_{index}.png')
    with pytest.raises(ValueError, match=r'holdout.size=60 in 2 classes: cat \(10 images for a share of 20\), emu \(14'):
        FolderDataset(str(root), holdout=dict(size=60, part='train'))


def test_per_class(root):
    small, large = (FolderDataset(str(root), per_class=number) for number in (4, 8))
    assert counts(small) == [4, 4, 4] and counts(large) == [8, 8, 8]
    assert set(names(small)) < set(names(large))
    assert names(FolderDataset(str(root), per_class=4, subset_seed=1)) != names(small)
    held_out = FolderDataset(str(root), holdout=dict(fraction=0.5, part='held_out'))
    both = FolderDataset(str(root), holdout=dict(fraction=0.5, part='held_out'), per_class=2)
    assert counts(both) == [2, 2, 2] and set(names(both)) < set(names(held_out))
    with pytest.raises(ValueError, match=r'per_class=11, but 1 classes have fewer images: cat \(10\)'):
        FolderDataset(str(root), per_class=11)
    with pytest.raises(ValueError, match='at least 1'):
        FolderDataset(str(root), per_class=0)


# bad input -----------------------------------------------------------------------------------------------------------------


def test_missing_root(tmp_path):
    with pytest.raises(FileNotFoundError, match='no folder .*nowhere.*set data_root'):
        FolderDataset(str(tmp_path / 'nowhere'))
    (tmp_path / 'image.png').touch()
    with pytest.raises(FileNotFoundError, match='no class folders, but 1 files'):
        FolderDataset(str(tmp_path))


def test_empty_class_folder(root):
    (root / 'fox').mkdir()
    (root / 'fox' / 'readme.txt').touch()
    with pytest.raises(ValueError, match=r'no images in the 1 class folders fox.*\.jpeg.*\.webp'):
        FolderDataset(str(root))


def test_unknown_and_missing_folders(root):
    with pytest.raises(ValueError, match=r'1 of 4 class folders are missing: fox'):
        FolderDataset(str(root), folders=['cat', 'dog', 'emu', 'fox'])
    assert counts(FolderDataset(str(root), folders=['cat', 'emu'], other_folders=['dog', 'fox'])) == [10, 14]
    with pytest.raises(ValueError, match=r'1 of 3 class folders are missing: dogs; 1 folders are no known classes: dog \(near dogs\)'):
        FolderDataset(str(root), folders=['cat', 'dogs', 'emu'])


def truncate(path):
    path.write_bytes(path.read_bytes()[:-40])


def test_unreadable_image_is_named_when_read(root):
    truncate(root / 'dog' / 'dog_3.png')
    (root / 'cat' / 'cat_0.png').write_bytes(b'')
    for test_mode in (False, True):
        dataset = FolderDataset(str(root), pipeline=LOAD, test_mode=test_mode)
        for name in ('dog/dog_3.png', 'cat/cat_0.png'):
            with pytest.raises(StorageError, match=f'{name} cannot be read as an image.*skip_unreadable=True'):
                dataset[names(dataset).index(str(root / name))]
        assert dataset[1]['inputs'].shape == (3, 6, 8)


def test_error_of_a_transform_is_not_blamed_on_the_image(root):
    def broken(results):
        raise KeyError('my_key')

    dataset = FolderDataset(str(root), pipeline=[LOAD[0], broken])
    with pytest.raises(KeyError, match='my_key'):
        dataset[0]


def test_skip_unreadable(root, log):
    truncate(root / 'dog' / 'dog_3.png')
    (root / 'cat' / 'cat_0.png').write_bytes(b'')
    dataset = FolderDataset(str(root), skip_unreadable=True)
    assert counts(dataset) == [9, 11, 14] and dataset.num_skipped == 2 and FolderDataset(str(root)).num_skipped == 0
    assert len(log) == 1 and '2 of 36 images cannot be read' in log[0]
    assert str(root / 'dog' / 'dog_3.png') in log[0] and str(root / 'cat' / 'cat_0.png') in log[0]
    # The hold-out is decided by names, so a broken file moves no image from one part to the other.
    setting = dict(fraction=0.3, part='train')
    assert set(names(FolderDataset(str(root), skip_unreadable=True, holdout=setting))) == set(
        names(FolderDataset(str(root), holdout=setting))) - {str(root / 'dog' / 'dog_3.png'), str(root / 'cat' / 'cat_0.png')}


def test_class_without_a_readable_image(root):
    for path in (root / 'cat').iterdir():
        path.write_bytes(b'')
    with pytest.raises(ValueError, match='no readable image is left in the class folders cat'):
        FolderDataset(str(root), skip_unreadable=True)


# ImageNet and PACS ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def imagenet(tmp_path_factory):
    root = tmp_path_factory.mktemp('imagenet')
    save_image(root / 'image.jpg')
    for wnid in ImageNetInfo().label_names():
        (root / 'val' / wnid).mkdir(parents=True)
        (root / 'val' / wnid / 'image.JPEG').symlink_to(root / 'image.jpg')
    return root


def test_imagenet(imagenet):
    dataset = DATASETS.build(dict(type='ImageNetDataset', data_root=str(imagenet), split_dir='val', pipeline=LOAD))
    assert len(dataset) == 1000 and dataset.metainfo['classes'] == tuple(open_clip.IMAGENET_CLASSNAMES)
    labels = {dataset.get_data_info(index)['img_path'].split('/')[-2]: int(dataset.get_gt_labels()[index]) for index in (0, 1, 999)}
    assert labels == {'n01440764': 0, 'n01443537': 1, 'n15075141': 999}
    assert (dataset.metainfo['classes'][0], dataset.metainfo['classes'][999]) == ('tench', 'toilet paper')
    assert dataset[5]['inputs'].shape == (3, 6, 8)


def test_imagenet_class_names_keep_duplicates():
    classes = ImageNetDataset.METAINFO['classes']
    assert len(classes) == 1000 and classes.count('missile') == 2 and classes.count('sunglasses') == 2


def test_imagenet_with_missing_and_unknown_folders(tmp_path, imagenet):
    for path in sorted((imagenet / 'val').iterdir())[:997]:
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / 'n15075140').mkdir()
    with pytest.raises(ValueError, match=r'3 of 1000 class folders are missing: n\d+, .*; 1 folders are no known classes: n15075140'):
        ImageNetDataset(str(tmp_path))


def test_pacs(tmp_path, monkeypatch):
    for domain in PACSDataset.DOMAINS:
        for index, name in enumerate(PACSDataset.METAINFO['classes']):
            for number in range(index + 1):
                save_image(tmp_path / domain / name / f'{number}.webp')
    for domain in PACSDataset.DOMAINS:
        dataset = DATASETS.build(dict(type='PACSDataset', data_root=str(tmp_path), domain=domain))
        assert counts(dataset) == [1, 2, 3, 4, 5, 6, 7]
        assert all(f'/{domain}/' in name for name in names(dataset))
        assert dataset.metainfo['label_groups'] is None and dataset.metainfo['protocol']['num_classes'] == 7
    assert sum(PACSDataset.IMAGES.values()) == 9991
    part = PACSDataset(str(tmp_path), domain='photo', holdout=dict(fraction=0.5, part='held_out'))
    assert part.metainfo['protocol']['images'] is None  # nothing was published about a hold-out
    assert part.metainfo['notes'] == ['held out of an incomplete set: 28 of 1,670 images']
    monkeypatch.setitem(PACSDataset.IMAGES, 'photo', 28)
    part = PACSDataset(str(tmp_path), domain='photo', holdout=dict(fraction=0.5, part='held_out'))
    assert 'notes' not in part.metainfo and (part.num_listed, len(part)) == (28, 15)
    monkeypatch.setitem(PACSDataset.IMAGES, 'photo', 20)
    part = PACSDataset(str(tmp_path), domain='photo', holdout=dict(fraction=0.5, part='held_out'))
    assert describe_set(part)['notes'] == ['held out of what is not the published set: 28 images instead of 20']
    with pytest.raises(ValueError, match="unknown domain 'art', choose one of photo, art_painting"):
        PACSDataset(str(tmp_path), domain='art')
    (tmp_path / 'sketch' / 'cow').mkdir()
    with pytest.raises(ValueError, match='1 folders are no known classes: cow'):
        PACSDataset(str(tmp_path), domain='sketch')
