"""WILDS and CelebA from their CSV files, with the columns and the official splits of their authors."""

import pytest
import trees

from mmcfmask.datasets import CelebADataset, WILDSDataset
from mmcfmask.datasets.published import BENCHMARKS, CELEBA_GROUPS, WILDS_IMAGES
from mmcfmask.errors import ConfigError


def listed(root, benchmark, split):
    """(path, label, name of the group) of every image."""
    dataset = WILDSDataset(str(root), benchmark, split)
    items = [dataset.get_data_info(index) for index in range(len(dataset))]
    names = dataset.metainfo['group_names']
    return [
        (item['img_path'].removeprefix(f'{dataset.data_root}/'), item['gt_label'], names[item['group']])
        for item in items
    ], dataset


def test_camelyon17(tmp_path):
    """The paths are made of columns; hospital 1 validates, hospital 2 tests."""
    root = tmp_path / 'camelyon17_v1.0'
    rows = []
    for number, (center, split) in enumerate([(0, 0), (3, 1), (1, 0), (2, 0), (2, 1)]):
        row = dict(patient=f'00{number}', node=1, x_coord=10 + number, y_coord=20, tumor=number % 2, slide=0)
        rows.append({'': number, **row, 'center': center, 'split': split})
        stem = f'patient_00{number}_node_1'
        trees.save_small_image(root / 'patches' / stem / f'patch_{stem}_x_{10 + number}_y_20.png')
    trees.write_csv(root / 'metadata.csv', rows)
    first = 'patches/patient_000_node_1/patch_patient_000_node_1_x_10_y_20.png'
    assert listed(tmp_path, 'camelyon17', 'train')[0] == [(first, 0, '0')]
    labels = {split: [row[1] for row in listed(root, 'camelyon17', split)[0]] for split in ('id_val', 'val', 'test')}
    assert labels == dict(id_val=[1], val=[0], test=[1, 0])
    assert listed(tmp_path, 'camelyon17', 'test')[1].metainfo['group_sizes'] == (1, 0, 0, 0)


def test_iwildcam(tmp_path):
    root = tmp_path / 'iwildcam_v2.0'
    rows = [
        dict(split=split, filename=f'{n}.jpg', y=y, location_remapped=n)
        for n, (split, y) in enumerate([('train', 0), ('test', 10), ('id_test', 2), ('val', 0)])
    ]
    for row in rows:
        trees.save_small_image(root / 'train' / row['filename'])
    trees.write_csv(root / 'metadata.csv', rows)
    items, dataset = listed(tmp_path, 'iwildcam', 'test')
    assert items == [('train/1.jpg', 2, 'all')] and dataset.metainfo['classes'] == ('0', '2', '10')


def test_fmow(tmp_path):
    """Images are numbered by all rows of the file, sequestered ones included; splits are by year, groups by region."""
    table = [
        ('train', 'zoo', '2012-12-31T23:59:59Z', 'USA'),
        ('seq', 'zoo', '2012-01-01T00:00:00Z', 'USA'),
        ('train', 'zoo', '2013-01-01T00:00:00Z', 'USA'),  # unused
        ('val', 'airport', '2015-12-31T00:00:00Z', 'KEN'),
        ('val', 'airport', '2016-01-01T00:00:00Z', 'KEN'),  # unused
        ('test', 'airport', '2016-01-01T00:00:00Z', 'KEN'),
        ('test', 'zoo', '2017-01-01T00:00:00Z', 'XXX'),
        ('test', 'zoo', '2014-01-01T00:00:00Z', 'USA'),  # unused
        ('val', 'zoo', '2010-01-01T00:00:00Z', 'USA'),
        ('test', 'zoo', '2010-01-01T00:00:00Z', 'USA'),
    ]
    trees.make_fmow(tmp_path / 'fmow_v1.1', table)
    expected = dict(
        train=[(0, 1, 'Americas')],
        id_val=[(8, 1, 'Americas')],
        id_test=[(9, 1, 'Americas')],
        val=[(3, 0, 'Africa')],
        test=[(5, 0, 'Africa'), (6, 1, 'Other')],
    )
    for split, images in expected.items():
        items, dataset = listed(tmp_path, 'fmow', split)
        assert items == [(f'images/rgb_img_{number}.png', label, region) for number, label, region in images], split
    assert dataset.metainfo['classes'] == ('airport', 'zoo')


def test_rxrx1(tmp_path):
    root = tmp_path / 'rxrx1_v1.0'
    rows = []
    for dataset, site in (('train', 1), ('train', 2), ('val', 1), ('test', 2)):
        row = dict(
            experiment='HEPG2-01', plate=1, well='B02', site=site, sirna_id=7, cell_type='HEPG2', dataset=dataset
        )
        row['well'] = f'B0{len(rows)}'
        rows.append(row)
        trees.save_small_image(root / 'images' / 'HEPG2-01' / 'Plate1' / f'{row["well"]}_s{site}.png')
    trees.write_csv(root / 'metadata.csv', rows)
    found = {
        split: [path[-10:] for path, _, _ in listed(tmp_path, 'rxrx1', split)[0]] for split in WILDS_IMAGES['rxrx1']
    }
    assert found == dict(train=['B00_s1.png'], id_test=['B01_s2.png'], val=['B02_s1.png'], test=['B03_s2.png'])
    assert listed(tmp_path, 'rxrx1', 'test')[1].metainfo['group_names'] == ('HEPG2',)


def test_published_counts():
    for name, images in WILDS_IMAGES.items():
        assert sum(images.values()) == BENCHMARKS[name].images, name
    assert [sum(groups) for groups in CELEBA_GROUPS.values()] == [162_770, 19_867, 19_962]


def test_errors(tmp_path):
    with pytest.raises(ConfigError, match="unknown benchmark='celeba', .*CelebA and Waterbirds have datasets of their"):
        WILDSDataset(str(tmp_path), 'celeba')
    with pytest.raises(ConfigError, match="camelyon17 has no split 'id_test', choose one of train, id_val, val, test"):
        WILDSDataset(str(tmp_path), 'camelyon17', 'id_test')
    with pytest.raises(ConfigError, match="CelebADataset: unknown split 'valid'"):
        CelebADataset(str(tmp_path), 'valid')


@pytest.mark.parametrize('nested', [False, True])
def test_celeba(tmp_path, nested):
    """Attributes are −1 and 1, splits stand in a second file; Kaggle's archive holds a folder in a folder."""
    faces = [(-1, -1, 0), (1, 1, 0), (1, -1, 2), (-1, 1, 2), (1, 1, 1)]
    trees.make_celeba(tmp_path / 'celeba', faces, 'img_align_celeba/img_align_celeba' if nested else 'img_align_celeba')
    dataset = CelebADataset(str(tmp_path), 'test')
    names = dataset.metainfo['group_names']
    found = [(item['gt_label'], names[item['group']]) for item in map(dataset.get_data_info, range(len(dataset)))]
    assert found == [(1, 'blond, female'), (0, 'not blond, male')]
    assert dataset.metainfo['group_sizes'] == (1, 0, 0, 1) and dataset.metainfo['protocol']['images'] == 19_962
