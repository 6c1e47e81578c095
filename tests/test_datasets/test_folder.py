import random
import unicodedata

import numpy as np
import open_clip
import pytest
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmpretrain.registry import DATASETS
from PIL import Image
from timm.data import ImageNetInfo

from mmcfmask.datasets import FolderDataset, ImageNetDataset, PACSDataset
from mmcfmask.datasets.folder import follow_run, split_holdout
from mmcfmask.errors import ConfigError, StorageError
from mmcfmask.evaluation import describe_set

LOAD = [dict(type='LoadImageFromFile', imdecode_backend='pillow'), dict(type='PackInputs')]


def save_image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def root(tmp_path):
    """cat: 10 images, dog: 12, emu: 14, made in a random order of names."""
    names = [
        f'{name}/{name}_{index}.png' for name, number in dict(cat=10, dog=12, emu=14).items() for index in range(number)
    ]
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


# hold-out
# ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('setting', [dict(size=7), dict(size=9), dict(fraction=0.2), dict(fraction=0.01)])
def test_holdout_parts_are_disjoint_and_complete(root, setting):
    train, held_out = (
        FolderDataset(str(root), holdout=dict(setting, seed=3, part=part)) for part in ('train', 'held_out')
    )
    assert not set(names(train)) & set(names(held_out))
    assert set(names(train)) | set(names(held_out)) == set(names(FolderDataset(str(root))))


def test_holdout_is_stratified(root):
    assert sorted(counts(FolderDataset(str(root), holdout=dict(size=8, part='held_out')))) == [2, 3, 3]
    assert counts(FolderDataset(str(root), holdout=dict(size=18, part='held_out'))) == [5, 6, 7]
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


@pytest.mark.parametrize(
    'setting, message',
    [
        (dict(part='train'), 'needs either size or fraction'),
        (dict(size=3, fraction=0.1, part='train'), 'needs either size or fraction'),
        (dict(size=0, part='train'), 'size=0'),
        (dict(fraction=1.5, part='train'), 'between 0 and 1'),
        (dict(size=3), "part=None must be 'train' or 'held_out'"),
        (dict(size=3, part='val'), "part='val'"),
        (dict(siez=3, part='train'), 'no setting siez'),
        (dict(size=3, part='test'), "part='test' needs a share"),
        (dict(size=3, test=0.1, part='test'), 'test=0.1 must be a positive number of images'),
        (dict(fraction=0.1, test=3, part='test'), 'test=3 must lie between 0 and 1'),
        (dict(fraction=0.5, test=0.5, part='test'), 'leave nothing to train on'),
        (dict(fraction=True, part='train'), 'fraction=True must lie'),
        (dict(size=3, seed='ran', part='train'), "seed='ran' must be a whole number, or 'run'"),
        (dict(size=3, test=3, test_seed='run', part='train'), "test_seed='run' must be a whole number"),
    ],
)
def test_bad_holdout(root, setting, message):
    with pytest.raises(ValueError, match=message):
        FolderDataset(str(root), holdout=setting)


@pytest.mark.parametrize('size', [1, 7, 50, 500])
def test_holdout_is_proportional_to_the_classes(size):
    """Within one image of each class's share, and in sum what was asked for."""
    rng = random.Random(size)
    images = {f'c{label}': [f'c{label}/{i}' for i in range(rng.randint(2, 60))] for label in range(40)}
    total = sum(map(len, images.values()))
    held_out = split_holdout(images, part='held_out', size=size)
    assert sum(map(len, held_out.values())) == size
    assert all(abs(len(held_out[folder]) - size * len(names) / total) < 1 for folder, names in images.items())


