"""What tools/check_data.py says of whole, incomplete and wrong copies, with published counts that fit small trees."""
import dataclasses
import shutil

import pytest
import trees

import mmcfmask.datasets.checks as checks
from mmcfmask.datasets.checks import check_set, check_sets, duplicate_folders
from mmcfmask.datasets.imagenet_shifts import IMAGENET_WNIDS
from mmcfmask.datasets.layouts import SETS


@pytest.fixture
def published(monkeypatch):
    """Set the published number of images of a set, and of each of its classes."""

    def publish(name, images, per_class=None):
        monkeypatch.setitem(SETS, name, dataclasses.replace(SETS[name], images=images))
        monkeypatch.setitem(checks.PER_CLASS, name, per_class)

    return publish


def test_published_counts():
    counts = {name: (published.images, published.num_classes) for name, published in SETS.items()}
    assert counts == {
        'imagenet': (50_000, 1000), 'imagenet-train': (1_281_167, 1000), 'imagenet-v2': (10_000, 1000),
        'imagenet-v2-threshold-0.7': (10_000, 1000), 'imagenet-v2-top-images': (10_000, 1000), 'imagenet-r': (30_000, 200),
        'imagenet-a': (7_500, 200), 'imagenet-sketch': (50_889, 1000), 'objectnet': (18_574, 113), 'imagenet-c': (3_750_000, 1000)
    }
    assert checks.OBJECTNET_IMAGES == 50_273
    for name, per_class in checks.PER_CLASS.items():
        assert per_class * 1000 * (75 if name == 'imagenet-c' else 1) == counts[name][0]


def test_complete_and_missing_sets(tmp_path, published):
    trees.make_a(tmp_path / 'imagenet-a')
    trees.make_v2(tmp_path / 'imagenetv2-matched-frequency-format-val')
    published('imagenet-a', 200)
    reports = {report.name: report for report in check_sets(tmp_path)}
    a, v2, r = (reports[name] for name in ('imagenet-a', 'imagenet-v2', 'imagenet-r'))
    assert (a.status, a.images, a.classes, a.decoded, a.words()) == ('complete', 200, 200, 100, [])
    assert (v2.status, v2.images, v2.classes) == ('incomplete', 1000, 1000)
    assert v2.words()[0] == '9,000 images fewer than published (1,000 of 10,000)'
    assert v2.words()[1].startswith('1000 classes do not have 10 images: 0 (1), 1 (1), 2 (1), 3 (1), ')
    assert (r.status, r.folder, r.images) == ('missing', None, 0) and SETS['imagenet-r'].source in r.words()[0]
    assert 'imagenet-v2-top-images' not in reports and len(reports) == len(SETS) - 2


def test_images_that_are_too_many(tmp_path, published):
    trees.make_a(tmp_path / 'imagenet-a')
    published('imagenet-a', 190)
    report = check_set('imagenet-a', tmp_path)
    assert report.words() == ['10 images more than published (200 of 190)'] and report.status != 'complete'


def test_wrong_folders(tmp_path, published):
    published('imagenet-a', 200)
    root = trees.make_a(tmp_path / 'imagenet-a')
    shutil.move(root / 'n01498041', root / 'n01498042')
    (root / 'n01531178/n01531178_a.jpg').unlink()
    report = check_set('imagenet-a', tmp_path)
    assert report.status == 'wrong' and report.images == 198 and report.classes == 198
    assert report.words() == [
        '1 of 200 class folders are missing: n01498041', '1 folders are no known classes: n01498042 (near n01498041)',
        '1 classes have no images: n01531178', '2 images fewer than published (198 of 200)'
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
    published('imagenet-v2', 10, per_class=None)
    root = tmp_path / 'imagenet-v2'
    numbered(root, map(str, range(1000)))
    shutil.copytree(root / '7', root / 'cock')
    shutil.rmtree(root / '12')
    shutil.copytree(root / '11', root / '12')
    report = check_set('imagenet-v2', tmp_path)
    assert '2 class folders hold the same files as another: ' in report.problems[1]
    assert {'11 = 12', '7 = cock'} == set(report.problems[1].partition('another: ')[2].split(', '))


def test_broken_images(tmp_path, published):
    published('imagenet-a', 200)
    root = trees.make_a(tmp_path / 'imagenet-a')
    path = root / 'n01498041/n01498041_a.jpg'
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[:-60])
    assert check_set('imagenet-a', tmp_path, sample=0).status == 'complete'
    report = check_set('imagenet-a', tmp_path, sample=None)
    assert report.decoded == 200 and report.status == 'wrong'
    assert report.problems[0].startswith('1 of 200 images that were read are broken: ') and str(path) in report.problems[0]


