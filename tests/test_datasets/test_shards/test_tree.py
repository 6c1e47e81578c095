"""Shards in the place of class folders: the same classes, labels, names and errors."""

import pytest
import torch
from mmpretrain.registry import DATASETS
from shards import SIZES, make_folders, make_table, make_tars, rows, write_arrow, write_parquet, write_tar
from trees import class_counts, image_paths

from mmcfmask.datasets import CachedDataset, FolderDataset, FolderShiftDataset
from mmcfmask.datasets.imagenet_labels import IMAGENET_WNIDS, read_class_map
from mmcfmask.datasets.overlap import identify_images
from mmcfmask.datasets.shards import Shards, find_shards, split_place
from mmcfmask.datasets.shards.tree import keys_say_more, name_labels
from mmcfmask.errors import ConfigError, MissingFileError, StorageError

LOAD = [dict(type='LoadImageFromFile', imdecode_backend='pillow'), dict(type='PackInputs')]
A = read_class_map('imagenet_a')
NAMES = list(SIZES)


def key(dataset, index):
    return split_place(dataset.get_data_info(index)['img_path'])[2].name


def items(dataset):
    return [(item['data_samples'].gt_label.item(), item['inputs'].numpy().tobytes()) for item in dataset]


@pytest.fixture(params=['keys', 'cls', 'parquet', 'arrow'])
def both(request, tmp_path):
    """Class folders, and the same images in shards, mixed."""
    mixed = sorted(rows(), key=lambda row: row[3])
    folder, out = make_folders(tmp_path / 'folders'), tmp_path / 'shards'
    if request.param == 'keys':
        make_tars(out, [dict(key=f'{folder}/{name[:-4]}', png=content) for folder, name, _, content in mixed])
    elif request.param == 'cls':
        samples = [dict(key=f'{folder}/{name[:-4]}', png=image, cls=str(label)) for folder, name, label, image in mixed]
        make_tars(out, samples)
    else:
        pytest.importorskip('pyarrow', reason='pyarrow is not installed')
        paths = [f'{folder}/{name}' for folder, name, *_ in mixed]
        table = make_table([label for *_, label, _ in mixed], [content for *_, content in mixed], paths, NAMES)
        if request.param == 'parquet':
            write_parquet(out / 'data' / 'train-00000-of-00001.parquet', table)
        else:
            write_arrow(out / 'data-00000-of-00001.arrow', table)
    return folder, out


def parts(root, **kwargs):
    return [FolderDataset(str(root), pipeline=LOAD, holdout=dict(fraction=0.3, test=0.2, part=part), **kwargs)
            for part in ('train', 'held_out', 'test')]  # fmt: skip


def test_items_classes_and_parts_equal_those_of_folders(both):
    folders, shards = (FolderDataset(str(root), pipeline=LOAD) for root in both)
    assert shards.metainfo == folders.metainfo and class_counts(shards) == list(SIZES.values())
    assert items(shards) == items(folders)
    for ours, theirs in zip(parts(both[1]), parts(both[0])):
        assert items(ours) == items(theirs) and ours.num_listed == theirs.num_listed
    for holdout, whole in ((None, folders), (dict(fraction=0.3, test=0.2, part='train'), parts(both[0])[0])):
        few = [FolderDataset(str(root), pipeline=LOAD, holdout=holdout, per_class=2, subset_seed=3) for root in both]
        assert items(few[1]) == items(few[0]) and class_counts(few[1]) == [2] * len(SIZES)
        assert set(image_paths(few[0])) < set(image_paths(whole))


def test_any_loader_reads_them(both, tmp_path):
    folders, shards = both
    crop = [dict(type='ResizeEdge', scale=8, edge='short', backend='pillow'), dict(type='CenterCrop', crop_size=8)]
    for load in (dict(type='LoadImageFromFile'), dict(type='LoadResizedImage', scale=8)):
        pipeline = [load, *crop, LOAD[-1]]
        plain = FolderDataset(str(folders), pipeline=pipeline)
        assert items(FolderDataset(str(shards), pipeline=pipeline)) == items(plain)
    kept = dict(type='FolderDataset', data_root=str(shards), pipeline=pipeline)
    for _ in range(2):  # made, and read
        assert items(CachedDataset(kept, str(tmp_path / 'cache'))) == items(plain)


def test_work_in_data_workers(both):
    dataset = FolderDataset(str(both[1]), pipeline=LOAD)
    dataset[0]  # opened in this process too
    loader = torch.utils.data.DataLoader(dataset, batch_size=4, num_workers=2, collate_fn=list)
    assert [sample for batch in loader for sample in items(batch)] == items(dataset)


