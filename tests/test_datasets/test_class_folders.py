"""Which folders are classes, in which order, and what is refused."""

import unicodedata

import pytest
from trees import class_counts, image_paths, save_small_image

from mmcfmask.datasets import FolderDataset
from mmcfmask.errors import ConfigError


def test_missing_root(tmp_path):
    with pytest.raises(FileNotFoundError, match='The folder .*nowhere does not exist: set data_root'):
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
    assert class_counts(FolderDataset(str(root), folders=['cat', 'emu'], other_folders=['dog', 'fox'])) == [10, 14]
    with pytest.raises(
        ValueError, match=r'1 of 3 class folders are missing: dogs; 1 folders are not known classes: dog \(near dogs\)'
    ):
        FolderDataset(str(root), folders=['cat', 'dogs', 'emu'])


def test_numbered_folders_are_sorted_by_number(tmp_path):
    """Sorted as text, 10 would come before 2, and the prompts of twelve digits would be those of other digits."""
    for number in range(12):
        save_small_image(tmp_path / str(number) / f'{number}.png')
    dataset = FolderDataset(str(tmp_path))
    assert dataset.metainfo['classes'] == tuple(map(str, range(12)))
    assert [item['gt_label'] for item in map(dataset.get_data_info, range(12))] == list(range(12))
    assert [path.split('/')[-2] for path in image_paths(dataset)] == list(map(str, range(12)))


@pytest.mark.parametrize(
    'folders',
    [
        ('train', 'val'),
        ('Training', 'test', 'meta'),
        ('train2017', 'val2017'),
        ('test',),
        ('train_images', 'test_images'),
        ('valid', 'dev'),
    ],
)
def test_parts_of_a_data_set_are_no_classes(tmp_path, folders):
    for folder in folders:
        save_small_image(tmp_path / folder / 'cat' / '0.png')
    with pytest.raises(
        ConfigError, match='are parts of a data set, not classes: set split_dir to one of them, e.g. split_dir='
    ):
        FolderDataset(str(tmp_path))
    assert class_counts(FolderDataset(str(tmp_path), folders=folders)) == [1] * len(folders)  # they really are
    assert FolderDataset(str(tmp_path), split_dir=folders[0]).metainfo['classes'] == ('cat',)


def test_a_train_may_be_a_class(tmp_path, log):
    for folder in ('bus', 'express_train', 'test_tube', 'train'):
        save_small_image(tmp_path / folder / '0.png')
    assert class_counts(FolderDataset(str(tmp_path))) == [1, 1, 1, 1] and not log


def test_classes_that_lie_deeper(tmp_path, log):
    for domain in ('photo', 'sketch'):
        for name in ('cat', 'dog', *(['emu'] if domain == 'photo' else [])):
            save_small_image(tmp_path / domain / name / '0.png')
    FolderDataset(str(tmp_path))
    assert (
        len(log) == 1
        and 'takes the folders photo, sketch as classes, but they hold no images' in log[0]
        and 'the sub-folders cat, dog.' in log[0]
    )
    log.clear()
    save_small_image(tmp_path / 'sketch' / '0.png')
    FolderDataset(str(tmp_path))
    assert not log


def test_folders_from_a_mac(tmp_path):
    """Names in the decomposed form are the same names, in the same order and with the same hold-out."""
    roots = []
    for form in ('NFC', 'NFD'):
        roots.append(tmp_path / form)
        for name in ('cafz', 'café', 'zoo'):
            for number in range(9):
                save_small_image(
                    roots[-1] / unicodedata.normalize(form, name) / unicodedata.normalize(form, f'é{number}.png')
                )
    plain, mac = (FolderDataset(str(root), holdout=dict(fraction=0.3, part='held_out')) for root in roots)
    assert plain.metainfo['classes'] == mac.metainfo['classes'] == mac.metainfo['folders'] == ('cafz', 'café', 'zoo')
    assert [unicodedata.normalize('NFC', name) for name in image_paths(mac)] == [
        name.replace('/NFC/', '/NFD/') for name in image_paths(plain)
    ]
    assert class_counts(FolderDataset(str(roots[1]), folders=['zoo', 'café', 'cafz'])) == [9, 9, 9]
    with pytest.raises(ConfigError, match='3 class folders, but 2 class names'):
        FolderDataset(str(roots[1]), classes=['a', 'b'])
    save_small_image(roots[0] / unicodedata.normalize('NFD', 'café') / '0.png')
    with pytest.raises(ConfigError, match=r"'caf\\xe9'.* have the same name in two Unicode forms"):
        FolderDataset(str(roots[0]))


def test_class_folder_that_is_a_link_to_another(tmp_path):
    for place in ('set/ape', 'set/cat/small', 'else'):
        save_small_image(tmp_path / place / 'a.png')
    (tmp_path / 'set' / 'dog').symlink_to(tmp_path / 'else')
    assert len(FolderDataset(str(tmp_path / 'set'), pipeline=[])) == 3
    for target in ('ape', 'cat/small'):
        (tmp_path / 'set' / 'bee').symlink_to(target)
        with pytest.raises(
            ConfigError,
            match=f'the folder bee is a link to {target} in the same data set, so its images would have two',
        ):
            FolderDataset(str(tmp_path / 'set'), pipeline=[])
        (tmp_path / 'set' / 'bee').unlink()
