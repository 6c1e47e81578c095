import os
from pathlib import Path
from types import SimpleNamespace

import mmcv
import pytest
import torch
from mmengine.config import Config
from mmpretrain import ImageClassificationInferencer, get_model
from mmpretrain.registry import DATASETS, HOOKS

import mmcfmask  # noqa: F401
from mmcfmask.engine import RelativeEMAHook, build
from mmcfmask.engine.build import (
    OWN_HOOKS,
    add_own_hooks,
    build_runner,
    fit_loaders,
    fit_optimizer,
    set_gradient_accumulation,
)
from mmcfmask.engine.config import load_config
from mmcfmask.engine.launcher import apply_run_arguments, world_size
from mmcfmask.engine.testing import add_gate, add_second_look, inference_config, method_name, skip_pretrained_weights

ROOT = Path(__file__).parents[2]
CONFIG = """
data_root = 'data/x/'
total_batch_size = 24
optim_wrapper = dict(type='OptimWrapper')
train_dataloader = dict(batch_size=4, dataset=dict(data_root=data_root))
test_dataloader = dict(a=dict(dataset=dict(data_root=data_root)), b=dict(dataset=dict(data_root='elsewhere')))
custom_hooks = [dict(type='CheckpointHook', by_epoch=False, interval=1000), dict(type='EMAHook'),
                dict(type='RelativeEMAHook'), dict(type='EMAHookOfOnesOwn', interval=10)]
pipelines = [[dict(data_root=data_root)]]
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


def test_data_root_reaches_every_dataset(tmp_path):
    path = tmp_path / 'config.py'
    path.write_text(CONFIG)
    cfg = load_config(str(path), {'data_root': '/mine', 'total_batch_size': 8})
    assert (
        cfg.train_dataloader.dataset.data_root
        == cfg.test_dataloader.a.dataset.data_root
        == cfg.pipelines[0][0].data_root
        == '/mine'
    )
    assert cfg.test_dataloader.b.dataset.data_root == 'elsewhere'
    assert cfg.total_batch_size == 8


VARIABLES = """
data_root = 'data/x/'
pipeline = [dict(type='Resize', data_root=data_root), dict(type='Pack')]
images = dict(data_root=data_root, pipeline=pipeline, part=1)
train_dataloader = dict(dataset=images)
test_dataloader = dict(a=dict(dataset=dict(data_root=data_root, pipeline=pipeline)), b=dict(dataset=dict(data_root='y', pipeline=[])))
loader = dict(batch_size=2)
"""


def test_variable_changed_in_a_child_is_changed_where_it_was_used(tmp_path):
    (tmp_path / 'base.py').write_text(VARIABLES)
    (tmp_path / 'middle.py').write_text("_base_ = './base.py'\nimages = dict(part=2)")
    (tmp_path / 'child.py').write_text("_base_ = ['middle.py']\ndata_root = '/mine'\npipeline = [dict(type='Mine')]")
    train, test = (load_config(str(tmp_path / 'child.py'), {})[f'{part}_dataloader'] for part in ('train', 'test'))
    mine = dict(data_root='/mine', pipeline=[dict(type='Mine')])
    assert train.dataset == dict(**mine, part=2)
    assert test.a.dataset == mine and test.b.dataset == dict(data_root='y', pipeline=[])


def test_variable_changed_by_an_option(tmp_path):
    path = tmp_path / 'config.py'
    path.write_text(VARIABLES)
    cfg = load_config(str(path), {'images.part': 3, 'pipeline.1.type': 'Keep', 'data_root': '/mine'})
    pipeline = [dict(type='Resize', data_root='/mine'), dict(type='Keep')]
    assert cfg.train_dataloader.dataset == dict(data_root='/mine', pipeline=pipeline, part=3)
    assert cfg.test_dataloader.a.dataset == dict(data_root='/mine', pipeline=pipeline)
    assert cfg.test_dataloader.b.dataset == dict(data_root='y', pipeline=[])
    with pytest.raises(ValueError, match="nothing in .*config.py uses 'loader' as it stands"):
        load_config(str(path), {'loader.batch_size': 3})


def test_linear_probe_follows_the_training_images(tmp_path):
    (tmp_path / 'base.py').write_text(VARIABLES + "val_dataloader = dict(dataset=dict(images, part='held out'))")
    (tmp_path / 'empty.py').write_text('')
    (tmp_path / 'lpft.py').write_text(
        "_base_ = ['./base.py', './empty.py']\nmodel = dict(head=dict(class_weights=dict(type='linear_probe', "
        'dataset={{_base_.train_dataloader.dataset}}, held_out={{_base_.val_dataloader.dataset}})))'
    )
    (tmp_path / 'child.py').write_text(
        "_base_ = './lpft.py'\ntrain_dataloader = dict(dataset=dict(_delete_=True, type='ShapesDataset'))\ndata_root = "
        "'/mine'"
    )

    def probe(name, **options):
        cfg = load_config(str(tmp_path / name), {key.replace('__', '.'): value for key, value in options.items()})
        return cfg, cfg.model.head.class_weights

    cfg, weights = probe('child.py')
    assert weights.dataset == cfg.train_dataloader.dataset == dict(type='ShapesDataset')
    assert weights.held_out == cfg.val_dataloader.dataset and weights.held_out.data_root == '/mine'
    cfg, weights = probe(
        'lpft.py', train_dataloader__dataset__per_class=60, val_dataloader__dataset__part=9, data_root='/mine'
    )
    assert weights.dataset == cfg.train_dataloader.dataset and (
        weights.dataset.per_class,
        weights.dataset.data_root,
    ) == (60, '/mine')
    assert weights.held_out == cfg.val_dataloader.dataset and weights.held_out.part == 9
    cfg, weights = probe(
        'lpft.py', train_dataloader__dataset__part=3, model__head__class_weights__dataset__part=4
    )  # its own is kept
    assert weights.dataset.part == 4
    cfg, weights = probe('lpft.py', train_dataloader__dataset__part=3, model__head__class_weights__type='prototype')
    assert weights.dataset.part == 1
    (tmp_path / 'own.py').write_text(
        (tmp_path / 'lpft.py').read_text().replace('held_out={{_base_.val_dataloader.dataset}}', '')
    )
    assert 'held_out' not in probe('own.py')[1]


def test_config_for_the_inference_of_mmpretrain(tmp_path):
    """Its inferencer gives what the classifier gives, of the pre-trained weights and of a checkpoint."""
    cfg = inference_config('configs/shapes/cfmask.py')
    dataset = DATASETS.build({**cfg.test_dataloader.dataset, 'size': 20, 'pipeline': []})
    for index in range(4):
        mmcv.imwrite(dataset.get_data_info(index)['img'][..., ::-1], str(tmp_path / f'{index}.png'))
    model = get_model(cfg)
    assert model.teacher is None
    with torch.no_grad():
        model.head.fc.weight.copy_(model.head.fc.weight.roll(1, 0))  # other answers than those of the start
    classes, checkpoint = dataset.metainfo['classes'], str(tmp_path / 'rolled.pth')
    torch.save(dict(state_dict=model.state_dict(), meta=dict(dataset_meta=dict(classes=classes))), checkpoint)
    images = sorted(map(str, tmp_path.glob('*.png')))
    start, rolled = (
        ImageClassificationInferencer(inference_config('configs/shapes/cfmask.py', weights))(images)
        for weights in (None, checkpoint)
    )
    labels = [dataset.get_data_info(index)['gt_label'] for index in range(4)]
    assert sum(result['pred_label'] == label for result, label in zip(start, labels)) >= 3
    assert [result['pred_label'] for result in rolled] == [(result['pred_label'] + 1) % 10 for result in start]
    assert [result['pred_class'] for result in rolled] == [classes[result['pred_label']] for result in rolled]


def test_gate_of_the_training_and_validation_images(monkeypatch):
    monkeypatch.setattr(build.os, 'cpu_count', lambda: 2)
    path = 'configs/shapes/cfmask.py'
    cfg = load_config(path, {'train_dataloader.num_workers': 3, 'train_dataloader.dataset.size': 80})
    add_gate(cfg)
    assert cfg.model.gate == dict(
        dataset=cfg.train_dataloader.dataset, held_out=cfg.val_dataloader.dataset, num_workers=2
    )
    cfg = load_config(
        path,
        {'model.gate.level': 0.1, 'model.gate.held_out.size': 60, 'model.gate.dataset': dict(type='ShapesDataset')},
    )
    add_gate(cfg)
    assert cfg.model.gate == dict(
        level=0.1, dataset=dict(type='ShapesDataset'), held_out=dict(cfg.val_dataloader.dataset, size=60), num_workers=0
    )
    skip_pretrained_weights(cfg.model)
    assert cfg.model.gate is None
    with pytest.raises(ValueError, match='a gate is made of .* but the config has no train_dataloader.dataset'):
        add_gate(load_config('configs/shapes/zeroshot.py', {}))
    with pytest.raises(ValueError, match="a gate needs a CounterfactualClassifier, but model.type='ImageClassifier'"):
        add_gate(Config(dict(model=dict(type='ImageClassifier'))))


def test_second_look():
    cfg = load_config('configs/shapes/cfmask.py', {})
    add_second_look(cfg, 0.8)
    assert cfg.model.crop_scale == 0.8
    with pytest.raises(
        ValueError, match="a second look needs a CounterfactualClassifier, but model.type='ImageClassifier'"
    ):
        add_second_look(Config(dict(model=dict(type='ImageClassifier'))), 0.8)


def test_gate_follows_the_training_images(tmp_path):
    (tmp_path / 'base.py').write_text(VARIABLES + "val_dataloader = dict(dataset=dict(images, part='held out'))")
    (tmp_path / 'gate.py').write_text(
        "_base_ = './base.py'\nmodel = dict(gate=dict(dataset={{_base_.train_dataloader.dataset}}, "
        'held_out={{_base_.val_dataloader.dataset}}))'
    )
    cfg = load_config(str(tmp_path / 'gate.py'), {'train_dataloader.dataset.part': 7, 'val_dataloader.dataset.part': 8})
    assert cfg.model.gate == dict(dataset=cfg.train_dataloader.dataset, held_out=cfg.val_dataloader.dataset)


def test_option_that_nothing_reads(tmp_path):
    path = tmp_path / 'config.py'
    path.write_text(VARIABLES)
    mistakes = {
        'optim_wraper.optimizer.lr': 'optim_wrapper',
        'total_batchsize': 'total_batch_size',
        'dataroot': 'data_root',
        'batch_size': 'loader.batch_size',
    }
    for wrong, right in mistakes.items():
        name = wrong.partition('.')[0]
        with pytest.raises(
            ValueError, match=f"config.py has no '{name}', and nothing would read it. Did you mean .*'{right}'"
        ):
            load_config(str(path), {wrong: 1})
    cfg = load_config(str(path), {'cache_dir': 'fast', 'work_dir': 'here', 'total_batch_size': 4})  # may be absent
    assert (cfg.cache_dir, cfg.work_dir, cfg.total_batch_size) == ('fast', 'here', 4)


def test_delete_inside_delete(tmp_path):
    (tmp_path / 'base.py').write_text('test_dataloader = dict(a=dict(x=1))')
    (tmp_path / 'own.py').write_text(
        "_base_ = 'base.py'\ntest_dataloader = dict(\n"
        '    _delete_=True, b=dict(dataset=dict(_delete_=True, y=[dict(_delete_=True)])))'
    )
    assert load_config(str(tmp_path / 'own.py'), {}).test_dataloader == dict(b=dict(dataset=dict(y=[{}])))


def test_loaders_fit_the_machine(monkeypatch):
    def loaders():
        return Config(
            dict(
                train_dataloader=dict(dataset={}, num_workers=8, persistent_workers=True, pin_memory=True),
                val_dataloader=None,
                test_dataloader=dict(a=dict(dataset={}, num_workers=8), b=dict(dataset={})),
            )
        )

    monkeypatch.setattr('mmcfmask.engine.build.usable_cores', lambda: 6)
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


def test_processes_of_every_launcher(monkeypatch):
    for name in ('WORLD_SIZE', 'SLURM_NTASKS', 'OMPI_COMM_WORLD_SIZE'):
        monkeypatch.delenv(name, raising=False)
    assert [world_size(name) for name in ('none', 'pytorch', 'slurm', 'mpi')] == [1, 1, 1, 1]
    for number, name in enumerate(('WORLD_SIZE', 'SLURM_NTASKS', 'OMPI_COMM_WORLD_SIZE'), start=2):
        monkeypatch.setenv(name, str(number))
    assert [world_size(name) for name in ('none', 'pytorch', 'slurm', 'mpi')] == [1, 2, 3, 4]


def test_local_rank_of_mpi_is_that_of_mpi(monkeypatch):
    for variable, value in dict(LOCAL_RANK='3', RANK='3', SIZE='4').items():
        monkeypatch.setenv(f'OMPI_COMM_WORLD_{variable}', value)
    monkeypatch.setenv('MASTER_ADDR', 'localhost')
    for launcher, rank in (('mpi', '3'), ('none', '0')):
        monkeypatch.setenv('LOCAL_RANK', '0')
        cfg = Config(dict(work_dir='w'))
        apply_run_arguments(cfg, 'c.py', launcher=launcher)
        assert os.environ['LOCAL_RANK'] == rank


def test_settings_of_the_runner_are_no_unknown_names(tmp_path):
    options = {
        'find_unused_parameters': True,
        'sync_bn': 'torch',
        'model_wrapper_cfg.static_graph': True,
        'tf32': True,
        'activation_checkpointing': ['backbone'],
        'compile': False,
    }
    cfg = load_config(str(ROOT / 'configs' / 'shapes' / 'cfmask.py'), options)
    assert cfg.find_unused_parameters and cfg.model_wrapper_cfg.static_graph and cfg.tf32


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
    monkeypatch.setattr('mmcfmask.engine.build.start_process_group_without_gpu', lambda launcher: True)
    monkeypatch.setattr(
        build.Runner, 'from_cfg', lambda cfg: SimpleNamespace(cfg=cfg, model=None, logger=SimpleNamespace(handlers=[]))
    )
    assert build_runner(Config(dict(launcher='none', **given))).cfg.model_wrapper_cfg == wrapped


def test_workers_by_the_cores_that_may_be_used(monkeypatch):
    monkeypatch.setattr(os, 'sched_getaffinity', lambda process: {0, 5, 7}, raising=False)
    cfg = Config(dict(train_dataloader=dict(num_workers=16, dataset=dict())))
    fit_loaders(cfg)
    assert cfg.train_dataloader.num_workers == 3


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


def test_name_says_what_was_tested():
    probe = dict(head=dict(class_weights=dict(type='linear_probe')))
    for model, meta, name in (
        (dict(), {}, 'ft'),
        (dict(gate=dict(level=0.1)), {}, 'ft + gate'),
        (dict(gate=None, crop_scale=0.9), {}, 'ft + second look'),
        (dict(gate=dict(level=0.1), crop_scale=0.9), {}, 'ft + gate and second look'),
        (probe, {}, 'ft'),
        (dict(), dict(wise_ft_alpha=0.0), 'ft + WiSE-FT'),
        (dict(gate=dict()), dict(soup='greedy'), 'ft + greedy soup'),
        (dict(), None, 'zero-shot'),
        (dict(crop_scale=0.9), None, 'zero-shot + second look'),
        (probe, None, 'LP'),
    ):
        assert method_name('configs/pacs/ft.py', model, None if meta is None else dict(meta=meta)) == name


def test_own_hooks_are_added_where_a_config_leaves_them_out():
    cfg = Config(dict(custom_hooks=[dict(type='EMAHook'), dict(type='IterationSeedHook')]))
    add_own_hooks(cfg)
    add_own_hooks(cfg)
    assert [hook['type'] for hook in cfg.custom_hooks] == [
        'PlainCheckpointHook',
        'CheckClassesHook',
        'StopOnInvalidLossHook',
        'EMAHook',
        'IterationSeedHook',
    ]
    cfg = Config(dict(custom_hooks=None))
    add_own_hooks(cfg)
    assert [hook['type'] for hook in cfg.custom_hooks] == list(OWN_HOOKS)


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
