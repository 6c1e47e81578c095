"""What tools/check_data.py says of whole, incomplete and wrong copies, with published counts that fit small trees."""

import dataclasses
import json
import shutil

import pytest
import trees
from shards import image_bytes, make_tars

import mmcfmask.datasets.checks as checks
from mmcfmask.datasets.checks import check_set, check_sets
from mmcfmask.datasets.duplicates import duplicate_folders
from mmcfmask.datasets.imagenet_shifts import IMAGENET_WNIDS
from mmcfmask.datasets.layouts import SETS
from mmcfmask.datasets.published import BENCHMARKS

WNIDS = IMAGENET_WNIDS[:20]


@pytest.fixture
def published(monkeypatch):
    """Set what was published about a set: its class folders, the number of images, and of each class."""

    def publish(name, images, folders=WNIDS, per_class=None):
        monkeypatch.setitem(SETS, name, dataclasses.replace(SETS[name], images=images, num_classes=len(folders)))
        monkeypatch.setitem(checks.FOLDERS, name, folders)
        monkeypatch.setitem(checks.PER_CLASS, name, per_class)

    return publish


def make(root, folders=WNIDS):
    return trees.make_tree(root, folders, trees.OWN)


def test_published_counts():
    counts = {
        name: (published.images, published.num_classes) for name, published in SETS.items() if name not in BENCHMARKS
    }
    assert counts == {
        'imagenet': (50_000, 1000),
        'imagenet-train': (1_281_167, 1000),
        'imagenet-v2': (10_000, 1000),
        'imagenet-v2-threshold-0.7': (10_000, 1000),
        'imagenet-v2-top-images': (10_000, 1000),
        'imagenet-r': (30_000, 200),
        'imagenet-a': (7_500, 200),
        'imagenet-sketch': (50_889, 1000),
        'objectnet': (18_574, 113),
        'imagenet-c': (3_750_000, 1000),
        'waterbirds': (11_788, 2),
    }
    assert checks.OBJECTNET_IMAGES == 50_273
    for name, per_class in checks.PER_CLASS.items():
        assert per_class * 1000 * (75 if name == 'imagenet-c' else 1) == counts[name][0]


def test_complete_and_missing_sets(tmp_path, published):
    make(tmp_path / 'imagenet-a')
    make(tmp_path / 'imagenetv2-matched-frequency-format-val', map(str, range(20)))
    published('imagenet-a', 20)
    published('imagenet-v2', 200, list(map(str, range(20))), per_class=10)
    reports = {report.name: report for report in check_sets(tmp_path, sample=7)}
    a, v2, r = (reports[name] for name in ('imagenet-a', 'imagenet-v2', 'imagenet-r'))
    assert (a.status, a.images, a.classes, a.decoded, a.words()) == ('complete', 20, 20, 7, [])
    assert (v2.status, v2.images, v2.classes) == ('incomplete', 20, 20)
    assert v2.words() == [
        '180 images fewer than published (20 of 200)',
        '20 classes do not have 10 images: 0 (1), 1 (1), 2 (1), 3 (1), 4 (1), 5 (1), 6 (1), 7 (1), 8 (1), 9 (1), ... '
        '(10 more)',
    ]
    assert (r.status, r.folder, r.images) == ('missing', None, 0) and SETS['imagenet-r'].source in r.words()[0]
    assert 'imagenet-v2-top-images' not in reports and len(reports) == len(SETS) - 3 - len(BENCHMARKS)


def test_images_that_are_too_many(tmp_path, published):
    make(tmp_path / 'imagenet-a')
    published('imagenet-a', 19)
    report = check_set('imagenet-a', tmp_path)
    assert report.words() == ['1 images more than published (20 of 19)'] and report.status == 'wrong'


def test_wrong_folders(tmp_path, published):
    published('imagenet-a', 20)
    root = make(tmp_path / 'imagenet-a')
    shutil.move(root / WNIDS[3], root / f'{WNIDS[3]}x')
    (root / WNIDS[4] / f'{WNIDS[4]}_a.jpg').unlink()
    report = check_set('imagenet-a', tmp_path)
    assert report.status == 'wrong' and report.images == 18 and report.classes == 18
    assert report.words() == [
        f'1 of 20 class folders are missing: {WNIDS[3]}',
        f'1 folders are not known classes: {WNIDS[3]}x (near {WNIDS[3]})',
        f'1 classes have no images: {WNIDS[4]}',
        '2 images fewer than published (18 of 20)',
    ]


