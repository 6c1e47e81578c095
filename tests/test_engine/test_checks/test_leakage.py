"""Which images are learned from, choose something and are tested."""

from functools import partial

import pytest
from leakage_data import HELD_OUT, TRAIN, folder, listed, selection
from mmengine.config import Config

from mmcfmask.engine.checks.leakage import check_leakage
from mmcfmask.engine.config import load_config
from mmcfmask.errors import ConfigError


@pytest.fixture
def data(tmp_path):
    """train/: two classes of ten images; copy/: the same names, other files; lists and links to train/."""
    for split in ('train', 'copy'):
        for name in ('cat', 'dog'):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(10):
                (tmp_path / split / name / f'{number}.jpg').write_bytes(b'no image: nothing is read')
    (tmp_path / 'link').symlink_to(tmp_path / 'train')
    (tmp_path / 'links').mkdir()
    for name in ('cat', 'dog'):
        (tmp_path / 'links' / name).mkdir()
        for number in range(10):
            (tmp_path / 'links' / name / f'other_{number}.jpg').symlink_to(tmp_path / 'train' / name / f'{number}.jpg')
    paths = [
        f'{split}/{name}/{number}.jpg {label}'
        for split in ('train', 'copy')
        for label, name in enumerate(('cat', 'dog'))
        for number in range(10)
    ]
    (tmp_path / 'train.txt').write_text('\n'.join(paths[:20]))
    (tmp_path / 'copy.txt').write_text('\n'.join(paths[20:]))
    return tmp_path


def test_images_that_choose_may_not_be_trained_on(data):
    check_leakage(selection(root=data))
    check_leakage(selection(TRAIN, dict(fraction=0.2, part='held_out'), root=data))  # 0 is the default seed
    check_leakage(selection(dict(TRAIN, seed='run'), dict(HELD_OUT, seed='run'), root=data))
    for train, number in (
        (None, 4),
        (dict(TRAIN, seed=1), 4),
        (dict(TRAIN, fraction=0.1), 2),
        (HELD_OUT, 4),
        (dict(TRAIN, seed='run'), 4),
    ):
        with pytest.raises(
            ConfigError,
            match=rf'val_dataloader chooses by its images, but {number} of its 4 images \(such as .*/train/cat/'
            r'\d.jpg\) would be trained on \(train_dataloader.dataset\).*holdout=dict',
        ):
            check_leakage(selection(train, root=data, randomness=dict(seed=1)))
    with pytest.raises(ConfigError, match='20 of its 20 images'):
        check_leakage(selection(None, None, root=data))
    cfg = selection(root=data)
    cfg.train_dataloader.dataset = folder(data / 'copy')
    check_leakage(cfg)
    cfg.model = dict(
        head=dict(class_weights=dict(type='prototype', dataset=dict(cfg.val_dataloader.dataset, holdout=None)))
    )
    with pytest.raises(ConfigError, match=r'4 of its 4 .* trained on \(model.head.class_weights.dataset\)'):
        check_leakage(cfg)
    cfg.model.head.class_weights = dict(
        type='linear_probe', dataset=folder(data / 'copy'), held_out=folder(data / 'copy', indices=[0, 11])
    )
    with pytest.raises(ConfigError, match='model.head.class_weights.held_out chooses by its images, but 2 of its 2'):
        check_leakage(cfg)


def test_images_are_compared_however_they_are_written(data, monkeypatch):
    monkeypatch.chdir(data)
    whole = folder('train')
    ways = [
        whole,
        folder('./train/'),
        folder(data / 'link'),
        folder('links'),
        folder('.', split_dir='train'),
        folder('copy/../link'),
        dict(type='ClassBalancedDataset', oversample_thr=0.05, dataset=whole),
        dict(type='RepeatDataset', times=3, dataset=whole),
        dict(type='ConcatDataset', datasets=[folder('copy'), folder('links')]),
        dict(type='CachedDataset', cache_dir='none', dataset=whole),
        dict(
            type='RepeatDataset',
            times=2,
            dataset=dict(type='ConcatDataset', datasets=[listed(data, 'copy'), listed(data, 'train')]),
        ),
        listed('.', 'train'),
        dict(type='CustomDataset', data_prefix='links', pipeline=[]),
        dict(type='KFoldDataset', fold=0, num_splits=2, dataset=whole),
        folder('train', skip_unreadable=True, per_class=9),
        folder('train', folders=['dog', 'cat']),
        folder('train', holdout=dict(size=2, part='train')),
    ]
    for way in ways:
        cfg = selection(root=data)
        cfg.train_dataloader.dataset = way
        with pytest.raises(ConfigError, match=r'of its 4 images .* would be trained on'):
            check_leakage(cfg)
    others = [
        folder('copy'),
        listed(data, 'copy'),
        folder('train', holdout=dict(size=4, part='train')),
        dict(type='RepeatDataset', times=3, dataset=folder('train', holdout=TRAIN)),
        dict(type='ConcatDataset', datasets=[folder('copy'), folder('./link/', holdout=TRAIN)]),
    ]
    for way in others:
        cfg = selection(root=data)
        cfg.train_dataloader.dataset = way
        check_leakage(cfg)


def said(monkeypatch):
    messages = []
    monkeypatch.setattr('mmcfmask.engine.checks.leakage.print_log', lambda text, *args, **kwargs: messages.append(text))
    return messages


