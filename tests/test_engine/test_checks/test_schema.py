"""What a config may say is judged by the signatures of the classes that it names."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Literal, Optional

import mmpretrain
import pytest
from mmengine.config import Config
from mmengine.registry import Registry
from torch import nn

import mmcfmask  # noqa: F401
from mmcfmask.engine.checks.schema import check_part, check_schema
from mmcfmask.engine.checks.signatures import check_arguments
from mmcfmask.engine.config import load_config
from mmcfmask.errors import ConfigError
from mmcfmask.ranges import Count, Share

CONFIGS = Path(__file__).parents[3] / 'configs'
THEIRS = Path(mmpretrain.__file__).parent / '.mim' / 'configs'
OURS = sorted(path for path in CONFIGS.glob('**/*.py') if path.parent.name != '_base_')
FAMILIES = sorted(
    path for family in ('clip', 'vision_transformer', 'resnet') for path in (THEIRS / family).glob('*.py')
)


def test_every_config_of_the_project_passes():
    assert len(OURS) > 50
    for path in OURS:
        check_schema(Config.fromfile(path))


def test_configs_of_mmpretrain_pass():
    """Whatever a run of them needs; some have only a part of the sections of a training or a test."""
    assert len(FAMILIES) > 50
    for path in FAMILIES:
        check_schema(Config.fromfile(path), complete=False)


PARTS = Registry('parts')


class Base:
    def __init__(self, size: Count, share: Share = 0.5, names: Optional[list[str]] = None) -> None:
        pass


@PARTS.register_module()
class Part(Base):
    def __init__(
        self,
        kind: Literal['a', 'b'] = 'a',
        points: 'tuple[float, ...]' = (),
        untyped=None,
        lost: 'Nowhere' = 1,  # noqa: F821
        call: Optional[Callable] = None,
        module: Optional[nn.Module] = None,
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)


@pytest.mark.parametrize(
    'values',
    [
        dict(size=3),
        dict(size=3, share=1),
        dict(kind='b', points=[1, 2.5]),
        dict(points=(1,)),
        dict(names=None),
        dict(names=('x',)),
        dict(untyped=object(), lost='x'),
        dict(call='name', module=dict(type='ReLU')),
    ],
)
def test_values_that_are_meant(values):
    check_part('part', dict(type='Part', **values), PARTS)


@pytest.mark.parametrize(
    'values, message',
    [
        (dict(size='3'), r"part.size='3': it must be a whole number"),
        (dict(size=True), 'part.size=True: it must be a whole number'),
        (dict(size=0), 'part.size=0: it must be greater than or equal to 1'),
        (dict(size=2.5), 'part.size=2.5: it must be a whole number'),
        (dict(share='0.5'), "part.share='0.5': it must be a number"),
        (dict(share=1.5), 'part.share=1.5: it must be less than or equal to 1'),
        (dict(share=None), 'part.share=None: it must be a number'),
        (dict(kind='c'), r"part.kind='c': it must be 'a' or 'b'"),
        (dict(points=[1, 'x']), r"part.points=\[1, 'x'\]: it must be a number \(at \[1\]\)"),
        (dict(points='xy'), 'it must be a list'),
        (dict(names='xy'), "part.names='xy': it must be a list or None"),
        (dict(naems=['x']), "Part has no 'naems'. Did you mean 'names'"),
    ],
)
def test_values_that_cannot_be_meant(values, message):
    with pytest.raises(ConfigError, match=message):
        check_part('part', dict(type='Part', **values), PARTS)


def test_names_and_missing_arguments():
    with pytest.raises(
        ConfigError, match="part.type='Prat': nothing is registered under this name. Did you mean 'Part'"
    ):
        check_part('part', dict(type='Prat'), PARTS)
    check_part('part', dict(type='Prat'), PARTS, foreign=True)
    for wrong in (None, 5, 'Part', [dict(type='Part')]):
        with pytest.raises(ConfigError, match=r'part=.*: it must be a dict\(type=…, …\)'):
            check_part('part', wrong, PARTS)
    with pytest.raises(ConfigError, match='part: Base needs size'):
        check_arguments('part', {}, Base)
    check_arguments('part', {}, Base, missing=False)


@pytest.mark.parametrize(
    'key, value, message',
    [
        ('optim_wrapper.optimizer.lr', '1e-4', "optim_wrapper.optimizer.lr='1e-4': it must be a number"),
        ('optim_wrapper.optimizer.lr', 0, 'lr=0: it must be greater than 0'),
        ('optim_wrapper.optimizer.betas', [0.9, 1.0], 'betas=.*less than 1'),
        ('optim_wrapper.clip_grad.max_norm', -1, 'optim_wrapper.clip_grad.max_norm=-1: it must be greater than 0'),
        ('optim_wrapper.clip_grad.max_nrom', 1, "clip_grad_norm_ has no 'max_nrom'.*max_norm"),
        ('train_dataloader.batch_size', '64', 'batch_size'),
        (
            'optim_wrapper.paramwise_cfg.nrom_decay_mult',
            0.0,
            "has no 'nrom_decay_mult'. Did you mean 'norm_decay_mult'",
        ),
        ('optim_wrapper.paramwise_cfg.custom_keys.backbone.lr_mult', -1, 'custom_keys.backbone.lr_mult=-1'),
        ('default_hooks.checkpoint.interval', 0, 'default_hooks.checkpoint.interval=0'),
        ('train_cfg.val_interval', -1, 'train_cfg.val_interval=-1'),
        ('default_hooks.checkpoint.intervall', 1, "CheckpointHook has no 'intervall'"),
        ('test_cfg.skip_missing', 5, 'test_cfg.skip_missing=5'),
        ('train_dataloader.drop_last', 'yes', "train_dataloader.drop_last='yes': it must be True or False"),
        ('resume', 'no', "resume='no'"),
        (
            'model.data_preprocessor.std',
            [1.0, -1.0, 1.0],
            r'std=\[1.0, -1.0, 1.0\]: it must be greater than 0 \(at \[1\]\)',
        ),
        ('model.head.class_weights.nmaes', [], r"model.head.class_weights: type='text' has no 'nmaes'"),
        ('model.head.temperature', float('nan'), 'is NaN'),
        (
            'train_dataloader.dataset.pipeline',
            [dict(type='PackInput')],
            r"dataset.pipeline\[0\].type='PackInput'.*'PackInputs'",
        ),
        (
            'custom_hooks',
            [dict(type='EMAHook', momentun=0.1)],
            r"custom_hooks\[0\]: EMAHook has no 'momentun'. Did you mean 'momentum'",
        ),
        ('custom_hooks', [dict(type='EMAHook', momentum=2)], r'custom_hooks\[0\].momentum=2'),
        ('val_cfg', None, 'without val_cfg'),
        ('model', None, 'model=None|no model'),
        ('randomness.seed', 'x', "randomness.seed='x'"),
        ('env_cfg', None, 'env_cfg=None: it must be a dict'),
        ('env_cfg.cudnn', True, "env_cfg has no 'cudnn'. Did you mean 'cudnn_benchmark'"),
        ('env_cfg.dist_cfg.backend', 'ncl', "env_cfg.dist_cfg.backend='ncl': it must be 'nccl'"),
        ('env_cfg.dist_cfg', dict(timeout=-1), 'env_cfg.dist_cfg.timeout=-1: it must be greater than 0'),
        ('env_cfg.dist_cfg', dict(time_out=60), "env_cfg.dist_cfg has no 'time_out'. Did you mean 'timeout'"),
        ('log_level', 'LOUD', "log_level='LOUD': it must be 'DEBUG'"),
        ('env_cfg.cudnn_benchmark', 'no', "env_cfg.cudnn_benchmark='no': it must be True or False"),
        ('custom_imports.allow_failed_imports', 'no', "allow_failed_imports='no': it must be True or False"),
        ('compile', 'no', "compile='no': it must be True or False or a dict or None"),
        ('sync_bn', 'mm', "sync_bn='mm': it must be 'torch' or"),
        ('activation_checkpointing', 5, 'activation_checkpointing=5: it must be a list'),
        ('log_processor.by_epoch', 'no', 'log_processor.by_epoch'),
        ('param_scheduler.by_epoch', 'no', 'param_scheduler.by_epoch'),
        (
            'param_scheduler.convert_to_iter_based',
            'no',
            "param_scheduler.convert_to_iter_based='no': it must be True or False",
        ),
        ('load_from', '', "load_from='': it must be a non-empty string"),
        ('work_dir', '', "work_dir=''"),
        ('cache_dir', '', "cache_dir=''"),
        (
            'train_cfg.dynamic_intervals',
            [[5, 0]],
            r'train_cfg.dynamic_intervals=\[\[5, 0\]\]: it must be greater than or equal to 1',
        ),
        (
            'train_dataloader.shuffle',
            True,
            'train_dataloader.shuffle=True: the sampler decides, by train_dataloader.sampler.shuffle',
        ),
        (
            'default_hooks.param_scheduler',
            None,
            'default_hooks.param_scheduler=None: without this hook param_scheduler has no effect',
        ),
        (
            'optim_wrapper.paramwise_cfg.custom_keys.backbone.lr_mul',
            1,
            "custom_keys.backbone has no 'lr_mul'. Did you mean 'lr_mult'",
        ),
        ('optim_wrapper.paramwise_cfg.custom_keys.backbone.weight_decay', -1, 'custom_keys.backbone.weight_decay=-1'),
    ],
)
def test_parts_of_a_config(key, value, message):
    cfg = Config.fromfile(CONFIGS / 'shapes' / 'cfmask.py')
    cfg.merge_from_dict({key: value})
    with pytest.raises(ConfigError, match=message):
        check_schema(cfg)


@pytest.mark.parametrize(
    'adapters, message',
    [
        (dict(lora=dict(rnk=8)), "model.backbone.lora: LoRA has no 'rnk'. Did you mean 'rank'"),
        (dict(lora=dict(rank=0)), 'model.backbone.lora.rank=0: it must be greater than or equal to 1'),
        (dict(lora=dict(rank=8.0)), 'model.backbone.lora.rank=8.0: it must be a whole number'),
        (dict(lora=dict(alpha=-1.0)), 'model.backbone.lora.alpha=-1.0: it must be greater than 0 or None'),
        (dict(lora=dict(targets='attn')), "model.backbone.lora.targets='attn': it must be a list or None"),
        (dict(r_adapter=dict(drp=0.2)), "model.backbone.r_adapter: RAdapter has no 'drp'. Did you mean 'drop'"),
        (dict(r_adapter=dict(drop=1.0)), 'model.backbone.r_adapter.drop=1.0: it must be less than 1'),
        (
            dict(r_adapter=dict(rank=0)),
            'model.backbone.r_adapter.rank=0: it must be greater than or equal to 1',
        ),
        (dict(lora=8), 'model.backbone.lora=8: it must be a dict'),
    ],
)
def test_adapters(adapters, message):
    cfg = Config.fromfile(CONFIGS / 'shapes' / 'cfmask.py')
    cfg.model.backbone.update(adapters)
    with pytest.raises(ConfigError, match=message):
        check_schema(cfg)


def test_adapters_are_for_the_backbone_of_our_classifier():
    cfg = Config.fromfile(CONFIGS / 'shapes' / 'cfmask.py')
    for adapted in (dict(rank=8), {}, None):
        cfg.model.backbone.lora = adapted
        check_schema(cfg)
    cfg.model.head.lora = dict(rank=8)
    with pytest.raises(ConfigError, match="model.head: CLIPDistillHead has no 'lora'"):
        check_schema(cfg)
    cfg = Config.fromfile(THEIRS / 'resnet' / 'resnet18_8xb32_in1k.py')
    cfg.model.backbone.lora = dict(rank=8)
    with pytest.raises(ConfigError, match="model.backbone: ResNet has no 'lora'"):
        check_schema(cfg)


def test_groups_of_parameters_have_settings_of_the_optimizer():
    cfg = Config.fromfile(CONFIGS / 'shapes' / 'cfmask.py')
    cfg.optim_wrapper.paramwise_cfg = dict(
        custom_keys={'backbone': dict(lr_mult=0.1, decay_mult=0), 'head.fc': dict(lr=1e-3, eps=1e-6)}
    )
    check_schema(cfg)


@pytest.mark.parametrize(
    'key, value, message',
    [
        ('layer_decay_rate', 1.5, 'paramwise_cfg.layer_decay_rate=1.5: it must be less than or equal to 1'),
        ('bias_lr_mult', 2.0, "paramwise_cfg has no 'bias_lr_mult'. Did you mean 'bias_decay_mult'"),
        (
            'custom_keys',
            dict(head=dict(lr_mult=2.0)),
            'custom_keys.head.lr_mult=2.0: the constructor sets the learning',
        ),
        ('custom_keys', dict(head=dict(lr=2.0)), 'custom_keys.head.lr=2.0: the constructor sets the learning rate by'),
    ],
)
def test_learning_rates_by_layer(key, value, message):
    """mmpretrain's constructor ignores what it does not read."""
    cfg = Config.fromfile(CONFIGS / 'shapes' / 'cfmask.py')
    cfg.optim_wrapper.constructor = 'LearningRateDecayOptimWrapperConstructor'
    cfg.optim_wrapper.paramwise_cfg = dict(
        layer_decay_rate=0.7, flat_decay_mult=0.0, custom_keys=dict(head=dict(decay_mult=0.0, eps=1e-6))
    )
    check_schema(cfg)
    cfg.optim_wrapper.paramwise_cfg[key] = value
    with pytest.raises(ConfigError, match=message):
        check_schema(cfg)