@pytest.mark.parametrize('setting', [dict(fraction=0.1, test=0.1), dict(fraction=0.25, test=0.4), dict(size=6, test=9)])
def test_three_parts(root, setting):
    """The test part is cut first, by its own seed; the seed of the hold-out splits the rest anew."""

    def parts(**seeds):
        return {
            part: set(names(FolderDataset(str(root), holdout=dict(setting, **seeds, part=part))))
            for part in ('train', 'held_out', 'test')
        }

    first, second = parts(), parts(seed=1)
    for found in (first, second):
        assert sum(map(len, found.values())) == 36 and len(set.union(*found.values())) == 36
    assert first['test'] == second['test'] != parts(test_seed=1)['test']
    assert first['held_out'] != second['held_out'] and first['train'] != second['train']
    both = dict(size=setting['size']) if 'size' in setting else dict(fraction=setting['fraction'] + setting['test'])
    if 'fraction' in setting:  # training images are those of a hold-out without a test part
        assert first['train'] == set(names(FolderDataset(str(root), holdout=dict(both, part='train'))))


def test_seed_of_the_run(root):
    follows = dict(fraction=0.25, seed='run', part='train')
    cfg = Config(
        dict(
            train_dataloader=dict(
                dataset=dict(type='ConcatDataset', datasets=[dict(holdout=follows), dict(holdout=None)])
            ),
            model=dict(head=dict(class_weights=dict(dataset=dict(holdout=dict(follows, seed=5))))),
        )
    )
    with pytest.raises(
        ConfigError, match="holdout.seed='run' stands for the seed of the run, which has none: set randomness.seed"
    ):
        follow_run(cfg, None)
    assert follow_run(cfg, 7) and not follow_run(cfg, 8)
    assert (
        cfg.train_dataloader.dataset.datasets[0].holdout.seed == 7
        and cfg.model.head.class_weights.dataset.holdout.seed == 5
    )
    with pytest.raises(ConfigError, match="'run' stands for the seed of a run, but this is none: give a number"):
        FolderDataset(str(root), holdout=follows)


def test_holdout_that_leaves_nothing(tmp_path, log):
    for name in ('a', 'b'):
        save_image(tmp_path / name / '0.png')
    with pytest.raises(ConfigError, match='leaves no image to train on: no class has more than 1'):
        FolderDataset(str(tmp_path), holdout=dict(fraction=0.2, part='train'))
    save_image(tmp_path / 'a' / '1.png')
    assert counts(FolderDataset(str(tmp_path), holdout=dict(fraction=0.2, part='train'))) == [1, 0]
    assert 'no image to train on in 1 of 2 classes: b' in log[0]


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


# bad input
# -----------------------------------------------------------------------------------------------------------------


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
    with pytest.raises(
        ValueError, match=r'1 of 3 class folders are missing: dogs; 1 folders are no known classes: dog \(near dogs\)'
    ):
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
        names(FolderDataset(str(root), holdout=setting))
    ) - {str(root / 'dog' / 'dog_3.png'), str(root / 'cat' / 'cat_0.png')}


def test_class_without_a_readable_image(root):
    for path in (root / 'cat').iterdir():
        path.write_bytes(b'')
    with pytest.raises(ValueError, match='no readable image is left in the class folders cat'):
        FolderDataset(str(root), skip_unreadable=True)


# ImageNet and PACS
# ---------------------------------------------------------------------------------------------------------


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
        ValueError, match=r'3 of 1000 class folders are missing: n\d+, .*; 1 folders are no known classes: n15075140'
    ):
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


def test_numbered_folders_are_sorted_by_number(tmp_path):
    """Sorted as text, 10 would come before 2, and the prompts of twelve digits would be those of other digits."""
    for number in range(12):
        save_image(tmp_path / str(number) / f'{number}.png')
    dataset = FolderDataset(str(tmp_path))
    assert dataset.metainfo['classes'] == tuple(map(str, range(12)))
    assert [item['gt_label'] for item in map(dataset.get_data_info, range(12))] == list(range(12))
    assert [path.split('/')[-2] for path in names(dataset)] == list(map(str, range(12)))


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
        save_image(tmp_path / folder / 'cat' / '0.png')
    with pytest.raises(
        ConfigError, match='are parts of a data set, not classes: set split_dir to one of them, e.g. split_dir='
    ):
        FolderDataset(str(tmp_path))
    assert counts(FolderDataset(str(tmp_path), folders=folders)) == [1] * len(folders)  # they really are
    assert FolderDataset(str(tmp_path), split_dir=folders[0]).metainfo['classes'] == ('cat',)


