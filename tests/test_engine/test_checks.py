import shutil
from pathlib import Path

import mmpretrain
import pytest
import torch
from mmcfmask.engine.checks.selection import check_complete, check_selection, check_start_images, check_validation
from mmengine.config import Config

from mmcfmask.datasets import MissingSetError, PACSDataset
from mmcfmask.engine.checkpoints import check_checkpoint
from mmcfmask.engine.checks.data import check_test_data, check_training_data
from mmcfmask.engine.checks.model import (
    check_backbone,
    check_device,
    check_fill,
    slow_bfloat16,
    unmatched_keys,
    warn_of_random_start,
)
from mmcfmask.engine.checks.outputs import check_out, check_work_dir
from mmcfmask.engine.checks.parts import check_arguments
from mmcfmask.engine.checks.resume import check_same_run
from mmcfmask.engine.config import load_config
from mmcfmask.errors import ConfigError, StorageError


def test_work_dir_must_be_writable(tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(OSError, match='cannot write to the work dir .*file/run'):
        check_work_dir(str(tmp_path / 'file' / 'run'))
    check_work_dir(str(tmp_path / 'new' / 'run'))
    assert list((tmp_path / 'new' / 'run').iterdir()) == []


def test_out_must_be_a_file_that_can_be_written(tmp_path):
    with pytest.raises(StorageError, match="--out '.*' is a folder: give the name of a file"):
        check_out(str(tmp_path))
    (tmp_path / 'file').touch()
    with pytest.raises(OSError, match='cannot write to the folder .*file.* choose another with --out'):
        check_out(str(tmp_path / 'file' / 'metrics.json'))
    check_out(str(tmp_path / 'new' / 'metrics.json'))


RECIPE = dict(
    randomness=dict(seed=0),
    custom_hooks=[dict(type='RelativeEMAHook', horizon=0.2), dict(type='IterationSeedHook')],
    train_cfg=dict(max_epochs=10),
    total_batch_size=512,
    param_scheduler=dict(type='OneCycle', pct_start=0.02),
    optim_wrapper=dict(
        type='OptimWrapper',
        optimizer=dict(type='AdamW', lr=3e-5, betas=(0.9, 0.999), fused=True),
        clip_grad=dict(max_norm=1.0),
    ),
    model=dict(
        backbone=dict(model_name='ViT-B-16', pretrained='a.pt'),
        teacher=dict(type='OpenCLIPTeacher'),
        auxiliary=[dict(type='L2SP')],
        head=dict(distill_weight=30.0, class_weights=dict(type='text')),
        data_preprocessor=dict(mask='object', mean=[1.0, -2.0]),
    ),
)


@pytest.mark.parametrize(
    'change, message',
    [
        (
            {'train_cfg.max_epochs': 20},
            'train_cfg.max_epochs = 10, but now it is 20: resume with the same config, or start another run',
        ),
        ({'optim_wrapper.optimizer.lr': 1e-5}, 'optim_wrapper.optimizer.lr = 3e-05, but now it is 1e-05'),
        ({'randomness.seed': 1}, 'randomness.seed = 0, but now it is 1'),
        ({'custom_hooks': []}, r"custom_hooks = \[\{.*'RelativeEMAHook'\}\], but now it is \[\]"),
        ({'custom_hooks.0.horizon': 0.5}, "custom_hooks = .*0.2.*, but now it is .*'horizon': 0.5"),
        (
            {'custom_hooks': [*RECIPE['custom_hooks'], dict(type='DistillWeightHook', start=9.0, end=1.0)]},
            'custom_hooks = .* is .*DistillWeight',
        ),
        ({'total_batch_size': 256}, 'total_batch_size = 512, but now it is 256'),
        ({'param_scheduler.pct_start': 0.1}, 'param_scheduler.pct_start = 0.02, but now it is 0.1'),
        ({'model.teacher': None}, 'model.teacher = {.*}, but now it is None'),
        ({'model.head.cls_weight': 0.0}, 'model.head.cls_weight = None, but now it is 0.0'),
        ({'model.auxiliary': [dict(type='FLYP')]}, 'model.auxiliary = .*L2SP.*, but now it is .*FLYP'),
        ({'model.backbone.model_name': 'ViT-B-32'}, 'model.backbone.model_name = ViT-B-16, but now it is ViT-B-32'),
        ({'model.data_preprocessor.mask': 'context'}, 'model.data_preprocessor.mask = object, but now it is context'),
    ],
)
def test_resume_needs_the_same_recipe(change, message):
    checkpoint = dict(meta=dict(cfg=Config(RECIPE).pretty_text))
    cfg = Config(RECIPE)
    cfg.merge_from_dict(change)
    with pytest.raises(ValueError, match=f'run.pth was trained with {message}'):
        check_same_run(cfg, checkpoint, 'run.pth')


def test_values_that_are_no_literals():
    infinite = {**RECIPE, 'optim_wrapper': dict(clip_grad=dict(max_norm=float('inf')), floor=-float('inf'))}
    checkpoint = dict(meta=dict(cfg=Config(infinite).pretty_text))
    check_same_run(Config(infinite), checkpoint, 'run.pth')
    with pytest.raises(ValueError, match='optim_wrapper.clip_grad.max_norm = inf, but now it is 1.0'):
        check_same_run(Config({**infinite, 'optim_wrapper': dict(clip_grad=dict(max_norm=1.0))}), checkpoint, 'run.pth')


def test_what_may_differ_in_a_resumed_run():
    checkpoint = dict(meta=dict(cfg=Config(RECIPE).pretty_text))
    cfg = Config(RECIPE)
    cfg.merge_from_dict(
        {
            'model.backbone.pretrained': 'moved/a.pt',
            'model.head.class_weights': None,
            'optim_wrapper.type': 'Autocast',
            'custom_hooks': [dict(type='RelativeEMAHook', horizon=0.2, interval=4), dict(type='WiSEFTHook')],
            'work_dir': 'elsewhere',
            'train_cfg.val_interval': 2,
            'optim_wrapper.accumulative_counts': 4,
        }
    )
    del cfg.optim_wrapper.optimizer['fused']
    check_same_run(cfg, checkpoint, 'run.pth')


@pytest.mark.parametrize(
    'part, setting, near',
    [
        ('head', 'distil_weight', 'CLIPDistillHead has no .*distill_weight'),
        ('backbone', 'modelname', 'OpenCLIPBackbone has no .*model_name'),
        ('data_preprocessor', 'maks', 'CAMRefillDataPreprocessor has no .*mask'),
        ('data_preprocessor', 'to_rbg', '.* has no .*to_rgb'),
        ('teacher', 'precison', 'OpenCLIPTeacher has no .*precision'),
        ('gate', 'levels', 'KNNGate has no .*level'),
    ],
)
def test_settings_that_a_part_does_not_take(part, setting, near):
    cfg = load_config('configs/shapes/cfmask.py', {})  # which has none
    cfg.model[part] = {**(cfg.model.get(part) or {}), setting: 1}
    with pytest.raises(ValueError, match=f'model.{part}: {near}'):
        check_arguments(cfg)


@pytest.mark.parametrize(
    'option, value, message',
    [
        (
            'optim_wrapper.optimizer.learning_rate',
            1e-4,
            "optim_wrapper.optimizer: AdamW has no 'learning_rate'. It takes .*, lr, ",
        ),
        ('optim_wrapper.optimizer.weight_decy', 0.1, "AdamW has no 'weight_decy'.*weight_decay"),
        ('param_scheduler.pct_strat', 0.1, "param_scheduler: OneCycle has no 'pct_strat'.*pct_start"),
        (
            'model.data_preprocessor.mask',
            'foreground',
            "model.data_preprocessor: unknown mask 'foreground': choose from object",
        ),
        ('model.data_preprocessor.value', 3.0, 'model.data_preprocessor.value=3.0: it must be less than or equal to 1'),
        ('model.data_preprocessor.views', dict(turn=3), 'model.data_preprocessor: .*turn'),
        ('model.head.distill', 'feat', "model.head: unknown distill='feat'"),
    ],
)
def test_settings_that_cannot_be_built(option, value, message):
    with pytest.raises(ValueError, match=message):
        load_config('configs/shapes/cfmask.py', {option: value})


def test_random_numbers_are_left_as_they_were():
    state = torch.get_rng_state()
    load_config('configs/shapes/cfmask.py', {})
    assert torch.equal(torch.get_rng_state(), state)


def test_tower_is_looked_for_before_the_model():
    for change, message in (
        (dict(model_name='ViT-B-17'), 'Unknown open_clip model .*ViT-B-16'),
        (dict(pretrained='shape'), "Unknown pretrained tag 'shape' .*Did you mean 'shapes'"),
        (dict(pretrained='gone.pt'), 'there is no such file'),
    ):
        cfg = load_config('configs/shapes/cfmask.py', {f'model.backbone.{key}': value for key, value in change.items()})
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            check_backbone(cfg.model)


TRAIN, HELD_OUT = (dict(fraction=0.2, seed=0, part=part) for part in ('train', 'held_out'))


def selection(train=TRAIN, held_out=HELD_OUT, save_best='accuracy/top1', val_cfg=None, root='data', **more):
    images = dict(type='FolderDataset', data_root=str(root), split_dir='train', pipeline=[])
    return Config(
        dict(
            default_hooks=dict(checkpoint=dict(type='CheckpointHook', save_best=save_best)),
            val_evaluator=dict(type='ShiftAccuracy'),
            **more,
            val_cfg=val_cfg or {},
            train_dataloader=dict(dataset=dict(images, holdout=train)),
            val_dataloader=dict(dataset=dict(images, holdout=held_out)),
        )
    )


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


def folder(root, **settings):
    return dict(type='FolderDataset', data_root=str(root), pipeline=[dict(type='LoadImageFromFile')], **settings)


def listed(root, name):
    return dict(type='CustomDataset', data_root=str(root), ann_file=f'{name}.txt', pipeline=[dict(type='PackInputs')])


def test_images_that_choose_may_not_be_trained_on(data):
    check_selection(selection(root=data))
    check_selection(selection(TRAIN, dict(fraction=0.2, part='held_out'), root=data))  # 0 is the default seed
    check_selection(selection(dict(TRAIN, seed='run'), dict(HELD_OUT, seed='run'), root=data))
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
            check_selection(selection(train, root=data, randomness=dict(seed=1)))
    with pytest.raises(ConfigError, match='20 of its 20 images'):
        check_selection(selection(None, None, root=data))
    cfg = selection(root=data)
    cfg.train_dataloader.dataset = folder(data / 'copy')
    check_selection(cfg)
    cfg.model = dict(
        head=dict(class_weights=dict(type='prototype', dataset=dict(cfg.val_dataloader.dataset, holdout=None)))
    )
    with pytest.raises(ConfigError, match=r'4 of its 4 .* trained on \(model.head.class_weights.dataset\)'):
        check_selection(cfg)
    cfg.model.head.class_weights = dict(
        type='linear_probe', dataset=folder(data / 'copy'), held_out=folder(data / 'copy', indices=[0, 11])
    )
    with pytest.raises(ConfigError, match='model.head.class_weights.held_out chooses by its images, but 2 of its 2'):
        check_selection(cfg)


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
            check_selection(cfg)
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
        check_selection(cfg)


def said(monkeypatch):
    messages = []
    monkeypatch.setattr(
        'mmcfmask.engine.checks.selection.print_log', lambda text, *args, **kwargs: messages.append(text)
    )
    return messages


def test_validation_set_is_no_shift(data):
    """A part of a shift fits the checkpoint to it, too."""
    cfg = selection(root=data, test_cfg=dict(id_set='mine'))
    cfg.test_dataloader = dict(mine=dict(dataset=folder(data / 'copy')), drawings=dict(dataset=folder(data / 'links')))
    message = r"val_dataloader reads images of the shift 'drawings' of test_dataloader, 4 of its 20 images .*: a checkpoint chosen by them"
    for val_cfg in ({}, dict(type='MultiSetValLoop', id_set='held_out')):
        if val_cfg:
            cfg.val_cfg, cfg.val_dataloader = val_cfg, dict(held_out=cfg.val_dataloader)
            cfg.default_hooks.checkpoint.save_best = 'held_out/top1'
        with pytest.raises(ConfigError, match=message):
            check_selection(cfg)
    cfg.test_cfg.shifts = []  # it would not run
    check_selection(cfg)
    shapes = load_config(
        'configs/shapes/ft.py', {'val_dataloader.dataset.split': 'sketch', 'val_dataloader.dataset.size': 20}
    )
    with pytest.raises(ConfigError, match="the shift 'sketch' of test_dataloader, 20 of its 1,000 images"):
        check_selection(shapes)
    check_selection(load_config('configs/shapes/ft.py', {}))


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
        check_selection(cfg)
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
                if key == 'gate'
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

    for check_images in (check_selection, check_start_images):
        for key, name in dict(gate='model.gate', head='model.head.class_weights').items():
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
    check_selection(cfg)
    assert (
        len(messages) == 1
        and '16 of its 20 images' in messages[0]
        and 'are trained on (train_dataloader)' in messages[0]
    )


def test_images_that_cannot_be_listed_are_named(data, monkeypatch):
    messages, cfg = said(monkeypatch), selection(root=data)
    cfg.train_dataloader.dataset = dict(type='CustomDataset', data_root=str(data), ann_file='links.txt')
    check_selection(cfg)
    assert len(messages) == 1 and messages[0].startswith(
        'the images of train_dataloader.dataset cannot be compared with those of other'
    )


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
    with pytest.raises(
        MissingSetError, match='train_dataloader.dataset: there is no folder .*sketch: set its data_root'
    ):
        check_training_data(Config(dict(train_dataloader=dict(dataset=gone))))


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
    with pytest.raises(MissingSetError, match='(?s)none of the test sets is there.*photo.*sketch'):
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


def test_metric_that_chooses_must_exist():
    for right in ('accuracy/top1', 'accuracy/nll', 'auto', None):
        check_selection(selection(save_best=right))
    for wrong in ('accuracy/top-1', 'sketch/top1'):
        with pytest.raises(
            ValueError,
            match=f"save_best='{wrong}': the validation gives no such metric, but accuracy/top1, accuracy/top5",
        ):
            check_selection(selection(save_best=wrong))
    cfg = selection(save_best='mine/top-1', val_cfg=dict(type='MultiSetValLoop', id_set='mine'))
    cfg.val_dataloader = dict(mine=cfg.val_dataloader)
    with pytest.raises(ValueError, match='no such metric, but mine/top1'):
        check_selection(cfg)


def test_what_is_no_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match='no checkpoint .*gone.pth'):
        check_checkpoint(str(tmp_path / 'gone.pth'))
    (tmp_path / 'text.pth').write_text('not a checkpoint')
    with pytest.raises(OSError, match='text.pth.* is not a checkpoint that torch can load'):
        check_checkpoint(str(tmp_path / 'text.pth'))
    torch.save({'weight': torch.zeros(1)}, tmp_path / 'other.pth')
    with pytest.raises(ValueError, match='no "state_dict"'):
        check_checkpoint(str(tmp_path / 'other.pth'))
    torch.save({'state_dict': {}}, tmp_path / 'empty.pth')
    with pytest.raises(ValueError, match='not made of named tensors'):
        check_checkpoint(str(tmp_path / 'empty.pth'))
    torch.save({'state_dict': {'weight': torch.ones(2)}}, tmp_path / 'weights.pth')
    assert check_checkpoint(str(tmp_path / 'weights.pth'))['state_dict']['weight'].tolist() == [1, 1]
    with pytest.raises(ValueError, match='holds weights but no training state'):
        check_checkpoint(str(tmp_path / 'weights.pth'), resume=True)
    whole = (tmp_path / 'weights.pth').read_bytes()
    (tmp_path / 'cut.pth').write_bytes(whole[: len(whole) // 2])
    with pytest.raises(OSError, match='cut.pth.* is cut off'):
        check_checkpoint(str(tmp_path / 'cut.pth'))


def test_fill_needs_two_images_in_every_batch():
    model = dict(teacher=dict(type='OpenCLIPTeacher'), data_preprocessor=dict(fill='multi'))
    cfg = Config(dict(model=model, train_dataloader=dict(batch_size=4, drop_last=True)))
    check_fill(cfg)
    cfg.train_dataloader.drop_last = False
    with pytest.raises(ValueError, match='set train_dataloader.drop_last=True'):
        check_fill(cfg)
    cfg.train_dataloader.batch_size = 1
    with pytest.raises(
        ValueError, match="fill='multi' takes patches from other images .*batch_size=1: raise it to at least 2"
    ):
        check_fill(cfg)
    cfg.model.data_preprocessor.fill = 'none'
    check_fill(cfg)
    for change in (
        dict(teacher=None),
        dict(head=dict(distill=None)),
        dict(data_preprocessor=dict(mask=None)),
    ):  # no counterfactuals
        cfg.model = {**model, 'data_preprocessor': dict(fill='multi'), **change}
        check_fill(cfg)
    cfg.model = {**model, 'head': dict(distill='logits')}
    with pytest.raises(ValueError, match='raise it to at least 2'):
        check_fill(cfg)


def test_random_start_is_named(monkeypatch):
    said = []
    monkeypatch.setattr('mmcfmask.engine.checks.model.print_log', lambda text, *args, **kwargs: said.append(text))
    for tower in (
        dict(model_name='ViT-B-16', pretrained='openai'),
        dict(model_name='hf-hub:org/clip'),
        dict(type='VisionTransformer'),
        dict(model_name='ViT-B-16', init_cfg=dict(type='Pretrained', checkpoint='x')),
    ):
        warn_of_random_start(Config(dict(model=dict(backbone=tower))))
    assert not said
    warn_of_random_start(Config(dict(model=dict(backbone=dict(model_name='ViT-B-16')))))
    assert len(said) == 1 and 'ViT-B-16 starts from random weights' in said[0]


def test_slow_bfloat16_is_named(monkeypatch):
    float32 = dict(model=dict(teacher=None), optim_wrapper=dict(type='OptimWrapper'), test_cfg=dict(amp=False))
    asked = {
        '--amp: ': [dict(optim_wrapper=dict(type='AutocastOptimWrapper')), dict(test_cfg=dict(amp=True))],
        "model.teacher.precision='bf16': ": [dict(model=dict(teacher=dict(type='OpenCLIPTeacher', precision='bf16')))],
    }
    for fast in (True, False):
        monkeypatch.setattr('mmcfmask.engine.checks.model.multiplies_bfloat16', lambda device, fast=fast: fast)
        assert slow_bfloat16(Config(float32), 'cpu') is None
        for begin, changes in asked.items():
            for change in changes:
                said = slow_bfloat16(Config({**float32, **change}), 'cpu')
                assert said is None if fast else said.startswith(begin)


def test_some_epoch_is_validated():
    cfg = load_config('configs/shapes/ft.py', {'train_cfg.val_begin': 10})
    check_validation(cfg)
    cfg.train_cfg.val_begin = 11
    with pytest.raises(
        ConfigError, match='train_cfg.val_begin=11: a training that ends at 10 would never be validated'
    ):
        check_validation(cfg)


def test_metric_that_stops_must_exist():
    cfg = selection(custom_hooks=[dict(type='EarlyStoppingHook', monitor='accuracy/top1')])
    check_validation(cfg)
    cfg.custom_hooks[0].monitor = 'accuracy/top_1'
    with pytest.raises(
        ValueError, match="monitor='accuracy/top_1': the validation gives no such metric, but accuracy/top1"
    ):
        check_validation(cfg)
    cfg.val_evaluator = [dict(type='ShiftAccuracy'), dict(type='Accuracy')]  # whose metrics are not known here
    check_validation(cfg)
    cfg.val_dataloader = cfg.val_evaluator = None
    with pytest.raises(ValueError, match='there is no validation that could give it'):
        check_validation(cfg)


def test_all_images_are_validated_and_tested():
    cfg = selection()
    cfg.val_dataloader.drop_last = True
    with pytest.raises(ValueError, match='val_dataloader.drop_last=True would leave out images'):
        check_validation(cfg)
    cfg.test_dataloader = dict(a=dict(dataset=dict(), drop_last=True), b=dict(dataset=dict()))
    check_complete(cfg, 'test', ['b'])
    with pytest.raises(ValueError, match='test_dataloader.a.drop_last=True'):
        check_complete(cfg, 'test', ['a', 'b'])


def test_settings_for_parameters_that_are_not_there():
    model = torch.nn.ModuleDict(dict(backbone=torch.nn.Linear(1, 1)))
    cfg = Config(
        dict(
            optim_wrapper=dict(paramwise_cfg=dict(custom_keys={'bakcbone': dict(lr_mult=0.1), 'backbone.bias': dict()}))
        )
    )
    assert (
        "no parameter of the model has 'bakcbone' in its name, so it does nothing. Did you mean 'backbone'"
        in unmatched_keys(cfg, model)
    )
    assert unmatched_keys(Config(dict(optim_wrapper=None)), model) is None


def test_float16_autocast_needs_a_gpu(monkeypatch):
    cfg = Config(dict(optim_wrapper=dict(type='AmpOptimWrapper')))
    monkeypatch.setattr('mmcfmask.engine.checks.model.get_device', lambda: 'cpu')
    with pytest.raises(ConfigError, match='AmpOptimWrapper.* needs a GPU: use --amp'):
        check_device(cfg)
    check_device(Config(dict(optim_wrapper=dict(type='AutocastOptimWrapper'))))
    monkeypatch.setattr('mmcfmask.engine.checks.model.get_device', lambda: 'cuda')
    check_device(cfg)


def test_no_workers_is_no_contradiction():
    cfg = load_config('configs/cfmask_vitb16.py', {'train_dataloader.num_workers': 0})
    assert cfg.train_dataloader.persistent_workers  # which build_runner switches off


@pytest.mark.parametrize('name', ['resnet/resnet18_8xb32_in1k.py', 'vision_transformer/vit-base-p16_64xb64_in1k.py'])
def test_configs_of_mmpretrain_are_read(name):
    """They have a hook that cannot be made without a Runner."""
    load_config(str(Path(mmpretrain.__file__).parent / '.mim' / 'configs' / name), {})