def test_log_level_may_be_a_number():
    cfg = Config.fromfile(CONFIGS / 'shapes' / 'cfmask.py')
    for level in (20, 'WARNING'):
        cfg.log_level = level
        check_schema(cfg)


def test_weights_of_classes_are_finite():
    cfg = Config.fromfile(THEIRS / 'resnet' / 'resnet18_8xb32_in1k.py')
    for weights in ([1e38] * 1000, [-1.0] * 1000, float('inf')):
        cfg.merge_from_dict({'model.head.loss.class_weight': weights})
        with pytest.raises(ConfigError, match='model.head.loss.class_weight'):
            check_schema(cfg)


def test_the_arguments_of_another_type_are_left_over():
    """The error gives the option that replaces them, as it is typed."""
    config = str(CONFIGS / 'baselines' / 'zeroshot_vitb16.py')
    options = ['model.head.class_weights.type=file', 'model.head.class_weights.path=words.npy']
    with pytest.raises(
        ConfigError,
        match="model.head.class_weights: type='file' has no 'classnames' and no 'templates', left over from another "
        'type. It takes path.',
    ) as error:
        load_config(config, options)
    (option,) = shlex.split(str(error.value).partition('inherited dict: ')[2])
    assert load_config(config, [option]).model.head.class_weights == dict(type='file', path='words.npy')
