"""What tools/check_data.py says of the benchmarks, with published counts that fit small trees."""

import dataclasses
import json

import pytest
import trees

from mmcfmask.datasets import ImageNet9Dataset, benchmark_checks
from mmcfmask.datasets.checks import check_set, check_sets
from mmcfmask.datasets.imagenet_labels import IMAGENET_WNIDS, read_coarse_classes
from mmcfmask.datasets.layouts import SETS
from mmcfmask.datasets.published import BENCHMARKS


def publish(monkeypatch, name, images, classes):
    changed = dataclasses.replace(SETS[name], images=images, num_classes=classes)
    for table in (SETS, BENCHMARKS):
        monkeypatch.setitem(table, name, changed)


def test_every_benchmark_is_checked():
    assert set(benchmark_checks.DATASETS) | {'celeba'} == set(BENCHMARKS)


def make_in9(root):
    for variation in ImageNet9Dataset.VARIATIONS:
        trees.make_tree(root / variation / 'val', read_coarse_classes('imagenet9'))


@pytest.fixture
def in9(tmp_path):
    make_in9(tmp_path / 'bg_challenge')
    return tmp_path


def test_imagenet9(in9, monkeypatch):
    report = check_set('imagenet-9', in9, sample=7)
    assert (report.status, report.images, report.classes, report.decoded) == ('incomplete', 72, 9, 7)
    assert report.folder == str(in9 / 'bg_challenge') and 'original: 9, mixed_same: 9' in report.words()[-1]
    publish(monkeypatch, 'imagenet-9', 72, 9)
    report = check_set('imagenet-9', in9)
    assert report.status == 'complete' and report.words() == []
    (in9 / 'bg_challenge' / 'only_fg').rename(in9 / 'bg_challenge' / 'fg')
    report = check_set('imagenet-9', in9)
    assert report.status == 'wrong' and '1 of 8 variations are missing: only_fg' in report.problems[0]


def test_only_sets_that_are_there_are_listed(in9):
    """And a folder without a name of theirs is none of them, unless it is named."""
    listed = [report.name for report in check_sets(in9)]
    assert [name for name in listed if name in BENCHMARKS] == ['imagenet-9']
    make_in9(in9 / 'mine')
    assert not {report.name for report in check_sets(in9 / 'mine')} & set(BENCHMARKS)
    (report,) = check_sets(in9 / 'mine', ['imagenet-9'])
    assert report.folder == str(in9 / 'mine') and report.images == 72
    (report,) = check_sets(in9, ['vlcs'])
    assert report.status == 'missing' and BENCHMARKS['vlcs'].source in report.notes[0]


def test_domains(tmp_path, monkeypatch):
    trees.make_domains(tmp_path / 'VLCS')
    publish(monkeypatch, 'vlcs', 200, 5)
    report = check_set('vlcs', tmp_path)
    assert (report.status, report.images, report.classes) == ('complete', 200, 5)


def test_labels_of_validation_images(tmp_path, monkeypatch):
    trees.make_tree(tmp_path / 'val', IMAGENET_WNIDS, ['ILSVRC2012_val_00000001.JPEG', 'ILSVRC2012_val_00000002.JPEG'])
    assert check_set('imagenet-real', tmp_path).status == 'missing'
    (tmp_path / 'real.json').write_text(json.dumps([[], [5, 7]]))
    report = check_set('imagenet-real', tmp_path, sample=3)
    assert (report.status, report.images, report.classes, report.decoded) == ('incomplete', 1000, 2, 3)
    assert report.folder == str(tmp_path / 'val')
    (tmp_path / 'real.json').write_text('[[1001], []]')
    report = check_set('imagenet-real', tmp_path)
    assert report.status == 'wrong' and 'entry 1: [1001] is not a list of indices' in report.problems[0]


def test_celeba(tmp_path, monkeypatch):
    faces = [(b, m, split) for split in (0, 1, 2) for b in (-1, 1) for m in (-1, 1)]
    trees.make_celeba(tmp_path / 'celeba', faces)
    groups = dict.fromkeys(('train', 'val', 'test'), (1, 1, 1, 1))
    monkeypatch.setattr(benchmark_checks, 'CELEBA_GROUPS', groups)
    publish(monkeypatch, 'celeba', 12, 2)
    report = check_set('celeba', tmp_path)
    assert (report.status, report.images, report.classes, report.decoded) == ('complete', 12, 2, 12)
    next((tmp_path / 'celeba' / 'img_align_celeba').iterdir()).unlink()
    report = check_set('celeba', tmp_path)
    assert report.status == 'incomplete' and '1 of 12 images of list_attr_celeba.csv are missing' in report.words()
    groups['test'] = (1, 2, 1, 0)
    assert check_set('celeba', tmp_path).problems == [
        'test: 1 / 1 / 1 / 1 images of the groups, published 1 / 2 / 1 / 0'
    ]


def test_wilds(tmp_path, monkeypatch):
    table = [(split, 'zoo', '2010-01-01T00:00:00Z', 'USA') for split in ('train', 'val', 'test')]
    table += [(split, 'port', f'{year}-01-01T00:00:00Z', 'KEN') for split, year in (('val', 2014), ('test', 2017))]
    trees.make_fmow(tmp_path / 'fmow_v1.1', table)
    publish(monkeypatch, 'fmow', 5, 2)
    report = check_set('fmow', tmp_path)
    assert (report.status, report.images, report.classes) == ('complete', 5, 2)
    (tmp_path / 'fmow_v1.1' / 'country_code_mapping.csv').unlink()
    report = check_set('fmow', tmp_path)
    assert report.status == 'wrong' and 'country_code_mapping.csv' in report.problems[0]
