import open_clip
import pytest
from mmpretrain.registry import DATASETS
from timm.data import ImageNetInfo
from trees import class_counts, image_paths, save_small_image

from mmcfmask.datasets import FolderDataset, ImageNetDataset, PACSDataset
from mmcfmask.errors import StorageError
from mmcfmask.evaluation import describe_set

LOAD = [dict(type='LoadImageFromFile', imdecode_backend='pillow'), dict(type='PackInputs')]


def test_items(root):
    dataset = DATASETS.build(dict(type='FolderDataset', data_root=str(root), pipeline=LOAD))
    assert dataset.metainfo['classes'] == ('cat', 'dog', 'emu')
    assert class_counts(dataset) == [10, 12, 14]
    assert image_paths(dataset) == sorted(image_paths(dataset))
    item = dataset[11]
    assert item['inputs'].shape == (3, 6, 8) and item['inputs'].dtype.is_floating_point is False
    assert item['data_samples'].gt_label.item() == 1
    assert item['data_samples'].img_path == str(root / 'dog' / 'dog_1.png')


def test_class_names_and_order_of_folders(root):
    dataset = FolderDataset(str(root), classes=['Emu bird', 'house cat', 'dog'], folders=['emu', 'cat', 'dog'])
    assert dataset.metainfo['classes'] == ('Emu bird', 'house cat', 'dog')
    assert class_counts(dataset) == [14, 10, 12]
    with pytest.raises(ValueError, match='3 class folders, but 2 class names'):
        FolderDataset(str(root), classes=['a', 'b'])


def test_split_dir_extensions_and_hidden_files(tmp_path):
    for name in ('train/x/1.JPEG', 'train/x/2.webp', 'train/x/deep/3.PNG', 'train/y/4.jpg'):
        save_small_image(tmp_path / name)
    (tmp_path / 'train/x/notes.txt').write_text('no image')
    (tmp_path / 'train/x/._1.JPEG').write_bytes(b'resource fork')
    (tmp_path / 'train/.cache').mkdir()
    dataset = FolderDataset(str(tmp_path), split_dir='train')
    assert class_counts(dataset) == [3, 1]


def test_works_with_indices_and_without_serialisation(root):
    whole = FolderDataset(str(root))
    assert image_paths(FolderDataset(str(root), indices=5)) == image_paths(whole)[:5]
    assert image_paths(FolderDataset(str(root), indices=[3, 20], serialize_data=False)) == [
        image_paths(whole)[3],
        image_paths(whole)[20],
    ]
    assert image_paths(whole.get_subset([1, 2])) == image_paths(whole)[1:3]
    lazy = FolderDataset(str(root), lazy_init=True)
    lazy.full_init()
    assert image_paths(lazy) == image_paths(whole)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-40])


def test_unreadable_image_is_named_when_read(root):
    truncate(root / 'dog' / 'dog_3.png')
    (root / 'cat' / 'cat_0.png').write_bytes(b'')
    for test_mode in (False, True):
        dataset = FolderDataset(str(root), pipeline=LOAD, test_mode=test_mode)
        for name in ('dog/dog_3.png', 'cat/cat_0.png'):
            with pytest.raises(StorageError, match=f'{name} cannot be read as an image.*skip_unreadable=True'):
                dataset[image_paths(dataset).index(str(root / name))]
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
    assert (
        class_counts(dataset) == [9, 11, 14] and dataset.num_skipped == 2 and FolderDataset(str(root)).num_skipped == 0
    )
    assert len(log) == 1 and '2 of 36 images cannot be read' in log[0]
    assert str(root / 'dog' / 'dog_3.png') in log[0] and str(root / 'cat' / 'cat_0.png') in log[0]
    # The hold-out is decided by names, so a broken file moves no image from one part to the other.
    setting = dict(fraction=0.3, part='train')
    assert set(image_paths(FolderDataset(str(root), skip_unreadable=True, holdout=setting))) == set(
        image_paths(FolderDataset(str(root), holdout=setting))
    ) - {str(root / 'dog' / 'dog_3.png'), str(root / 'cat' / 'cat_0.png')}


def test_class_without_a_readable_image(root):
    for path in (root / 'cat').iterdir():
        path.write_bytes(b'')
    with pytest.raises(ValueError, match='no readable image in the class folders cat'):
        FolderDataset(str(root), skip_unreadable=True)


@pytest.fixture(scope='module')
def imagenet(tmp_path_factory):
    root = tmp_path_factory.mktemp('imagenet')
    save_small_image(root / 'image.jpg')
    for wnid in ImageNetInfo().label_names():
        (root / 'val' / wnid).mkdir(parents=True)
        (root / 'val' / wnid / 'image.JPEG').symlink_to(root / 'image.jpg')
    return root


def test_imagenet(imagenet):
    dataset = DATASETS.build(dict(type='ImageNetDataset', data_root=str(imagenet), split_dir='val', pipeline=LOAD))
    assert len(dataset) == 1000 and dataset.metainfo['classes'] == tuple(open_clip.IMAGENET_CLASSNAMES)
    labels = {
        dataset.get_data_info(index)['img_path'].split('/')[-2]: int(dataset.get_gt_labels()[index])
        for index in (0, 1, 999)
    }
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
    with pytest.raises(
        ValueError, match=r'3 of 1000 class folders are missing: n\d+, .*; 1 folders are not known classes: n15075140'
    ):
        ImageNetDataset(str(tmp_path))


def test_pacs(tmp_path, monkeypatch):
    for domain in PACSDataset.DOMAINS:
        for index, name in enumerate(PACSDataset.METAINFO['classes']):
            for number in range(index + 1):
                save_small_image(tmp_path / domain / name / f'{number}.webp')
    for domain in PACSDataset.DOMAINS:
        dataset = DATASETS.build(dict(type='PACSDataset', data_root=str(tmp_path), domain=domain))
        assert class_counts(dataset) == [1, 2, 3, 4, 5, 6, 7]
        assert all(f'/{domain}/' in name for name in image_paths(dataset))
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
    assert describe_set(part)['notes'] == ['held out of a set that is not the published one: 28 images instead of 20']
    with pytest.raises(ValueError, match="unknown domain 'art', choose one of photo, art_painting"):
        PACSDataset(str(tmp_path), domain='art')
    (tmp_path / 'sketch' / 'cow').mkdir()
    with pytest.raises(ValueError, match='1 folders are not known classes: cow'):
        PACSDataset(str(tmp_path), domain='sketch')


def test_class_names_from_a_file(root, tmp_path):
    (tmp_path / 'names.txt').write_bytes(b'\xef\xbb\xbfa cat\r\na dog\r\n\r\nan emu\r\n')
    assert FolderDataset(str(root), classes=str(tmp_path / 'names.txt')).metainfo['classes'] == (
        'a cat',
        'a dog',
        'an emu',
    )