def test_a_folder_of_any_name_is_only_what_it_is_in_whole(tmp_path, published):
    published('imagenet-r', 20)
    published('imagenet-a', 25, IMAGENET_WNIDS[:25])
    root = make(tmp_path / 'renditions')
    reports = {report.name: report for report in check_sets(root)}
    r, a, sketch = (reports[name] for name in ('imagenet-r', 'imagenet-a', 'imagenet-sketch'))
    assert (r.status, a.status, sketch.status) == ('complete', 'missing', 'missing')
    assert f'{root} holds 20 class folders of ImageNet' in a.words()[0] and SETS['imagenet-a'].source in a.words()[1]
    shutil.rmtree(root / WNIDS[0])
    assert {report.status for report in check_sets(root)} == {'missing'}
    assert check_sets(root, ['imagenet-r'])[0].status == 'wrong'  # as was asked
    root = root.rename(tmp_path / 'sketch')
    reports = {report.name: report for report in check_sets(root)}
    assert reports['imagenet-sketch'].status == 'wrong' and reports['imagenet-a'].status == 'missing'


def test_ids_of_other_classes_are_no_misspellings(tmp_path, published):
    published('imagenet-a', 20)
    make(tmp_path / 'imagenet-a', IMAGENET_WNIDS[:22])
    assert check_set('imagenet-a', tmp_path).problems == [
        f'2 folders are not known classes: {IMAGENET_WNIDS[20]}, {IMAGENET_WNIDS[21]}'
    ]


def numbered(root, folders, shift=0):
    """Two images in each folder, different everywhere but for their names."""
    for number, folder in enumerate(folders, start=shift):
        for index in range(2):
            (root / folder).mkdir(parents=True, exist_ok=True)
            (root / folder / f'sketch_{index}.JPEG').write_bytes(f'{number}/{index}'.encode())


def test_duplicate_folders(tmp_path):
    numbered(tmp_path, ['a', 'b', 'c', 'd'])
    numbered(tmp_path, ['A', 'C'])
    shutil.copytree(tmp_path / 'b', tmp_path / 'b (copy)')
    shutil.copytree(tmp_path / 'd', tmp_path / 'd_renamed_file')
    (tmp_path / 'd_renamed_file/sketch_0.JPEG').rename(tmp_path / 'd_renamed_file/other.JPEG')
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'void').mkdir()
    images = {path.name: sorted(f'{path.name}/{image.name}' for image in path.iterdir()) for path in tmp_path.iterdir()}
    groups = {frozenset(group) for group in duplicate_folders(tmp_path, images)}
    # 'C' was filled like 'b'; the names in 'd_renamed_file' are not those in 'd'.
    assert groups == {frozenset({'a', 'A'}), frozenset({'b', 'b (copy)', 'C'})}


def test_class_folder_under_two_names(tmp_path, published):
    published('imagenet-v2', 40, list(map(str, range(20))))
    root = tmp_path / 'imagenet-v2'
    numbered(root, map(str, range(20)))
    shutil.copytree(root / '7', root / 'cock')
    shutil.rmtree(root / '12')
    shutil.copytree(root / '11', root / '12')
    report = check_set('imagenet-v2', tmp_path, sample=0)
    assert report.status == 'wrong' and report.problems == [
        '1 folders are not known classes: cock',
        '2 class folders hold the same files as another: 11 = 12, 7 = cock',
    ]


def test_broken_images(tmp_path, published):
    published('imagenet-a', 20)
    path = make(tmp_path / 'imagenet-a') / WNIDS[8] / f'{WNIDS[8]}_a.jpg'
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[:-60])
    assert check_set('imagenet-a', tmp_path, sample=0).status == 'complete'
    report = check_set('imagenet-a', tmp_path, sample=None)
    assert report.decoded == 20 and report.status == 'wrong'
    assert report.problems[0].startswith(
        f'1 of 20 images that were read are broken: {path} cannot be read as an image (image file is truncated'
    )


def test_imagenet_in_the_wrong_folders(tmp_path, published):
    published('imagenet', 20)
    published('imagenet-train', 20)
    for split, image in (('train', f'{WNIDS[1]}_12.JPEG'), ('val', 'ILSVRC2012_val_00000002.JPEG')):
        folder = make(tmp_path / split) / WNIDS[0]
        (folder / f'{WNIDS[0]}_a.jpg').rename(folder / image)
    train, val = check_sets(tmp_path, ['imagenet-train', 'imagenet'])
    assert train.words() == [
        f'1 images lie in the folder of another class: {WNIDS[0]}/{WNIDS[1]}_12.JPEG (of {WNIDS[1]})'
    ]
    assert val.status == 'complete'
    trees.write_devkit(tmp_path / 'ILSVRC2012_devkit_t12/data', IMAGENET_WNIDS)
    assert check_set('imagenet', tmp_path).words() == [
        f'1 images lie in the folder of another class: {WNIDS[0]}/ILSVRC2012_val_00000002.JPEG (of {WNIDS[1]})'
    ]