def test_validation_set_is_no_shift(data):
    """A part of a shift fits the checkpoint to it, too."""
    cfg = selection(root=data, test_cfg=dict(id_set='mine'))
    cfg.test_dataloader = dict(mine=dict(dataset=folder(data / 'copy')), drawings=dict(dataset=folder(data / 'links')))
    message = (
        "val_dataloader reads images of the shift 'drawings' of test_dataloader, 4 of its 20 images .*: a checkpoint "
        'chosen by them'
    )
    for val_cfg in ({}, dict(type='MultiSetValLoop', id_set='held_out')):
        if val_cfg:
            cfg.val_cfg, cfg.val_dataloader = val_cfg, dict(held_out=cfg.val_dataloader)
            cfg.default_hooks.checkpoint.save_best = 'held_out/top1'
        with pytest.raises(ConfigError, match=message):
            check_leakage(cfg)
    cfg.test_cfg.shifts = []  # it would not run
    check_leakage(cfg)
    shapes = load_config(
        'configs/shapes/ft.py', {'val_dataloader.dataset.split': 'sketch', 'val_dataloader.dataset.size': 20}
    )
    with pytest.raises(ConfigError, match="the shift 'sketch' of test_dataloader, 20 of its 1,000 images"):
        check_leakage(shapes)
    check_leakage(load_config('configs/shapes/ft.py', {}))


def test_images_that_choose_or_train_and_are_tested_are_named(data, monkeypatch):
    messages = said(monkeypatch)
    three = [dict(fraction=0.2, test=0.2, part=part) for part in ('train', 'held_out', 'test')]

    def test(holdout):
        cfg = selection(
            *three[:2],
            root=data,
            test_cfg=dict(id_set='mine'),
            test_dataloader=dict(
                mine=dict(dataset=folder(data / 'link', holdout=holdout)), gone=dict(dataset=folder('gone'))
            ),
        )
        messages.clear()
        check_leakage(cfg)
        return '; '.join(messages)

    assert not test(three[2])
    assert not test(dict(three[2], seed=1))
    assert test(three[1]).startswith('test_dataloader.mine.dataset: 4 of its 4 images (such as ')
    assert 'also choose the checkpoint (val_dataloader), which is better on them than on others' in test(three[1])
    assert ' 12 of its 12 images (such as ' in test(three[0]) and 'are trained on (train_dataloader)' in test(three[0])
    assert test(None).count(' of its 20 images') == 2


def test_images_that_head_and_gate_are_made_of(data, monkeypatch):
    """A linear probe and a gate choose by held-out images, too; also in a test."""
    messages = said(monkeypatch)
    part = dict(type='linear_probe', dataset=folder(data / 'train', holdout=TRAIN), held_out=folder(data / 'copy'))

    def check(check_images, key, **settings):
        cfg = Config(
            dict(
                model={key: dict(part, **settings)}
                if key == 'knn_gate'
                else dict(head=dict(class_weights=dict(part, **settings))),
                test_cfg=dict(id_set='mine'),
                test_dataloader=dict(
                    mine=dict(dataset=folder(data / 'train', holdout=HELD_OUT)),
                    drawings=dict(dataset=folder(data / 'copy')),
                ),
            )
        )
        messages.clear()
        check_images(cfg)

    for check_images in (check_leakage, partial(check_leakage, training=False)):
        for key, name in dict(knn_gate='model.knn_gate', head='model.head.class_weights').items():
            with pytest.raises(
                ConfigError,
                match=f"{name}.held_out reads images of the shift 'drawings' of test_dataloader, 20 of its 20",
            ):
                check(check_images, key)
            with pytest.raises(
                ConfigError, match=rf'{name}.held_out chooses by its images, but 16 of its 20 .* \({name}.dataset\)'
            ):
                check(check_images, key, held_out=folder(data / 'link'))
            check(check_images, key, held_out=folder(data / 'link', holdout=HELD_OUT))
            assert len(messages) == 1 and messages[0].startswith('test_dataloader.mine.dataset: 4 of its 4 images')
            check(check_images, key, dataset=folder(data / 'copy'), held_out=None)
            assert (
                len(messages) == 1
                and f'20 of its 20 images (such as {data}/copy/cat/0.jpg) are trained on ({name})' in messages[0]
            )


def test_images_are_compared_without_a_validation(data, monkeypatch):
    messages = said(monkeypatch)
    cfg = selection(
        root=data, test_cfg=dict(id_set='mine'), test_dataloader=dict(mine=dict(dataset=folder(data / 'link')))
    )
    cfg.val_dataloader = cfg.val_evaluator = cfg.val_cfg = None
    check_leakage(cfg)
    assert (
        len(messages) == 1
        and '16 of its 20 images' in messages[0]
        and 'are trained on (train_dataloader)' in messages[0]
    )


def test_images_that_cannot_be_listed_are_named(data, monkeypatch):
    messages, cfg = said(monkeypatch), selection(root=data)
    cfg.train_dataloader.dataset = dict(type='CustomDataset', data_root=str(data), ann_file='links.txt')
    check_leakage(cfg)
    assert len(messages) == 1 and messages[0].startswith(
        'the images of train_dataloader.dataset cannot be compared with the images of other'
    )
