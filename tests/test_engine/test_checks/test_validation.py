"""What a validation must see and give."""

import pytest
from leakage_data import selection

from mmcfmask.engine.checks.validation import check_all_images, check_validation
from mmcfmask.engine.config import load_config
from mmcfmask.errors import ConfigError


def test_metric_that_chooses_must_exist():
    for right in ('accuracy/top1', 'accuracy/nll', 'auto', None):
        check_validation(selection(save_best=right))
    for wrong in ('accuracy/top-1', 'sketch/top1'):
        with pytest.raises(
            ValueError,
            match=f"save_best='{wrong}': the validation has no such metric; its metrics are accuracy/top1, ",
        ):
            check_validation(selection(save_best=wrong))
    cfg = selection(save_best='mine/top-1', val_cfg=dict(type='MultiSetValLoop', id_set='mine'))
    cfg.val_dataloader = dict(mine=cfg.val_dataloader)
    with pytest.raises(ValueError, match='no such metric; its metrics are mine/top1'):
        check_validation(cfg)


def test_worst_group_chooses_where_the_config_says_so():
    cfg = load_config('configs/waterbirds/ft_vitb16.py')
    assert cfg.default_hooks.checkpoint.save_best == 'accuracy/top1'
    for right in ('accuracy/worst_group', 'accuracy/group_average', 'accuracy/top1'):
        cfg.default_hooks.checkpoint.save_best = right
        check_validation(cfg)
    cfg.val_evaluator = dict(type='ShiftAccuracy')
    cfg.default_hooks.checkpoint.save_best = 'accuracy/worst_group'
    with pytest.raises(ConfigError, match="save_best='accuracy/worst_group': the validation has no such metric"):
        check_validation(cfg)


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
        ValueError, match="monitor='accuracy/top_1': the validation has no such metric; its metrics are accuracy/top1"
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
    check_all_images(cfg, 'test', ['b'])
    with pytest.raises(ValueError, match='test_dataloader.a.drop_last=True'):
        check_all_images(cfg, 'test', ['a', 'b'])