def test_flat_val(tmp_path, published):
    published('imagenet', 1000, IMAGENET_WNIDS)
    wnids = trees.make_flat_val(tmp_path / 'val')
    report = check_set('imagenet', tmp_path)
    assert report.status == 'wrong' and 'labels were not found' in report.problems[0]
    trees.write_devkit(tmp_path / 'ILSVRC2012_devkit_t12/data', wnids)
    report = check_set('imagenet', tmp_path)
    assert (report.status, report.images, report.classes, report.decoded) == ('complete', 1000, 1000, 100)
    (tmp_path / 'val/ILSVRC2012_val_00000001.JPEG').unlink()
    assert check_set('imagenet', tmp_path).words()[:2] == [
        f'1 classes have no images: {wnids[0]}',
        '1 images fewer than published (999 of 1,000)',
    ]


def test_objectnet(tmp_path, published):
    published('objectnet', 113, range(113))
    trees.make_objectnet(tmp_path / 'objectnet-1.0', trees.OWN)
    report = check_set('objectnet', tmp_path)
    assert (report.status, report.images, report.classes) == ('complete', 113, 113)
    assert report.words() == ['313 of 50,273 images in 313 of 313 folders; the 113 that overlap with ImageNet count']
    shutil.rmtree(tmp_path / 'objectnet-1.0/images/alarm_clock')
    assert check_set('objectnet', tmp_path).problems == ['1 of 113 class folders are missing: alarm_clock']
    labels = tmp_path / 'objectnet-1.0/mappings/objectnet_to_imagenet_1k.json'
    overlap = json.loads(labels.read_text())
    del overlap['Alarm clock']
    labels.write_text(json.dumps(overlap))
    assert check_set('objectnet', tmp_path).problems == [
        'by the mapping files 112 classes overlap with ImageNet, but it should be 113'
    ]
    (tmp_path / 'objectnet-1.0/mappings/imagenet_to_label_2012_v2').unlink()
    assert 'lacks imagenet_to_label_2012_v2' in check_set('objectnet', tmp_path).words()[0]


def test_corruptions(tmp_path, published, monkeypatch):
    published('imagenet-c', 80, per_class=1)
    monkeypatch.setattr(checks.ImageNetCDataset, 'CORRUPTIONS', ('defocus_blur', 'contrast'))
    monkeypatch.setattr(checks, 'SEVERITIES', (1, 5))
    root = trees.make_corruptions(tmp_path / 'imagenet-c', wnids=WNIDS, names=trees.OWN)
    report = check_set('imagenet-c', tmp_path)
    assert (report.status, report.images, report.classes, report.words()) == ('complete', 80, 20, [])
    shutil.rmtree(root / 'blur/defocus_blur/1')
    shutil.rmtree(root / 'digital/contrast/1')
    shutil.copytree(root / 'blur/defocus_blur/5', root / 'digital/contrast/1', symlinks=True)
    shutil.rmtree(root / 'digital/contrast/5' / WNIDS[0])
    report = check_set('imagenet-c', tmp_path)
    assert (
        report.status == 'wrong'
        and report.classes == 19
        and report.words()
        == [
            '1 of 4 folders of a corruption and severity are missing: defocus_blur/1',
            f'contrast/5: 1 of 20 class folders are missing: {WNIDS[0]}',
            'folders of different corruptions or severities hold the same files: defocus_blur/5 = contrast/1',
            '21 images fewer than published (59 of 80)',
        ]
    )


def test_bad_arguments(tmp_path):
    with pytest.raises(ValueError, match='unknown set imagenet-q: choose from imagenet, imagenet-train, '):
        check_sets(tmp_path, ['imagenet-q'])
    with pytest.raises(FileNotFoundError, match='the folder .*nowhere does not exist'):
        check_sets(tmp_path / 'nowhere')


def test_progress(tmp_path, published):
    published('imagenet-a', 20)
    make(tmp_path / 'imagenet-a')
    seen = []
    check_set('imagenet-a', tmp_path, sample=7, watch=lambda items, number, what: seen.append((number, what)) or items)
    assert seen == [(20, 'ImageNet-A: counting'), (7, 'ImageNet-A: reading images')]


