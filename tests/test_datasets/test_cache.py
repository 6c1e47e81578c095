import json
import multiprocessing
import os
import pickle
import shutil

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmpretrain.registry import DATASETS
from PIL import Image

from mmcfmask.datasets import CachedDataset, FolderDataset, LoadImageFromFile
from mmcfmask.datasets import cache as module
from mmcfmask.datasets.overlap import identify_images
from mmcfmask.engine.build import cache_images

PIPELINE = [
    dict(type='LoadImageFromFile', imdecode_backend='pillow', color_type='color_ignore_orientation'),
    dict(type='ResizeEdge', scale=32, edge='short', backend='pillow', interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=32),
    dict(type='PackInputs'),
]


def write_image(path, seed):
    rng = np.random.default_rng(seed)
    Image.fromarray(rng.integers(0, 256, (40 + seed, 50, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def root(tmp_path):
    for number in range(6):
        folder = tmp_path / 'images' / f'class{number % 2}'
        folder.mkdir(parents=True, exist_ok=True)
        write_image(folder / f'{number}.png', number)
    return tmp_path / 'images'


def plain(root, pipeline=PIPELINE):
    return FolderDataset(str(root), pipeline=pipeline)


def cached(root, folder='cache', pipeline=PIPELINE):
    return CachedDataset(dict(type='FolderDataset', data_root=str(root), pipeline=pipeline), str(root.parent / folder))


def assert_same_items(a, b):
    assert len(a) == len(b)
    for one, other in zip(a, b):
        assert torch.equal(one['inputs'], other['inputs']) and one['inputs'].dtype == torch.uint8
        assert torch.equal(one['data_samples'].gt_label, other['data_samples'].gt_label)
        assert one['data_samples'].metainfo == other['data_samples'].metainfo


def count_decoded(monkeypatch, dataset):
    """A list that grows with every image that is decoded."""
    decoded = []
    load = dataset.caches[0].transforms[0]
    monkeypatch.setattr(
        dataset.caches[0],
        'transforms',
        [lambda results: decoded.append(results['img_path']) or load(results), *dataset.caches[0].transforms[1:]],
    )
    return decoded


def test_items_equal_those_of_the_dataset_and_are_decoded_once(root, monkeypatch):
    first = cached(root)
    decoded = count_decoded(monkeypatch, first)
    assert_same_items(first, plain(root))
    assert len(decoded) == 6
    assert_same_items(first, plain(root))
    again = cached(root)
    decoded_again = count_decoded(monkeypatch, again)
    assert_same_items(again, plain(root))
    assert len(decoded) == 6 and not decoded_again
    assert again.caches[0].path == first.caches[0].path


def test_is_the_dataset_in_all_else(root):
    dataset = cached(root)
    assert dataset.metainfo == plain(root).metainfo and dataset.get_cat_ids(3) == plain(root).get_cat_ids(3)
    assert str(dataset.caches[0].path) in repr(dataset)
    about = json.loads(dataset.caches[0].path.with_suffix('.json').read_text())
    assert about['images'] == [6, 32, 32, 3] and about['folder'] == str(root)


def test_changed_images_are_made_again(root, monkeypatch):
    list(cached(root))
    changed = next((root / 'class0').iterdir())
    write_image(changed, 30)
    touched = next((root / 'class1').iterdir())
    os.utime(touched, ns=(1, 1))
    dataset = cached(root)
    decoded = count_decoded(monkeypatch, dataset)
    assert_same_items(dataset, plain(root))
    assert sorted(decoded) == sorted(map(str, (changed, touched)))


@pytest.mark.parametrize('change', ['pipeline', 'files', 'library'])
def test_depends_on(root, monkeypatch, change):
    path = cached(root).caches[0].path
    pipeline = PIPELINE
    if change == 'pipeline':
        pipeline = [PIPELINE[0], dict(PIPELINE[1], interpolation='bilinear'), *PIPELINE[2:]]
    elif change == 'files':
        write_image(root / 'class1' / 'new.png', 7)
    else:
        monkeypatch.setattr(module.PIL, '__version__', '1.0')
    dataset = cached(root, pipeline=pipeline)
    assert dataset.caches[0].path != path
    assert_same_items(dataset, plain(root, pipeline))


def test_half_written_images_do_not_count(root, monkeypatch):
    dataset = cached(root)
    list(dataset)
    with open(dataset.caches[0].path, 'r+b') as file:
        file.seek(dataset.caches[0].start + 2 * 32 * 32 * 3 + 100)
        file.write(bytes(500))
    dataset = cached(root)
    decoded = count_decoded(monkeypatch, dataset)
    assert_same_items(dataset, plain(root))
    assert len(decoded) == 1 and decoded[0] == plain(root).get_data_info(2)['img_path']


def test_transforms_after_the_first_unknown_one_run_every_time(root):
    pipeline = [*PIPELINE[:3], dict(type='RandomFlip', prob=0.5), dict(type='PackInputs')]
    dataset = cached(root, pipeline=pipeline)
    images = {dataset[0]['inputs'].numpy().tobytes() for _ in range(20)}
    assert len(images) == 2
    assert [type(transform).__name__ for transform in dataset.caches[0].transforms] == [
        'LoadImageFromFile',
        'ResizeEdge',
        'CenterCrop',
    ]


def _read_all(root, out):
    out.put([item['inputs'].sum().item() for item in cached(root)])


def test_several_processes_share_a_file(root):
    context = multiprocessing.get_context('fork')
    out = context.SimpleQueue()
    processes = [context.Process(target=_read_all, args=(root, out)) for _ in range(3)]
    for process in processes:
        process.start()
    results = [out.get() for _ in processes]
    for process in processes:
        process.join()
    assert results == [[item['inputs'].sum().item() for item in plain(root)]] * 3
    assert len(list((root.parent / 'cache').glob('*.images'))) == 1


def test_a_process_that_is_not_forked_opens_the_file_itself(root):
    dataset = cached(root)
    list(dataset)
    data = pickle.dumps(dataset)
    assert len(data) < 32 * 32 * 3 * 6
    assert_same_items(pickle.loads(data), plain(root))


def test_a_full_disk_ends_the_storing_only(root, monkeypatch, caplog):
    dataset = cached(root)

    def full(*args):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(module.os, 'pwrite', full)
    assert_same_items(dataset, plain(root))
    assert not dataset.caches[0].writable


def test_folder_that_cannot_be_written(root):
    (root.parent / 'file').touch()
    with pytest.raises(
        OSError,
        match="CachedDataset: cannot write to cache_dir '.*file/cache' .*: choose another folder, or do without the "
        'cache',
    ):
        cached(root, 'file/cache')


def test_too_little_room_is_an_error_at_once(root, monkeypatch):
    monkeypatch.setattr(module.shutil, 'disk_usage', lambda path: shutil._ntuple_diskusage(100, 90, 10))
    with pytest.raises(OSError, match=r'6 images take .* has only 10 bytes left: choose another cache_dir'):
        cached(root)


def test_pipelines_that_cannot_be_kept(root):
    with pytest.raises(ValueError, match='must begin with one of .* begins with PackInputs'):
        cached(root, pipeline=PIPELINE[-1:])
    dataset = cached(root, pipeline=[*PIPELINE[:2], dict(type='PackInputs')])
    with pytest.raises(ValueError, match=r'needs images of one size, but .* is \(\d+, \d+\)'):
        list(dataset)


def test_one_option_caches_training_and_validation(root):
    loader = dict(dataset=dict(type='FolderDataset', data_root=str(root), pipeline=PIPELINE), batch_size=2)
    cfg = Config(dict(train_dataloader=loader, val_dataloader=loader, test_dataloader=dict(a=loader)))
    cache_images(cfg)
    assert cfg.train_dataloader.dataset.type == 'FolderDataset'
    cfg.cache_dir = str(root.parent / 'cache')
    cache_images(cfg)
    assert cfg.train_dataloader.dataset.type == cfg.val_dataloader.dataset.type == 'CachedDataset'
    assert (
        cfg.train_dataloader.dataset.dataset.pipeline == PIPELINE
        and cfg.test_dataloader.a.dataset.type == 'FolderDataset'
    )


def wrapped(kind, images):
    """Wrappers around one data set or several."""
    return dict(
        balanced=dict(type='ClassBalancedDataset', oversample_thr=0.6, dataset=images),
        repeated=dict(type='RepeatDataset', times=2, dataset=images),
        joined=dict(type='ConcatDataset', datasets=[images, dict(type='RepeatDataset', times=2, dataset=images)]),
        folded=dict(type='KFoldDataset', fold=0, num_splits=3, dataset=images),
    )[kind]


@pytest.mark.parametrize('kind', ['balanced', 'repeated', 'joined', 'folded'])
@pytest.mark.parametrize('place', ['option', 'outside', 'inside'])
def test_keeps_the_images_of_wrapped_sets(root, kind, place, monkeypatch):
    images = dict(type='FolderDataset', data_root=str(root), pipeline=PIPELINE)
    cache = dict(type='CachedDataset', cache_dir=str(root.parent / 'cache'))
    cfg = Config(dict(train_dataloader=dict(dataset=wrapped(kind, images))))
    if place == 'option':
        cfg.cache_dir = cache['cache_dir']
        cache_images(cfg)
    elif place == 'outside':
        cfg.train_dataloader.dataset = dict(cache, dataset=wrapped(kind, images))
    else:
        cfg.train_dataloader.dataset = wrapped(kind, dict(cache, dataset=images))
        cfg.cache_dir = cache['cache_dir']
        cache_images(cfg)  # keeps nothing twice
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        built = DATASETS.build(wrapped(kind, images))
        plain = [built[index] for index in range(len(built))]
        kept = DATASETS.build(cfg.train_dataloader.dataset)
        for _ in range(2):  # made, and read
            assert_same_items([kept[index] for index in range(len(kept))], plain)
            monkeypatch.setattr(LoadImageFromFile, 'transform', None)  # it would fail
        assert kept.metainfo == built.metainfo
        assert set(identify_images(cfg.train_dataloader.dataset)) == set(identify_images(wrapped(kind, images)))