def test_imagenet_in_the_wrong_folders(tmp_path, published):
    published('imagenet', 1000)
    published('imagenet-train', 1000)
    trees.make_imagenet(tmp_path)
    for split in ('train', 'val'):
        (tmp_path / split / 'n01440764/n01440764_a.jpg').unlink()
    image = tmp_path / '.train.png'
    (tmp_path / 'train/n01440764/n01443537_12.JPEG').symlink_to(image)
    (tmp_path / 'val/n01440764/ILSVRC2012_val_00000002.JPEG').symlink_to(image)
    train, val = check_sets(tmp_path, ['imagenet-train', 'imagenet'])
    assert train.words() == [
        '1 images lie in the folder of another class: n01440764/n01443537_12.JPEG (of n01443537)'
    ] and val.status == 'complete'
    trees.write_devkit(tmp_path / 'ILSVRC2012_devkit_t12/data', IMAGENET_WNIDS)
    assert check_set('imagenet', tmp_path).words() == [
        '1 images lie in the folder of another class: n01440764/ILSVRC2012_val_00000002.JPEG (of n01443537)'
    ]


def test_flat_val(tmp_path, published):
    published('imagenet', 1000)
    wnids = trees.make_flat_val(tmp_path / 'val')
    report = check_set('imagenet', tmp_path)
    assert report.status == 'wrong' and 'labels were not found' in report.problems[0]
    trees.write_devkit(tmp_path / 'ILSVRC2012_devkit_t12/data', wnids)
    report = check_set('imagenet', tmp_path)
    assert (report.status, report.images, report.classes, report.decoded) == ('complete', 1000, 1000, 100)
    (tmp_path / 'val/ILSVRC2012_val_00000001.JPEG').unlink()
    assert check_set('imagenet', tmp_path).words()[:2] == [
        f'1 classes have no images: {wnids[0]}', '1 images fewer than published (999 of 1,000)'
    ]


def test_objectnet(tmp_path, published):
    published('objectnet', 113)
    truth = trees.make_objectnet(tmp_path / 'objectnet-1.0')
    report = check_set('objectnet', tmp_path)
    assert (report.status, report.images, report.classes) == ('complete', 113, 113)
    assert report.words() == ['313 of 50,273 images in 313 of 313 folders; the 113 that overlap with ImageNet count']
    shutil.rmtree(tmp_path / 'objectnet-1.0/images/alarm_clock')
    report = check_set('objectnet', tmp_path)
    assert report.problems == ['1 of 113 class folders are missing: alarm_clock'] and 'alarm_clock' in truth
    (tmp_path / 'objectnet-1.0/mappings/imagenet_to_label_2012_v2').unlink()
    assert 'lacks imagenet_to_label_2012_v2' in check_set('objectnet', tmp_path).words()[0]


def test_corruptions(tmp_path, published, monkeypatch):
    wnids = IMAGENET_WNIDS[:50]
    published('imagenet-c', 200)
    monkeypatch.setattr(checks, 'IMAGENET_WNIDS', wnids)
    monkeypatch.setattr(checks.ImageNetCDataset, 'CORRUPTIONS', ('defocus_blur', 'contrast'))
    monkeypatch.setattr(checks, 'SEVERITIES', (1, 5))
    root = trees.make_corruptions(tmp_path / 'imagenet-c', wnids=wnids)
    report = check_set('imagenet-c', tmp_path)
    assert (report.status, report.images, report.classes, report.words()) == ('complete', 200, 50, [])
    shutil.rmtree(root / 'blur/defocus_blur/1')
    shutil.rmtree(root / 'digital/contrast/1')
    shutil.copytree(root / 'blur/defocus_blur/5', root / 'digital/contrast/1', symlinks=True)
    shutil.rmtree(root / 'digital/contrast/5/n01440764')
    report = check_set('imagenet-c', tmp_path)
    assert report.status == 'wrong' and report.classes == 49 and report.words() == [
        '1 of 4 folders of a corruption and severity are missing: defocus_blur/1',
        'contrast/5: 1 of 50 class folders are missing: n01440764',
        'folders of different corruptions or severities hold the same files: defocus_blur/5 = contrast/1',
        '51 images fewer than published (149 of 200)',
    ]


def test_bad_arguments(tmp_path):
    with pytest.raises(ValueError, match='unknown set imagenet-q: choose from imagenet, imagenet-train, '):
        check_sets(tmp_path, ['imagenet-q'])
    with pytest.raises(FileNotFoundError, match='there is no folder .*nowhere'):
        check_sets(tmp_path / 'nowhere')


def test_progress(tmp_path):
    trees.make_a(tmp_path / 'imagenet-a')
    seen = []
    check_set('imagenet-a', tmp_path, watch=lambda items, number, what: seen.append((number, what)) or items)
    assert seen == [(200, 'ImageNet-A: counting'), (100, 'ImageNet-A: reading images')]