def test_waterbirds(tmp_path, monkeypatch):
    counts = dict(train=(6, 3, 2, 5), val=(3, 3, 2, 2), test=(4, 4, 3, 3))
    monkeypatch.setattr(checks, 'WATERBIRDS_GROUPS', counts)
    monkeypatch.setitem(SETS, 'waterbirds', dataclasses.replace(SETS['waterbirds'], images=40))
    trees.make_waterbirds(tmp_path / 'waterbirds', **counts)
    report = check_set('waterbirds', tmp_path)
    assert report.status == 'complete' and not report.words() and (report.images, report.decoded) == (40, 40)
    (tmp_path / 'other').mkdir()
    for folder, found in ((tmp_path, True), (tmp_path / 'other', False)):
        assert ('waterbirds' in [report.name for report in check_sets(folder)]) == found
    first = next((tmp_path / 'waterbirds').glob('0*/*.jpg'))
    first.write_bytes(b'no image')
    assert check_set('waterbirds', tmp_path).problems[0].startswith('1 of 40 images that were read are broken')
    first.unlink()
    report = check_set('waterbirds', tmp_path)
    assert report.status == 'incomplete' and report.words() == [
        '1 images fewer than published (39 of 40)',
        '1 of 40 images of metadata.csv are missing',
    ]
    table = (tmp_path / 'waterbirds' / 'metadata.csv').read_text()
    (tmp_path / 'waterbirds' / 'metadata.csv').write_text(table.replace(',1,0,0,', ',1,0,1,'))
    assert check_set('waterbirds', tmp_path).problems == [
        'train: 6 / 3 / 0 / 7 images of the groups, published 6 / 3 / 2 / 5'
    ]
    lines = table.splitlines()
    (tmp_path / 'waterbirds' / 'metadata.csv').write_text('\n'.join(line for line in lines if ',2,0,/' not in line))
    report = check_set('waterbirds', tmp_path)
    assert report.status == 'incomplete'
    assert 'test: 0 / 4 / 0 / 3 images of the groups, published 4 / 4 / 3 / 3' in report.notes
    (tmp_path / 'waterbirds' / 'metadata.csv').unlink()
    report = check_set('waterbirds', tmp_path)
    assert report.status == 'wrong' and 'there is no file' in report.problems[0]


def test_shards(tmp_path, published):
    """Complete, with an unknown label, of the wrong class by their names; alone and beside others."""
    published('imagenet-a', 40)
    published('imagenet', 20, per_class=1)
    published('imagenet-r', 20)
    content = image_bytes(0)
    samples = [dict(key=f'{i:02d}', png=content, cls=str(i % 20)) for i in range(40)]
    make_tars(tmp_path / 'imagenet-a', samples, 15)
    val = [dict(key=f'{wnid}_{label}', png=content, cls=str(label)) for label, wnid in enumerate(WNIDS)]
    make_tars(tmp_path / 'imagenet' / 'val', val)
    make_tars(
        tmp_path / 'imagenet-r', [dict(sample, cls='20') if sample['key'] == '07' else sample for sample in samples]
    )
    reports = {report.name: report for report in check_sets(tmp_path, sample=5)}
    a, r, whole = (reports[name] for name in ('imagenet-a', 'imagenet-r', 'imagenet'))
    assert (a.status, a.images, a.classes, a.decoded, a.words()) == ('complete', 40, 20, 5, ['in 3 shards'])
    assert (whole.status, whole.images, whole.decoded) == ('complete', 20, 5)
    assert r.status == 'wrong' and "0001.tar: 07.png has the label '20', which is not one of the 20" in r.words()[0]
    val[0], val[1] = dict(val[0], cls='1'), dict(val[1], cls='1')
    make_tars(tmp_path / 'imagenet' / 'val', val)
    words = ' '.join(check_set('imagenet', tmp_path).words())
    assert f'1 of 20 class folders are missing: {WNIDS[0]}' in words
    only = {report.name: report for report in check_sets(tmp_path / 'imagenet-r')}
    assert only['imagenet-r'].status == 'wrong' and only['imagenet-a'].status == 'missing'


def test_broken_image_in_a_shard(tmp_path, published):
    published('imagenet-a', 20)
    samples = [dict(key=f'{wnid}/1', png=image_bytes(0)) for wnid in WNIDS]
    samples[4]['png'] = b'no image'
    make_tars(tmp_path / 'imagenet-a', samples)
    (words,) = check_set('imagenet-a', tmp_path).problems
    assert f'1 of 20 images that were read are broken: tar://{tmp_path}/imagenet-a/0001.tar#' in words
    assert f'{WNIDS[4]}/1.png cannot be read as an image' in words