def test_match_classes_of_the_head(both):
    shift = FolderShiftDataset(str(both[1]), ['dog', 'Emu', 'fox', 'cat'], pipeline=LOAD)
    assert shift.metainfo['label_groups'] == ((0,), (1,), (3,)) and class_counts(shift) == [7, 6, 5]


def test_classes_that_do_not_fit(both):
    with pytest.raises(ConfigError, match=r'1 of 4 class folders are missing: fox'):
        FolderDataset(str(both[1]), folders=[*NAMES, 'fox'])
    with pytest.raises(
        ConfigError, match=r"shards.*: emu/emu_\d.png has the label '(emu|2)', which is not one of the 2"
    ):
        FolderDataset(str(both[1]), folders=['cat', 'dog'])


def test_leakage_is_found(both, tmp_path):
    (tmp_path / 'link').symlink_to(both[1])
    whole, linked = (
        [*identify_images(dict(type='FolderDataset', data_root=str(root)))] for root in (both[1], tmp_path / 'link')
    )
    assert set(whole) == set(linked) and len(set(whole)) == 18
    train, held_out, _ = (
        {*identify_images(dict(type='FolderDataset', data_root=str(both[1]), holdout=dict(fraction=0.3, part=part)))}
        for part in ('train', 'held_out', 'train')
    )
    assert not train & held_out and train | held_out == set(whole)


def test_unreadable_images_are_named_or_skipped(tmp_path):
    samples = [dict(key=f'{folder}/{name[:-4]}', png=content) for folder, name, _, content in rows()]
    samples[3]['png'] = samples[3]['png'][:-40]
    root = make_tars(tmp_path / 'shards', samples)
    with pytest.raises(StorageError, match=r'0000\.tar#.*cat/cat_3\.png cannot be read as an image'):
        FolderDataset(str(root), pipeline=LOAD)[3]
    kept = FolderDataset(str(root), pipeline=LOAD, skip_unreadable=True)
    assert len(kept) == 17 and kept.num_skipped == 1 and 'cat/cat_3.png' not in [key(kept, i) for i in range(17)]


def test_same_key_in_several_shards(tmp_path):
    for number, (_, _, label, content) in enumerate(rows()):
        write_tar(tmp_path / f'{number:02d}.tar', [('0.png', content), ('0.cls', str(label).encode())])
    dataset = FolderDataset(str(tmp_path), pipeline=LOAD)
    assert items(dataset) == items(FolderDataset(str(make_folders(tmp_path / 'f')), pipeline=LOAD))
    assert key(dataset, 0) == '0.png' and class_counts(dataset) == list(SIZES.values())


def test_imagenet_by_index_wnid_or_name(tmp_path):
    """ImageNet-A: by its 200 classes or ImageNet's 1000, as its copies on the hub are, and by WordNet ids."""
    content = rows()[0][-1]
    own = [str(label) for label in range(200)]
    of_imagenet = [str(IMAGENET_WNIDS.index(wnid)) for wnid in A]
    for name, labels in dict(own=own, thousand=of_imagenet, wnid=A).items():
        root = tmp_path / name
        make_tars(root, [dict(key=f'{i:03d}', png=content, cls=label) for i, label in enumerate(labels)][::-1], 50)
        dataset = DATASETS.build(dict(type='ImageNetADataset', data_root=str(root), pipeline=LOAD))
        assert [key(dataset, i) for i in range(200)] == [f'{i:03d}.png' for i in range(200)]
        assert dataset.get_gt_labels().tolist() == list(range(200))


@pytest.mark.parametrize('top', ['', 'archive/', 'a/train/'])
def test_folders_in_keys_are_classes_below_those_in_common(tmp_path, top):
    keys = [f'{top}{key}' for key in ('cat/1', 'cat/deep/2', 'dog/3')]
    make_tars(tmp_path, [dict(key=key, png=rows()[0][-1]) for key in keys])
    dataset = FolderDataset(str(tmp_path))
    assert dataset.metainfo['classes'] == ('cat', 'dog') and class_counts(dataset) == [2, 1]


def test_v2_is_labelled_by_index_whatever_the_keys_say(tmp_path):
    content = rows()[0][-1]
    samples = [dict(key=f'{IMAGENET_WNIDS[i]}_7', png=content, cls=str(i)) for i in range(1000)]
    make_tars(tmp_path / 'imagenetv2-matched-frequency', samples, 500)
    dataset = DATASETS.build(dict(type='ImageNetV2Dataset', data_root=str(tmp_path), pipeline=LOAD))
    assert [key(dataset, i)[:9] for i in (0, 10, 999)] == [IMAGENET_WNIDS[i] for i in (0, 10, 999)]


