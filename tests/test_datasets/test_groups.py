"""Sets whose labels, splits and groups stand in a CSV file."""

import csv
import os
import shutil
from collections import Counter

import pytest
from mmpretrain.registry import DATASETS
from trees import draw_slowly, image_paths, make_waterbirds, save_small_image, write_csv

from mmcfmask.datasets import GroupCSVDataset, MissingSetError, WaterbirdsDataset
from mmcfmask.datasets.csv_tables import number_values
from mmcfmask.datasets.layouts import SETS, WATERBIRDS_GROUPS
from mmcfmask.datasets.overlap import identify_images
from mmcfmask.errors import ConfigError
from mmcfmask.evaluation import describe_set

GROUPS = ('landbird on land', 'landbird on water', 'waterbird on land', 'waterbird on water')


def groups(dataset):
    """Number of images by group."""
    return Counter(dataset.get_data_info(index)['group'] for index in range(len(dataset)))


def write_rows(root, rows):
    """Images of some rows with ``filename``, and metadata.csv."""
    for row in rows:
        save_small_image(root / row['filename'])
    write_csv(root / 'metadata.csv', rows)
    return str(root)


# Waterbirds
# ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('number, split', [(0, 'train'), (1, 'val'), (2, 'test')])
def test_waterbirds(tmp_path, number, split):
    """Against the rows themselves, read plainly."""
    make_waterbirds(tmp_path)
    with open(tmp_path / 'metadata.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    dataset = WaterbirdsDataset(str(tmp_path), split=split)
    expected = [
        (f'{tmp_path}/{row["img_filename"]}', int(row['y']), 2 * int(row['y']) + int(row['place']))
        for row in rows
        if row['split'] == str(number)
    ]
    infos = [dataset.get_data_info(index) for index in range(len(dataset))]
    assert [(os.path.normpath(info['img_path']), info['gt_label'], info['group']) for info in infos] == expected
    assert dataset.metainfo['classes'] == ('landbird', 'waterbird') and dataset.metainfo['label_groups'] is None
    assert dataset.metainfo['group_names'] == GROUPS and dataset.metainfo['group_sizes'] == (6, 3, 2, 5)
    assert dataset.metainfo['protocol']['images'] == {'train': 4795, 'val': 1199, 'test': 5794}[split]


def test_waterbirds_says_what_it_lacks(tmp_path):
    make_waterbirds(tmp_path)
    described = describe_set(WaterbirdsDataset(str(tmp_path), split='test'))
    assert described['complete'] is False and described['notes'] == ['incomplete: 14 of 5,794 images']
    described = describe_set(WaterbirdsDataset(str(tmp_path), split='test', per_group=2))
    assert described['notes'] == ['a subset (per_group=2): 8 of 5,794 images']
    described = describe_set(WaterbirdsDataset(str(tmp_path), holdout=dict(fraction=0.5, part='train')))
    assert described['notes'] == ['held out of an incomplete set: 16 of 4,795 images']


def test_published_counts_of_waterbirds():
    assert {split: sum(counts) for split, counts in WATERBIRDS_GROUPS.items()} == dict(train=4795, val=1199, test=5794)
    assert SETS['waterbirds'].images == 11_788
    with_own = WATERBIRDS_GROUPS['train'][0] + WATERBIRDS_GROUPS['train'][3]
    assert round(100 * with_own / 4795) == 95


@pytest.mark.parametrize('name', ['waterbird_complete95_forest2water2', 'waterbirds', 'waterbirds_v1.0'])
def test_waterbirds_in_a_folder_of_many_sets(tmp_path, name):
    make_waterbirds(tmp_path / name)
    (tmp_path / 'imagenet-r').mkdir()
    assert len(WaterbirdsDataset(str(tmp_path))) == 16


def test_missing_waterbirds(tmp_path):
    with pytest.raises(MissingSetError, match='looked for waterbird_complete95_forest2water2 or .*group_DRO'):
        WaterbirdsDataset(str(tmp_path))
    make_waterbirds(tmp_path)
    with pytest.raises(ConfigError, match="unknown split 'dev', choose one of train, val, test"):
        WaterbirdsDataset(str(tmp_path), split='dev')
    (tmp_path / 'metadata.csv').unlink()
    with pytest.raises(MissingSetError, match='there is no file .*metadata.csv'):
        WaterbirdsDataset(str(tmp_path))


def test_pipeline_passes_the_group_on(tmp_path):
    make_waterbirds(tmp_path)
    load = [dict(type='LoadImageFromFile'), dict(type='PackInputs', meta_keys=('sample_idx', 'img_path', 'group'))]
    dataset = DATASETS.build(dict(type='WaterbirdsDataset', data_root=str(tmp_path), pipeline=load))
    for index in range(len(dataset)):
        assert dataset[index]['data_samples'].group == dataset.get_data_info(index)['group']


# Missing files
# ------------------------------------------------------------------------------------------------------------------


def test_missing_images_are_counted(tmp_path, log):
    make_waterbirds(tmp_path)
    gone = image_paths(WaterbirdsDataset(str(tmp_path)))[3:5]
    for path in gone:
        os.remove(path)
    dataset = WaterbirdsDataset(str(tmp_path))
    assert len(dataset) == 14 and not set(gone) & set(image_paths(dataset))
    assert dataset.metainfo['group_sizes'] == (6, 3, 2, 5)  # of the file
    note = '2 of the 16 images that metadata.csv lists are missing'
    assert describe_set(dataset)['notes'] == [note, 'incomplete: 14 of 4,795 images']
    assert note in log[0] and os.path.basename(gone[0]) in log[0]
    for folder in tmp_path.glob('0*'):
        shutil.rmtree(folder)
        folder.mkdir()
    with pytest.raises(MissingSetError, match='all 16 images that metadata.csv lists are missing, such as 0'):
        WaterbirdsDataset(str(tmp_path))


def test_unreadable_images(tmp_path, log):
    make_waterbirds(tmp_path)
    bad = image_paths(WaterbirdsDataset(str(tmp_path)))[3]
    with open(bad, 'wb') as file:
        file.write(b'no image')
    assert len(WaterbirdsDataset(str(tmp_path))) == 16
    dataset = WaterbirdsDataset(str(tmp_path), skip_unreadable=True)
    assert len(dataset) == 15 and dataset.num_skipped == 1 and bad not in image_paths(dataset)


# Subsets
# ------------------------------------------------------------------------------------------------------------------


def test_subsets_are_seeded_and_stratified_by_group(tmp_path):
    make_waterbirds(tmp_path, train=(60, 30, 20, 1))
    small, large = (WaterbirdsDataset(str(tmp_path), fraction=fraction) for fraction in (0.33, 0.5))
    assert groups(small) == {0: 20, 1: 10, 2: 7, 3: 1} and groups(large) == {0: 30, 1: 15, 2: 10, 3: 1}
    assert set(image_paths(small)) < set(image_paths(large))
    assert image_paths(WaterbirdsDataset(str(tmp_path), fraction=0.33)) == image_paths(small)
    assert image_paths(WaterbirdsDataset(str(tmp_path), fraction=0.33, subset_seed=1)) != image_paths(small)
    shutil.copy(tmp_path / 'metadata.csv', tmp_path / 'old.csv')
    lines = (tmp_path / 'old.csv').read_text().splitlines()
    (tmp_path / 'metadata.csv').write_text('\n'.join([lines[0], *reversed(lines[1:])]) + '\n')
    assert image_paths(WaterbirdsDataset(str(tmp_path), fraction=0.33)) == image_paths(small)[::-1]  # not of the order
    assert groups(WaterbirdsDataset(str(tmp_path), split='test', per_group=2)) == dict.fromkeys(range(4), 2)
    assert small.metainfo['group_sizes'] == (60, 30, 20, 1)  # of the whole training split
    with pytest.raises(ConfigError, match=r'per_group=2, but 1 groups have fewer images: waterbird on water \(1\)'):
        WaterbirdsDataset(str(tmp_path), per_group=2)


@pytest.mark.parametrize('holdout', [None, dict(fraction=0.25, seed=3, test=0.1, part='train')])
def test_per_class_is_drawn_after_the_holdout_whatever_the_groups(tmp_path, holdout):
    """The hold-out goes by group; of what it leaves, every class has as many images."""
    rows = make_waterbirds(tmp_path, train=(12, 9, 6, 21))
    left = {os.path.relpath(path, tmp_path) for path in image_paths(WaterbirdsDataset(str(tmp_path), holdout=holdout))}
    assert len(left) == (48 if holdout is None else 32)
    for number, seed in ((1, 0), (4, 0), (7, 0), (7, 2)):
        few = WaterbirdsDataset(str(tmp_path), holdout=holdout, per_class=number, subset_seed=seed)
        of_class = [{row['img_filename'] for row in rows if row['y'] == label} & left for label in range(2)]
        expected = set.union(*(draw_slowly(names, number, seed) for names in of_class))
        assert {os.path.relpath(path, tmp_path) for path in image_paths(few)} == expected
        assert few.metainfo['group_sizes'] == (12, 9, 6, 21) and len(few) == 2 * number
    assert describe_set(few)['notes'][-1].startswith('a subset (per_class=7): 14')
    with pytest.raises(ConfigError, match=r'per_class=25, but 1 classes have fewer images: landbird \(21\)'):
        WaterbirdsDataset(str(tmp_path), per_class=25)


def test_unreadable_images_are_not_drawn(tmp_path, log):
    make_waterbirds(tmp_path)
    bad = image_paths(WaterbirdsDataset(str(tmp_path), per_class=1))[0]
    with open(bad, 'wb') as file:
        file.write(b'no image')
    few = WaterbirdsDataset(str(tmp_path), per_class=1, skip_unreadable=True)
    assert len(few) == 2 and bad not in image_paths(few)


def test_holdout_by_group(tmp_path):
    make_waterbirds(tmp_path, train=(20, 10, 10, 40))
    parts = {
        part: WaterbirdsDataset(str(tmp_path), holdout=dict(fraction=0.2, test=0.1, part=part))
        for part in ('train', 'held_out', 'test')
    }
    assert groups(parts['held_out']) == {0: 4, 1: 2, 2: 2, 3: 8} and groups(parts['test']) == {0: 2, 1: 1, 2: 1, 3: 4}
    paths = [path for part in parts.values() for path in image_paths(part)]
    assert sorted(paths) == sorted(image_paths(WaterbirdsDataset(str(tmp_path))))


@pytest.mark.parametrize(
    'settings, message',
    [
        (dict(fraction=1.0), 'fraction=1.0 must lie between 0 and 1'),
        (dict(fraction=float('nan')), 'fraction=nan must lie between 0 and 1'),
        (dict(per_group=0), 'per_group=0 must be at least 1'),
        (dict(per_group=2, fraction=0.5), 'only one of them'),
        (dict(per_class=2, per_group=2), 'per_group=2 and per_class=2: only one of them can be set'),
        (dict(per_class=0), 'per_class=0 must be at least 1'),
        (dict(folders=['a']), 'WaterbirdsDataset has no folders'),
    ],
)
def test_wrong_subsets(tmp_path, settings, message):
    make_waterbirds(tmp_path)
    with pytest.raises(ConfigError, match=message):
        WaterbirdsDataset(str(tmp_path), **settings)


def test_images_of_two_splits_do_not_overlap(tmp_path):
    make_waterbirds(tmp_path)
    sets = [
        set(identify_images(dict(type='WaterbirdsDataset', data_root=str(tmp_path), split=split)))
        for split in ('train', 'val', 'test')
    ]
    assert [len(images) for images in sets] == [16, 10, 14] and len(set.union(*sets)) == 40


# Any CSV file
# ------------------------------------------------------------------------------------------------------------------


def test_celeba(tmp_path):
    """Attributes of −1 and 1, and the splits in a file of their own, in another order."""
    rows = [
        dict(image_id=f'{number}.jpg', Blond_Hair=blond, Male=male, Young=1, partition=partition)
        for number, (blond, male, partition) in enumerate(
            [(-1, -1, 0), (-1, 1, 0), (1, -1, 0), (1, 1, 0), (-1, 1, 0), (1, -1, 2), (-1, -1, 2), (1, 1, 1)]
        )
    ]
    for row in rows:
        save_small_image(tmp_path / 'img_align_celeba' / row['image_id'])
    write_csv(tmp_path / 'attributes.csv', [{**row, 'partition': 9} for row in rows])
    write_csv(tmp_path / 'splits.csv', [{key: row[key] for key in ('image_id', 'partition')} for row in rows[::-1]])
    celeba = dict(
        data_root=str(tmp_path),
        csv='attributes.csv',
        split_csv='splits.csv',
        image_dir='img_align_celeba',
        file_column='image_id',
        label_column='Blond_Hair',
        split_column='partition',
        train_split=0,
        classes=['dark', 'blond'],
        group_columns=dict(Blond_Hair=['dark', 'blond'], Male=['female', 'male']),
    )
    dataset = GroupCSVDataset(split=0, **celeba)
    items = [dataset.get_data_info(index) for index in range(len(dataset))]
    assert [item['gt_label'] for item in items] == [0, 0, 1, 1, 0] and [item['group'] for item in items] == [
        0,
        1,
        2,
        3,
        1,
    ]
    assert dataset.metainfo['group_names'] == ('dark, female', 'dark, male', 'blond, female', 'blond, male')
    assert dataset.metainfo['group_sizes'] == (1, 2, 1, 1)
    assert len(GroupCSVDataset(split=[1, 2], **celeba)) == 3 and len(GroupCSVDataset(**celeba)) == 8


def wilds(root, **settings):
    rows = [
        dict(split=split, location_remapped=location, y=label, filename=f'train/{number}.jpg')
        for number, (split, location, label) in enumerate(
            [('train', 12, 0), ('train', 7, 2), ('train', 7, 0), ('val', 30, 2), ('id_test', 12, 2), ('test', 100, 0)]
        )
    ]
    return dict(data_root=write_rows(root, rows), group_columns=['location_remapped'], **settings)


def test_wilds(tmp_path):
    """Groups without the label, sorted as numbers; a class that has no images keeps its place."""
    settings = wilds(tmp_path, train_split='train', classes=['empty', 'ape', 'cow'])
    dataset = GroupCSVDataset(split='test', **settings)
    assert dataset.metainfo['group_names'] == ('7', '12', '30', '100')
    assert dataset.metainfo['group_sizes'] == (2, 1, 0, 0)
    item = dataset.get_data_info(0)
    assert (item['gt_label'], item['group']) == (0, 3)
    assert [GroupCSVDataset(split=name, **settings).get_data_info(0)['gt_label'] for name in ('val', 'id_test')] == [
        2,
        2,
    ]
    assert describe_set(dataset)['notes'] == [] and describe_set(dataset)['complete'] is None


def test_names_are_optional(tmp_path):
    dataset = GroupCSVDataset(**wilds(tmp_path))
    assert dataset.metainfo['classes'] == ('0', '2') and 'group_sizes' not in dataset.metainfo
    dataset = GroupCSVDataset(str(tmp_path))
    assert dataset.metainfo['group_names'] == ('all',) and groups(dataset) == {0: 6}
    assert DATASETS.build(dict(type='GroupCSVDataset', data_root=str(tmp_path), lazy_init=True)).name_classes(
        tmp_path
    ) == ['0', '2']


@pytest.mark.parametrize(
    'values, names, numbers, all_names',
    [
        (['b', 'a', 'b'], None, [1, 0, 1], ('a', 'b')),
        (['10', '9', '-1'], None, [2, 1, 0], ('-1', '9', '10')),
        (['b', 'a'], ['b', 'c', 'a'], [0, 2], ('b', 'c', 'a')),
        (['1', '1'], ['x', 'y'], [1, 1], ('x', 'y')),
        (['1', '2'], ['x', 'y'], [0, 1], ('x', 'y')),
        (['-1', '1'], ['x', 'y'], [0, 1], ('x', 'y')),
        (['1', '0'], ['1', '0'], [0, 1], ('1', '0')),
    ],
)
def test_numbers_of_values(values, names, numbers, all_names):
    assert number_values(values, names, 'here') == (numbers, all_names)


@pytest.mark.parametrize(
    'settings, message',
    [
        (dict(file_column='file_name'), "no column 'file_name'; its columns are split, .* Did you mean 'filename'"),
        (dict(label_column='label'), "no column 'label'"),
        (dict(group_columns=['place']), "no column 'place'"),
        (dict(group_columns='y'), r"group_columns='y' must be a list of columns, such as \['y'\]"),
        (dict(split='tset'), r"split=tset, but column split has id_test \(1\), .* Did you mean 'test'"),
        (dict(split=True), 'split=True must be a value'),
        (dict(split=[]), r'split=\[\] must be a value'),
        (dict(train_split=0), 'train_split=0, but column split has'),
        (
            dict(group_columns=dict(location_remapped=['a', 'b', 'c'])),
            r'4 values \(7, 12, 30, 100\), but 3 names are given',
        ),
        (dict(classes=['a']), r'column y has 2 values \(0, 2\), but 1 names are given \(a\)'),
        (dict(group_names=['a', 'b']), r'4 groups \(7, 12, 30, 100\), but 2 group_names are given'),
        (dict(group_names=['a', 'b', 'a', 'c']), 'several groups have the name a'),
        (dict(csv='meta.csv'), 'there is no file .*meta.csv'),
        (dict(split_csv='splits.csv', split=0), 'there is no file .*splits.csv'),
    ],
)
def test_what_does_not_fit_the_file(tmp_path, settings, message):
    with pytest.raises((ConfigError, MissingSetError), match=message):
        GroupCSVDataset(**{**wilds(tmp_path), **settings})


@pytest.mark.parametrize(
    'text, message',
    [
        ('', "no column 'filename'; its columns are none"),
        ('filename,y\n', 'lists no images'),
        ('filename,y\na.jpg,1\nb.jpg\n', 'line 3: there is no value of y'),
        ('filename,y\na.jpg,\n', 'line 2: there is no value of y'),
        ('filename,y\na.jpg,1\na.jpg,0\n', '1 images stand in several rows: a.jpg'),
        ('filename;y\na.jpg;1\n', "no column 'filename'; its columns are filename;y"),
    ],
)
def test_broken_files(tmp_path, text, message):
    (tmp_path / 'metadata.csv').write_text(text)
    save_small_image(tmp_path / 'a.jpg')
    with pytest.raises(ConfigError, match=message):
        GroupCSVDataset(str(tmp_path))


def test_spaces_and_byte_order_mark(tmp_path):
    save_small_image(tmp_path / 'a b.jpg')
    (tmp_path / 'metadata.csv').write_bytes('\ufefffilename, y\r\n"a b.jpg", 1\r\n\r\n'.encode())
    assert image_paths(GroupCSVDataset(str(tmp_path)))[0].endswith('/a b.jpg')


def test_split_file_without_all_images(tmp_path):
    settings = wilds(tmp_path)
    write_csv(tmp_path / 'splits.csv', [dict(filename='train/0.jpg', split='train')])
    with pytest.raises(ConfigError, match='no row for 5 of 6 images: train/1.jpg'):
        GroupCSVDataset(split='train', split_csv='splits.csv', **settings)


def test_texts_must_be_among_the_names():
    assert number_values(['-1', '1'], ['dark', 'blond'], 'y') == ([0, 1], ('dark', 'blond'))
    with pytest.raises(ConfigError, match='y has 2 values .*: texts must be among the names'):
        number_values(['dark', 'blond'], ['Dark', 'Blond'], 'y')
