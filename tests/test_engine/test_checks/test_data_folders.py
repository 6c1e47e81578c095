"""Data sets have their folders."""

import shutil

import pytest
from mmengine.config import Config
from shards import make_tars

from mmcfmask.datasets import MissingSetError, PACSDataset
from mmcfmask.engine.checks.data import check_test_data, check_training_data


def test_training_data_is_looked_for_before_the_model(tmp_path):
    (tmp_path / 'photo').mkdir()
    good, bad = (
        dict(type='PACSDataset', data_root=str(tmp_path)),
        dict(type='PACSDataset', data_root=str(tmp_path), domain='photos'),
    )
    gone = dict(good, domain='sketch')
    check_training_data(Config(dict(train_dataloader=dict(dataset=good), val_dataloader=None, model=dict(head=dict()))))
    for key, cfg in {
        'train_dataloader': dict(train_dataloader=dict(dataset=bad)),
        'val_dataloader': dict(val_dataloader=dict(dataset=bad)),
        'val_dataloader.mine': dict(val_dataloader=dict(mine=dict(dataset=bad))),
        'model.head.class_weights': dict(model=dict(head=dict(class_weights=dict(type='prototype', dataset=bad)))),
    }.items():
        with pytest.raises(ValueError, match=f"^{key}.dataset: PACSDataset: unknown domain 'photos'"):
            check_training_data(Config(cfg))
    names = tmp_path / 'names.txt'
    names.write_bytes('Käfer'.encode('latin-1'))
    with pytest.raises(ValueError, match='^train_dataloader.dataset: .*utf-8'):
        check_training_data(
            Config(
                dict(
                    train_dataloader=dict(
                        dataset=dict(type='FolderDataset', data_root=str(tmp_path), classes=str(names))
                    )
                )
            )
        )
    for wrapped in (
        gone,
        dict(type='RepeatDataset', times=2, dataset=gone),
        dict(type='ConcatDataset', datasets=[good, dict(type='ClassBalancedDataset', oversample_thr=1, dataset=gone)]),
    ):
        with pytest.raises(
            MissingSetError, match='train_dataloader.dataset: there is no folder .*sketch: set its data_root'
        ):
            check_training_data(Config(dict(train_dataloader=dict(dataset=wrapped))))


def test_shards_are_looked_for(tmp_path):
    make_tars(tmp_path / 'shards', [dict(key='cat/1', png=b'')])
    for place in ('shards', 'shards/*.tar'):
        dataset = dict(type='FolderDataset', data_root=str(tmp_path), split_dir=place)
        check_training_data(Config(dict(train_dataloader=dict(dataset=dataset))))
    dataset['split_dir'] = 'shards/*.parquet'
    with pytest.raises(MissingSetError, match=r'train_dataloader.dataset: no file matches .*/shards/\*\.parquet'):
        check_training_data(Config(dict(train_dataloader=dict(dataset=dataset))))


@pytest.mark.parametrize('kind', ['MultiLabelDataset', 'VOC', 'MultiTaskDataset'])
def test_sets_with_several_labels_are_refused(kind):
    several = dict(dataset=dict(type=kind, data_root='gone'))
    for key, cfg in {
        'train_dataloader': dict(train_dataloader=several),
        'val_dataloader': dict(val_dataloader=several),
        'model.head.class_weights': dict(model=dict(head=dict(class_weights=dict(type='prototype', **several)))),
    }.items():
        with pytest.raises(ValueError, match=f"^{key}.dataset.type='{kind}' gives an image several labels"):
            check_training_data(Config(cfg))


def test_test_sets_are_looked_for_before_the_model(tmp_path):
    photo, sketch = (
        dict(dataset=dict(type='PACSDataset', data_root=str(tmp_path), domain=domain)) for domain in ('photo', 'sketch')
    )
    cfg = Config(dict(test_dataloader=dict(photo=photo, sketch=sketch), test_cfg=dict(id_set='photo')))
    for domain in ('photo', 'sketch'):
        for name in PACSDataset.METAINFO['classes']:
            (tmp_path / domain / name).mkdir(parents=True)
    check_test_data(cfg)
    (tmp_path / 'sketch' / 'horse').rmdir()
    with pytest.raises(
        ValueError, match='^test_dataloader.sketch.dataset: .*/sketch: 1 of 7 class folders are missing: horse'
    ):
        check_test_data(cfg)
    cfg.test_cfg.shifts = []  # it would not run
    check_test_data(cfg)
    shutil.rmtree(tmp_path / 'sketch')
    cfg.test_cfg.shifts = ['sketch']
    with pytest.raises(
        MissingSetError, match='^test_dataloader.sketch.dataset: there is no folder .*sketch: set its data_root'
    ):
        check_test_data(cfg)
    for skip in (True, ['sketch']):
        cfg.test_cfg.skip_missing = skip
        check_test_data(cfg)
    shutil.rmtree(tmp_path / 'photo')
    cfg.test_cfg.skip_missing = True
    with pytest.raises(MissingSetError, match='(?s)none of the test sets was found.*photo.*sketch'):
        check_test_data(cfg)


def test_images_that_lie_flat_or_deeper_are_left_to_the_test(tmp_path):
    (tmp_path / 'imagenet-c' / 'fog' / '1').mkdir(parents=True)
    (tmp_path / 'val').mkdir()
    check_test_data(
        Config(
            dict(
                test_cfg=dict(id_set='val'),
                test_dataloader=dict(
                    val=dict(dataset=dict(type='ImageNetDataset', data_root=str(tmp_path), split_dir='val')),
                    c=dict(dataset=dict(type='ImageNetCDataset', data_root=str(tmp_path))),
                    shapes=dict(dataset=dict(type='ShapesDataset')),
                ),
            )
        )
    )