def test_train_split_as_its_archive_unpacks(tmp_path):
    content = rows()[0][-1]
    for wnid in IMAGENET_WNIDS:
        write_tar(tmp_path / 'train' / f'{wnid}.tar', [(f'{wnid}_1.JPEG', content)])
    dataset = DATASETS.build(dict(type='ImageNetDataset', data_root=str(tmp_path), split_dir='train'))
    assert [key(dataset, i)[:9] for i in range(1000)] == list(IMAGENET_WNIDS)


@pytest.mark.parametrize(
    ('labels', 'own', 'names', 'expected', 'result'),
    [
        (['', ''], ['cat', 'dog'], [], None, True),
        (['0', '1', '0'], ['cat', 'dog', 'cat'], [], None, True),
        (['0', '1', '0'], ['val', 'val', 'val'], [], None, False),
        (['0', '1', '0'], ['cat', 'dog', 'dog'], [], None, False),
        (['0', '1'], ['cat', ''], [], None, False),
        (['0', '1'], ['n1', 'n2'], ['cat', 'dog'], None, False),
        (['0', '1'], ['n1', 'n2'], ['cat', 'dog'], ['n1', 'n2', 'n3'], True),
        (['0', '1'], ['n1', 'n2'], [], ['0', '1'], False),
    ],
)
def test_keys_count_where_they_say_the_same_as_the_labels(labels, own, names, expected, result):
    assert keys_say_more(labels, own, names, expected) is result


def test_labels_become_class_folders():
    assert name_labels({'1', '0'}) == {'0': '0', '1': '1'}
    assert name_labels({'1', '0'}, ['b', 'a']) == {'0': 'b', '1': 'a'}
    assert name_labels({'1', '0'}, ['b', 'a'], ['a', 'b', 'c']) == {'0': 'b', '1': 'a'}
    assert name_labels({'1', '0'}, ['B', 'A'], ['a', 'b']) == {'0': 'a', '1': 'b'}
    assert name_labels({'1', '5'}, [], ['a', 'b']) == {'1': 'b', '5': None}
    assert name_labels({'a', 'x'}, [], ['a', 'b']) == {'a': 'a', 'x': 'x'}
    assert name_labels({str(IMAGENET_WNIDS.index(A[7]))}, ['name'] * 1000, A).popitem()[1] == A[7]
    assert name_labels({'999'}, [], A) == {'999': IMAGENET_WNIDS[999]}


def test_order_of_class_names_is_that_of_the_indices(tmp_path):
    pytest.importorskip('pyarrow', reason='pyarrow is not installed')
    contents = [row[-1] for row in rows()[:3]]
    path = write_parquet(tmp_path / 'x.parquet', make_table([0, 1, 2], contents, names=['zebra', 'ant', 'cow']))
    assert FolderDataset(str(tmp_path), split_dir='x.parquet').metainfo['classes'] == ('zebra', 'ant', 'cow')
    with pytest.raises(ConfigError, match=r'no images in the 1 class folders \bdoe'):
        write_parquet(path, make_table([0, 1, 2], contents, names=['zebra', 'ant', 'cow', 'doe']))
        FolderDataset(str(tmp_path))


@pytest.mark.parametrize(
    ('members', 'message'),
    [
        ([('1.png', b'x')], r'0\.tar: 1\.png has no label: a shard needs a member \.cls'),
        ([('1.png', b'x'), ('1.cls', b'-1')], r"0\.tar: 1\.png has the label '-1'"),
        ([('1.png', b'x'), ('1.cls', b'0'), ('2.png', b'x'), ('2.cls', b' ')], r'0\.tar: 2\.png has no label'),
        ([('1.txt', b'x')], r'the shards 0\.tar hold no images'),
    ],
)
def test_bad_shards(tmp_path, members, message):
    with pytest.raises(ConfigError, match=message):
        Shards([write_tar(tmp_path / '0.tar', members)])


def test_where_shards_are_found(tmp_path):
    def touch(name):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
        return tmp_path / name

    first = touch('a/train-0.tar')
    touch('a/.hidden.tar')
    touch('a/readme.txt')
    assert find_shards(tmp_path / 'a') == find_shards(tmp_path) == find_shards(first) == [first]
    assert find_shards(tmp_path / 'b') == find_shards(tmp_path / 'a/*.parquet') == []
    other = touch('a/validation-0.tar')
    with pytest.raises(ConfigError, match=r'holds shards of train, validation: .* split_dir="\./train-\*\.tar"'):
        find_shards(tmp_path / 'a')
    assert find_shards(tmp_path / 'a/v*.tar') == [other]
    touch('a/cat/1.png')
    assert find_shards(tmp_path / 'a') == []  # class folders
    with pytest.raises(MissingFileError, match=r'no file matches .*/b/\*\.tar'):
        FolderDataset(str(tmp_path), split_dir='b/*.tar')
