"""From a config to a Runner: accumulation, loaders, optimizer, hooks."""

import os
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmpretrain.registry import HOOKS

from mmcfmask.engine import RelativeEMAHook, build
from mmcfmask.engine.build import (
    OWN_HOOKS,
    add_own_hooks,
    build_runner,
    fit_loaders,
    fit_optimizer,
    set_gradient_accumulation,
)

CONFIG = """
total_batch_size = 24
optim_wrapper = dict(type='OptimWrapper')
train_dataloader = dict(batch_size=4)
custom_hooks = [dict(type='CheckpointHook', by_epoch=False, interval=1000), dict(type='EMAHook'),
                dict(type='RelativeEMAHook'), dict(type='EMAHookOfOnesOwn', interval=10)]
"""


@HOOKS.register_module()
class EMAHookOfOnesOwn(RelativeEMAHook):
    pass


def test_accumulation_makes_up_the_total():
    for processes, counts, interval in [(1, 6, 1002), (2, 3, 1002), (6, 1, 1000)]:
        cfg = Config.fromstring(CONFIG, '.py')
        set_gradient_accumulation(cfg, processes)
        assert cfg.optim_wrapper.accumulative_counts == counts
        assert cfg.custom_hooks[0].interval == interval
        assert [hook.get('interval') for hook in cfg.custom_hooks[1:]] == [
            counts,
            None,
            10,
        ]  # ours count optimizer steps themselves


def test_indivisible_total_is_an_error():
    cfg = Config.fromstring(CONFIG, '.py')
    with pytest.raises(ValueError, match='cannot be split over 5 processes'):
        set_gradient_accumulation(cfg, 5)
    cfg.train_dataloader.batch_size = 5
    with pytest.raises(
        ValueError, match=r'total_batch_size=24 is not a multiple of 2 process\(es\) x .*batch_size=5.*batch_size=4'
    ):
        set_gradient_accumulation(cfg, 2)


def test_accumulation_of_the_config_is_not_reset():
    cfg = Config.fromstring(CONFIG, '.py')
    cfg.optim_wrapper.accumulative_counts = 6
    set_gradient_accumulation(cfg, 1)
    assert cfg.optim_wrapper.accumulative_counts == 6
    with pytest.raises(
        ValueError,
        match='optim_wrapper.accumulative_counts=6, but total_batch_size=.* is 3 x .*: leave out accumulative',
    ):
        set_gradient_accumulation(cfg, 2)


def test_loaders_fit_the_machine(monkeypatch):
    def loaders():
        return Config(
            dict(
                train_dataloader=dict(dataset={}, num_workers=8, persistent_workers=True, pin_memory=True),
                val_dataloader=None,
                test_dataloader=dict(a=dict(dataset={}, num_workers=8), b=dict(dataset={})),
            )
        )

    monkeypatch.setattr('mmcfmask.distributed.usable_cores', lambda: 6)
    monkeypatch.delenv('LOCAL_WORLD_SIZE', raising=False)
    monkeypatch.delenv('SLURM_NTASKS_PER_NODE', raising=False)
    for gpu in (True, False):
        monkeypatch.setattr(torch.cuda, 'is_available', lambda gpu=gpu: gpu)
        for processes, workers in ((1, 6), (2, 3), (8, 1)):
            cfg = loaders()
            fit_loaders(cfg, processes)
            assert cfg.train_dataloader.num_workers == cfg.test_dataloader.a.num_workers == workers
            assert cfg.train_dataloader.persistent_workers and cfg.train_dataloader.pin_memory == gpu
            assert cfg.test_dataloader.b.num_workers == 0 and not cfg.test_dataloader.b.persistent_workers
    monkeypatch.setenv('LOCAL_WORLD_SIZE', '3')  # of 8 processes, 3 are on this machine
    cfg = loaders()
    fit_loaders(cfg, 8)
    assert cfg.train_dataloader.num_workers == 2


def test_workers_by_the_cores_that_may_be_used(monkeypatch):
    monkeypatch.setattr(os, 'sched_getaffinity', lambda process: {0, 5, 7}, raising=False)
    cfg = Config(dict(train_dataloader=dict(num_workers=16, dataset=dict())))
    fit_loaders(cfg)
    assert cfg.train_dataloader.num_workers == 3


@pytest.mark.parametrize(
    'given, wrapped',
    [
        (
            {},
            dict(
                type='MMDistributedDataParallel', broadcast_buffers=False, find_unused_parameters=False, device_ids=None
            ),
        ),
        (
            dict(find_unused_parameters=True),
            dict(
                type='MMDistributedDataParallel', broadcast_buffers=False, find_unused_parameters=True, device_ids=None
            ),
        ),
        (
            dict(model_wrapper_cfg=dict(static_graph=True)),
            dict(type='MMDistributedDataParallel', static_graph=True, device_ids=None),
        ),
        (dict(model_wrapper_cfg=dict(type='MMFullyShardedDataParallel')), dict(type='MMFullyShardedDataParallel')),
    ],
)
def test_wrapper_of_the_config_is_kept_without_a_gpu(monkeypatch, given, wrapped):
    monkeypatch.setattr('mmcfmask.engine.build.start_process_group', lambda cfg: None)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setattr(
        build.Runner, 'from_cfg', lambda cfg: SimpleNamespace(cfg=cfg, model=None, logger=SimpleNamespace(handlers=[]))
    )
    assert build_runner(Config(dict(launcher='pytorch', **given))).cfg.model_wrapper_cfg == wrapped


def test_fused_optimizer_only_where_there_is_one(monkeypatch):
    cfg = Config(dict(optim_wrapper=dict(optimizer=dict(type='AdamW', fused=True))))
    fit_optimizer(cfg)
    assert cfg.optim_wrapper.optimizer == dict(type='AdamW', fused=True)
    monkeypatch.setattr('mmcfmask.engine.build.can_fuse_optimizer', lambda: False)
    fit_optimizer(cfg)
    assert cfg.optim_wrapper.optimizer == dict(type='AdamW')
    fit_optimizer(Config(dict(optim_wrapper=None)))


def test_runner_warns_of_slow_bfloat16(monkeypatch):
    said = []
    runner = SimpleNamespace(model=None, logger=SimpleNamespace(handlers=[], warning=said.append))
    monkeypatch.setattr(build.Runner, 'from_cfg', lambda cfg: runner)
    monkeypatch.setattr('mmcfmask.engine.checks.model.multiplies_bfloat16', lambda device: False)
    for amp in (False, True):
        build_runner(Config(dict(launcher='none', model=dict(type='CounterfactualClassifier'), test_cfg=dict(amp=amp))))
    assert len(said) == 1 and said[0].startswith('--amp: this CPU has no instructions for bfloat16')


def test_own_hooks_are_added_where_a_config_leaves_them_out():
    cfg = Config(dict(custom_hooks=[dict(type='EMAHook'), dict(type='IterationSeedHook')]))
    add_own_hooks(cfg)
    add_own_hooks(cfg)
    assert [hook['type'] for hook in cfg.custom_hooks] == [
        'CheckClassesHook',
        'StopOnInvalidLossHook',
        'LossTermHook',
        'HeaderHook',
        'EMAHook',
        'IterationSeedHook',
    ]
    cfg = Config(dict(custom_hooks=None))
    add_own_hooks(cfg)
    assert [hook['type'] for hook in cfg.custom_hooks] == list(OWN_HOOKS)