def test_a_train_may_be_a_class(tmp_path, log):
    for folder in ('bus', 'express_train', 'test_tube', 'train'):
        save_image(tmp_path / folder / '0.png')
    assert counts(FolderDataset(str(tmp_path))) == [1, 1, 1, 1] and not log


def test_classes_that_lie_deeper(tmp_path, log):
    for domain in ('photo', 'sketch'):
        for name in ('cat', 'dog', *(['emu'] if domain == 'photo' else [])):
            save_image(tmp_path / domain / name / '0.png')
    FolderDataset(str(tmp_path))
    assert (
        len(log) == 1
        and 'photo, sketch are taken for the classes, but hold no images' in log[0]
        and 'the folders cat, dog.' in log[0]
    )
    log.clear()
    save_image(tmp_path / 'sketch' / '0.png')
    FolderDataset(str(tmp_path))
    assert not log


def test_folders_from_a_mac(tmp_path):
    """Names in the decomposed form are the same names, in the same order and with the same hold-out."""
    roots = []
    for form in ('NFC', 'NFD'):
        roots.append(tmp_path / form)
        for name in ('cafz', 'café', 'zoo'):
            for number in range(9):
                save_image(
                    roots[-1] / unicodedata.normalize(form, name) / unicodedata.normalize(form, f'é{number}.png')
                )
    plain, mac = (FolderDataset(str(root), holdout=dict(fraction=0.3, part='held_out')) for root in roots)
    assert plain.metainfo['classes'] == mac.metainfo['classes'] == mac.metainfo['folders'] == ('cafz', 'café', 'zoo')
    assert [unicodedata.normalize('NFC', name) for name in names(mac)] == [
        name.replace('/NFC/', '/NFD/') for name in names(plain)
    ]
    assert counts(FolderDataset(str(roots[1]), folders=['zoo', 'café', 'cafz'])) == [9, 9, 9]
    with pytest.raises(ConfigError, match='3 class folders, but 2 class names'):
        FolderDataset(str(roots[1]), classes=['a', 'b'])
    save_image(roots[0] / unicodedata.normalize('NFD', 'café') / '0.png')
    with pytest.raises(ConfigError, match=r"'caf\\xe9'.* have the same name in two Unicode forms"):
        FolderDataset(str(roots[0]))


def test_class_names_from_a_file(root, tmp_path):
    (tmp_path / 'names.txt').write_bytes(b'\xef\xbb\xbfa cat\r\na dog\r\n\r\nan emu\r\n')
    assert FolderDataset(str(root), classes=str(tmp_path / 'names.txt')).metainfo['classes'] == (
        'a cat',
        'a dog',
        'an emu',
    )


def test_class_folder_that_is_a_link_to_another(tmp_path):
    for place in ('set/ape', 'set/cat/small', 'else'):
        save_image(tmp_path / place / 'a.png')
    (tmp_path / 'set' / 'dog').symlink_to(tmp_path / 'else')
    assert len(FolderDataset(str(tmp_path / 'set'), pipeline=[])) == 3
    for target in ('ape', 'cat/small'):
        (tmp_path / 'set' / 'bee').symlink_to(target)
        with pytest.raises(
            ConfigError,
            match=f'the folder bee is a link to {target} in the same data set, whose images would be of two',
        ):
            FolderDataset(str(tmp_path / 'set'), pipeline=[])
        (tmp_path / 'set' / 'bee').unlink()
