"""What a config may say, judged before anything is built: by the signatures of the classes that its parts name.

A part is a dict with a ``type``. Its keys are those that the class takes, its values what the type hints of the class
say; a parameter without a hint, or with one that says nothing here, is not judged. So a new component needs no code
here. What the hints of torch and mmengine leave open, such as a learning rate below 0, is in :data:`RANGES`; our own
classes say it in their signatures (:mod:`mmcfmask.ranges`).
"""

from __future__ import annotations

import collections.abc
import importlib.util
import inspect
import math
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache, partial
from typing import Annotated, Any, Literal, Optional, Union

import torch
from annotated_types import Ge, Gt, Le, Len, Lt, MinLen
from mmengine.config import Config
from mmengine.hooks import CheckpointHook, EarlyStoppingHook, EMAHook, Hook
from mmengine.model import ImgDataPreprocessor, MomentumAnnealingEMA
from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from mmengine.optim.scheduler.param_scheduler import _ParamScheduler
from mmengine.registry import FUNCTIONS, Registry
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, LogProcessor, Runner
from mmengine.utils.dl_utils import set_multi_processing
from mmengine.visualization import Visualizer
from mmpretrain import registry as registries
from mmpretrain.datasets import CenterCrop, ResizeEdge
from mmpretrain.models import ClsDataPreprocessor, CrossEntropyLoss, ImageClassifier
from mmpretrain.registry import (
    DATA_SAMPLERS,
    DATASETS,
    HOOKS,
    LOOPS,
    METRICS,
    MODELS,
    OPTIMIZERS,
    PARAM_SCHEDULERS,
    TRANSFORMS,
)
from pydantic import ConfigDict, Strict, TypeAdapter, ValidationError
from torch.utils.data import DataLoader

from ..errors import ConfigError
from ..models import CLIPDistillHead, CounterfactualClassifier
from ..models.class_embeddings.class_weights import CLASS_WEIGHTS
from ..models.towers.loading import near_names
from ..ranges import Count, Finite, NonNegative, OpenShare, Positive, Seed, Share, Whole

Size = Annotated[int, Ge(1), Le(16384)]
Text = Annotated[str, MinLen(1)]
Never = Literal[-1]  # mmengine's word for it
BelowOne = Annotated[float, Ge(0), Lt(1)]
Rule = Literal['greater', 'less']
Intervals = list[tuple[Whole, Count]]

# What hints of torch, mmengine and mmpretrain leave open, of the settings that recipes use: class or function to
# parameter to type.
RANGES: dict[Any, dict[str, Any]] = {
    torch.optim.Optimizer: dict(
        lr=Annotated[float, Gt(0), Le(1e4)],
        weight_decay=Annotated[float, Ge(0), Le(1e4)],
        eps=NonNegative,
        betas=tuple[BelowOne, ...],
        momentum=BelowOne,
        alpha=Share,
        dampening=Share,
        nesterov=bool,
    ),
    torch.nn.utils.clip_grad_norm_: dict(max_norm=Annotated[float, Gt(0)], norm_type=Annotated[float, Gt(0)]),
    torch.nn.utils.clip_grad_value_: dict(clip_value=Annotated[float, Gt(0)]),
    OptimWrapper: dict(accumulative_counts=Count),
    DataLoader: dict(
        batch_size=Annotated[int, Ge(1), Le(10**6)],
        num_workers=Annotated[int, Ge(0), Le(10**4)],
        drop_last=bool,
        prefetch_factor=Optional[Annotated[int, Ge(1), Le(10**4)]],
        timeout=NonNegative,
        pin_memory=bool,
        persistent_workers=bool,
    ),
    EpochBasedTrainLoop: dict(max_epochs=Count, val_interval=Count, val_begin=Whole, dynamic_intervals=Intervals),
    IterBasedTrainLoop: dict(max_iters=Count, val_interval=Count, val_begin=Whole, dynamic_intervals=Intervals),
    Hook: dict(interval=Count),
    CheckpointHook: dict(
        interval=Union[Count, Never], max_keep_ckpts=Union[Count, Never], save_begin=Whole, rule=Union[Rule, list[Rule]]
    ),
    EarlyStoppingHook: dict(patience=Whole, min_delta=NonNegative, rule=Rule, stopping_threshold=Finite),
    EMAHook: dict(momentum=OpenShare, begin_iter=Whole, begin_epoch=Whole),
    LogProcessor: dict(window_size=Count, by_epoch=bool, num_digits=Annotated[int, Ge(0), Le(20)]),
    Visualizer: dict(name=str, vis_backends=Optional[list]),
    _ParamScheduler: dict(
        by_epoch=bool,
        begin=Whole,
        end=Count,
        T_max=Count,
        step_size=Count,
        total_steps=Count,
        gamma=Positive,
        factor=NonNegative,
        eta_min=NonNegative,
        eta_max=NonNegative,
        eta_min_ratio=Share,
        start_factor=Annotated[float, Gt(0), Le(1)],
        end_factor=Share,
        power=NonNegative,
        milestones=list[Whole],
        pct_start=Share,
        div_factor=Positive,
        final_div_factor=Positive,
        anneal_strategy=Literal['cos', 'linear'],
        patience=Whole,
        cooldown=Whole,
        rule=Rule,
        periods=list[Count],
        threshold=NonNegative,
    ),
    ClsDataPreprocessor: dict(mean=Sequence[Finite], std=Sequence[Positive]),
    ImgDataPreprocessor: dict(mean=Sequence[Finite], std=Sequence[Positive]),
    ResizeEdge: dict(
        scale=Size, interpolation=Literal['nearest', 'bilinear', 'bicubic', 'box', 'lanczos', 'hamming', 'area']
    ),
    CenterCrop: dict(crop_size=Union[Size, tuple[Size, Size]]),
    CrossEntropyLoss: dict(
        class_weight=Annotated[Sequence[Annotated[float, Ge(0), Le(1e6)]], Len(1)], loss_weight=NonNegative
    ),
    Runner.__init__: dict(
        log_level=Union[Literal['DEBUG', 'INFO', 'WARNING', 'ERROR', 'CRITICAL', 'NOTSET'], int],
        launcher=Literal['none', 'pytorch', 'slurm', 'mpi'],
        load_from=Annotated[str, Len(1)],
    ),
    set_multi_processing: dict(mp_start_method=Literal['fork', 'forkserver', 'spawn'], opencv_num_threads=Whole),
    Runner.set_randomness: dict(seed=Optional[Seed]),
}
# Of DefaultOptimWrapperConstructor, and of mmpretrain's constructor with decay by layer.
Mult = NonNegative
PARAMWISE = dict(
    bias_lr_mult=Mult,
    bias_decay_mult=Mult,
    norm_decay_mult=Mult,
    dwconv_decay_mult=Mult,
    flat_decay_mult=Mult,
    dcn_offset_lr_mult=Mult,
    bypass_duplicate=bool,
    custom_keys=dict[str, dict[str, Any]],
)
CUSTOM = dict(lr_mult=Mult, decay_mult=Mult)  # and, of custom_keys, what the optimizer takes
LAYER_DECAY = dict(layer_decay_rate=Annotated[float, Gt(0), Le(1)], num_layers=Count)
# Of a config itself, by dotted keys.
TOP_LEVEL = {
    'total_batch_size': Count,
    'cache_dir': Text,
    'work_dir': Text,
    'load_from': Text,
    'experiment_name': Text,
    'tf32': bool,
    'find_unused_parameters': bool,
    'compile': Union[bool, dict],
    'sync_bn': Literal['torch', 'mmcv'],
    'activation_checkpointing': Union[list[str], str],
    'efficient_conv_bn_eval': Union[list[str], str],
    'custom_imports': dict,
    'custom_imports.imports': Union[Text, list[Text]],
    'custom_imports.allow_failed_imports': bool,
    'env_cfg': dict,
    'env_cfg.cudnn_benchmark': bool,
    'env_cfg.mp_cfg': dict,
    'env_cfg.dist_cfg': dict,
    'env_cfg.dist_cfg.backend': Text,
    'env_cfg.resource_limit': Count,
}
# Of Runner.setup_env.
ENVIRONMENT = ('cudnn_benchmark', 'mp_cfg', 'dist_cfg', 'resource_limit')
# Hints that are wrong in many classes, by the name of the parameter.
CORRECTED = dict(
    init_cfg=Union[dict, list[dict], None],
    neck=Union[dict, list[dict], None],
    loss_scale=Union[Literal['dynamic'], float, dict],
    bias=Any,
    keys=Any,
    out_indices=Any,
    eigvec=Any,
    input_size=Any,
)
# Where a class hands on the arguments that it does not name.
FORWARDED = {CheckpointHook: Runner.save_checkpoint, EMAHook: MomentumAnnealingEMA.__init__}
# The type of a part that names none, by its owner.
DEFAULTS = {
    CounterfactualClassifier: dict(data_preprocessor='CAMRefillDataPreprocessor', gate='KNNGate'),
    ImageClassifier: dict(data_preprocessor='ClsDataPreprocessor'),
}
# Parts whose type is a word of their owner's.
OWN_TYPES = {CLIPDistillHead: dict(class_weights=CLASS_WEIGHTS)}
# Keys whose dicts, or lists of them, name a class of this registry, wherever they stand.
REGISTRIES = dict(
    model=MODELS,
    backbone=MODELS,
    neck=MODELS,
    head=MODELS,
    teacher=MODELS,
    data_preprocessor=MODELS,
    gate=MODELS,
    auxiliary=MODELS,
    dataset=DATASETS,
    datasets=DATASETS,
    held_out=DATASETS,
    pipeline=TRANSFORMS,
    transforms=TRANSFORMS,
    sampler=DATA_SAMPLERS,
    batch_sampler=DATA_SAMPLERS,
    collate_fn=FUNCTIONS,
    worker_init_fn=FUNCTIONS,
    optimizer=OPTIMIZERS,
    vis_backends=registries.VISBACKENDS,
)
# What stands in a part besides the arguments of its class, with its type, and which arguments come from elsewhere; by
# registry.
BESIDES = {HOOKS: dict(priority=Any), PARAM_SCHEDULERS: dict(convert_to_iter_based=bool)}
GIVEN = {
    OPTIMIZERS: ('params',),
    PARAM_SCHEDULERS: ('optimizer', 'param_name', 'epoch_length'),
    LOOPS: ('runner', 'dataloader', 'evaluator'),
    DATA_SAMPLERS: ('dataset', 'seed', 'sampler', 'batch_size'),
    registries.MODEL_WRAPPERS: ('module',),
    registries.OPTIM_WRAPPERS: ('optimizer',),
    registries.VISBACKENDS: ('save_dir',),
}
# Where a name of mmengine's or mmpretrain's could stand, for parts in places that are not known.
ALL_REGISTRIES = (
    MODELS,
    registries.BATCH_AUGMENTS,
    TRANSFORMS,
    DATASETS,
    METRICS,
    HOOKS,
    registries.WEIGHT_INITIALIZERS,
)


def check_config(cfg: Config, whole: bool = True) -> None:
    """Judge all parts of a config that a Runner reads.

    Args:
        cfg (Config): The config.
        whole (bool): What is missing is an error too. If not, only what is there is judged.

    Raises:
        ConfigError: With key, value and what is possible.
    """
    values = cfg.to_dict()
    for key, value in values.items():
        _check_finite(key, value)
    known = _signature(Runner.__init__)[0]
    check_arguments(
        '',
        {key: value for key, value in values.items() if key in known and (key, value) != ('work_dir', None)},
        Runner.__init__,
        missing=False,
    )
    if whole:
        _check_sections(values)
    check_top_level(values)
    check = partial(
        check_part, whole=whole, foreign=values.get('default_scope') not in (None, 'mmpretrain', 'mmengine')
    )
    scope = values.get('default_scope')
    if (
        scope is not None
        and scope not in MODELS.parent.children
        and not (scope.isidentifier() and importlib.util.find_spec(scope))
    ):
        raise ConfigError(
            f"default_scope={scope!r}: there is no package of this name; 'mmpretrain' has the parts that recipes use"
        )
    _check_environment(values.get('env_cfg') or {})
    if 'model' in values:
        check('model', values['model'], MODELS)
    for mode, default in dict(train=None, val='ValLoop', test='TestLoop').items():
        _check_loaders(f'{mode}_dataloader', values.get(f'{mode}_dataloader'), check, whole)
        _check_evaluator(f'{mode}_evaluator', values.get(f'{mode}_evaluator'), check)
        loop = values.get(f'{mode}_cfg')
        if loop is not None:
            if 'by_epoch' in loop and 'type' in loop:
                raise ConfigError(
                    f'{mode}_cfg.by_epoch={_short(loop["by_epoch"])} chooses a loop, and so does {mode}_cfg.type='
                    f'{_short(loop["type"])}: leave one of them out'
                )
            if mode == 'train':
                default = 'EpochBasedTrainLoop' if loop.get('by_epoch', True) else 'IterBasedTrainLoop'
            check(f'{mode}_cfg', {key: value for key, value in loop.items() if key != 'by_epoch'}, LOOPS, default)
    if values.get('optim_wrapper') is not None:
        _check_optim_wrapper('optim_wrapper', values['optim_wrapper'], check, whole)
    if values.get('model_wrapper_cfg') is not None:
        check('model_wrapper_cfg', values['model_wrapper_cfg'], registries.MODEL_WRAPPERS, 'MMDistributedDataParallel')
    if values.get('log_processor') is not None:
        check('log_processor', values['log_processor'], registries.LOG_PROCESSORS, 'LogProcessor')
    for key, registry in dict(
        param_scheduler=PARAM_SCHEDULERS, custom_hooks=HOOKS, visualizer=registries.VISUALIZERS
    ).items():
        for where, part in _parts(key, values.get(key)):
            check(where, part, registry)
    for name, hook in (values.get('default_hooks') or {}).items():
        if hook is not None:
            check(f'default_hooks.{name}', hook, HOOKS)
    check_arguments('randomness', values.get('randomness') or {}, Runner.set_randomness, given=('seed',))


def check_top_level(values: Mapping[str, Any]) -> None:
    """Raise a ConfigError for a value of :data:`TOP_LEVEL` that is of another type."""
    for key, hint in TOP_LEVEL.items():
        value = values
        for part in key.split('.'):
            value = value.get(part) if isinstance(value, Mapping) else None
        if value is not None:
            _check_value(key, value, hint, ' or None' if '.' not in key else '')


def _check_environment(environment: Mapping[str, Any]) -> None:
    """Raise a ConfigError for a key of ``env_cfg`` that the Runner does not read; what is left of the values, see
    :data:`TOP_LEVEL`."""
    for key in environment:
        if key not in ENVIRONMENT:
            hint = near_names(str(key), list(ENVIRONMENT)) or f' It takes {", ".join(ENVIRONMENT)}'
            raise ConfigError(f'env_cfg has no {key!r}.{hint}')
    check_arguments(
        'env_cfg.mp_cfg', environment.get('mp_cfg') or {}, set_multi_processing, given=('distributed',), missing=False
    )


def _check_sections(values: Mapping[str, Any]) -> None:
    """Raise a ConfigError where a config says only a part of what a training, a validation or a test needs, or has no
    model."""
    if not values.get('model'):
        raise ConfigError('there is no model: set model=dict(type=…, …)')
    for mode, needed in dict(train='optim_wrapper', val='val_evaluator', test='test_evaluator').items():
        keys = (f'{mode}_dataloader', f'{mode}_cfg', needed)
        lacking = [key for key in keys if values.get(key) is None]
        if 0 < len(lacking) < 3:
            raise ConfigError(
                f'{" and ".join(key for key in keys if key not in lacking)} without {" and ".join(lacking)}: set all '
                f'of {", ".join(keys)}, or none'
            )
    hooks = values.get('default_hooks') or {}
    if values.get('param_scheduler') and 'param_scheduler' in hooks and hooks['param_scheduler'] is None:
        raise ConfigError(
            'default_hooks.param_scheduler=None: without this hook param_scheduler has no effect. For a learning rate '
            'that stays, set param_scheduler=None'
        )


def check_part(
    where: str, part: Any, registry: Registry, default: str | None = None, whole: bool = True, foreign: bool = False
) -> None:
    """Judge a part of a config, and the parts in it, by the class that it names.

    Args:
        where (str): Its dotted key, for errors.
        part: ``dict(type=…, …)``, or an object that is built already.
        registry (Registry): Where the class is looked up.
        default (str, optional): The type of a part that names none.
        whole (bool): What is missing is an error too.
        foreign (bool): An unknown name is no error: it may be that of another package, which is not looked for here.

    Raises:
        ConfigError: With key, value and what is possible.
    """
    if not isinstance(part, Mapping):
        if part is None or isinstance(part, (str, int, float, list, tuple)):
            raise ConfigError(f'{where}={_short(part)}: it must be a dict(type=…, …)')
        return
    kind = part.get('type', default)
    if kind is None and not whole:
        return
    if kind is None:
        raise ConfigError(f'{where} has no type: it must be a dict(type=…, …)')
    found = _look_up(kind, registry)
    if found is not None:
        besides = BESIDES.get(registry, {})
        for key in besides.keys() & part.keys():
            _check_value(f'{where}.{key}', part[key], besides[key])
        ours = {'type', '_scope_', *besides}
        arguments = {key: value for key, value in part.items() if key not in ours}
        certain = registry is not FUNCTIONS
        check_arguments(where, arguments, found, GIVEN.get(registry, ()), unknown=certain, missing=whole and certain)
        for key, value in arguments.items():
            _check_inside(
                f'{where}.{key}', key, value, partial(check_part, whole=whole, foreign=foreign), registry, found
            )
    elif not isinstance(kind, str):
        raise ConfigError(f'{where}.type={_short(kind)}: it must be a name or a class')
    elif not foreign and part.get('_scope_') in (None, 'mmcfmask', 'mmpretrain', 'mmengine'):
        names = sorted({name for level in _levels(registry) for name in level.module_dict})
        raise ConfigError(
            f'{where}.type={kind!r}: there is none of this name.'
            + (
                near_names(kind, names)
                or ' What a package of your own registers needs custom_imports=dict(imports=[…])'
            )
        )


def check_arguments(
    where: str,
    arguments: Mapping[str, Any],
    function: Callable,
    given: Iterable[str] = (),
    unknown: bool = True,
    missing: bool = True,
) -> None:
    """Judge arguments by the signature of a class or a function, and by :data:`RANGES`.

    Args:
        where (str): The dotted key that they stand under.
        arguments (Mapping): Name to value.
        function (Callable): What they are for.
        given (Iterable[str]): Arguments that come from elsewhere.
        unknown (bool): Whether an argument that it does not take is an error.
        missing (bool): Whether one that it needs and that is not there is.

    Raises:
        ConfigError: An argument that it does not take, with near names; a value that is not of its type or range; a
            missing one.
    """
    known, required, takes_others = _signature(function)
    name = getattr(function, '__name__', str(function))
    for key, value in arguments.items():
        if unknown and key not in known and not takes_others:
            taken = sorted(set(known) - {'params', 'optimizer', *given})
            hint = near_names(str(key), taken) or f' It takes {", ".join(taken) or "nothing"}'
            raise ConfigError(f'{where}: {name} has no {key!r}.{hint}')
        hint, default = known.get(key, (Any, inspect.Parameter.empty))
        if not (value is None and default is None):
            for judged in (hint, _range_of(function, key)):
                _check_value(f'{where}.{key}'.lstrip('.'), value, judged, ' or None' if default is None else '')
    lacking = [key for key in required if key not in arguments and key not in given] if missing else []
    if lacking:
        raise ConfigError(f'{where}: {name} needs {" and ".join(lacking)}')


def _check_inside(
    where: str, key: str, value: Any, check: Callable, registry: Registry, owner: Callable | None = None
) -> None:
    """Judge the parts in the value of a key."""
    own = REGISTRIES.get(key)
    if isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            if own is not None and not isinstance(item, (list, tuple, Mapping)):
                check(f'{where}[{index}]', item, own)
            _check_inside(f'{where}[{index}]', key, item, check, registry)
    if not isinstance(value, Mapping):
        return
    for base in getattr(owner, '__mro__', ()):
        if key in OWN_TYPES.get(base, ()):
            _check_own_type(where, value, OWN_TYPES[base][key])
    default = next(
        (DEFAULTS[base][key] for base in getattr(owner, '__mro__', ()) if key in DEFAULTS.get(base, ())), None
    )
    if own is not None and ('type' in value or default is not None):
        check(where, value, own, default)
        return
    if (
        own is None and 'type' in value
    ):  # not a place that is known: a name of any registry, or a word of the class's own
        found = next(filter(None, (_look_up(value['type'], each) for each in (registry, *ALL_REGISTRIES))), None)
        if found is not None:
            check_arguments(
                where,
                {name: item for name, item in value.items() if name != 'type'},
                found,
                unknown=False,
                missing=False,
            )
    for name, item in value.items():
        _check_inside(f'{where}.{name}', name, item, check, registry)


def _check_own_type(where: str, part: Mapping[str, Any], kinds: Mapping[str, Callable]) -> None:
    """Judge a part whose type is one of a few words, each with a function of one positional argument and the settings."""
    kind = part.get('type')
    if kind not in kinds:
        raise ConfigError(f'{where}.type={_short(kind)}: choose from {", ".join(map(repr, kinds))}')
    first = next(iter(inspect.signature(kinds[kind]).parameters))
    check_arguments(where, {key: value for key, value in part.items() if key != 'type'}, kinds[kind], given=(first,))


def _check_loaders(key: str, loaders: Any, check: Callable, whole: bool) -> None:
    """One dataloader, or a dict of named ones."""
    if loaders is None:
        return
    if not isinstance(loaders, Mapping):
        raise ConfigError(f'{key}={_short(loaders)}: it must be dict(dataset=dict(type=…, …), batch_size=…, …)')
    named = {key: loaders} if 'dataset' in loaders else {f'{key}.{name}': loader for name, loader in loaders.items()}
    if whole and not any(isinstance(loader, Mapping) and 'dataset' in loader for loader in named.values()):
        raise ConfigError(f'{key} has no dataset: it must be dict(dataset=dict(type=…, …), batch_size=…, …)')
    parts = dict(dataset=DATASETS, sampler=DATA_SAMPLERS, batch_sampler=DATA_SAMPLERS, collate_fn=FUNCTIONS)
    of_runner = {*parts, 'worker_init_fn', 'num_batch_per_epoch', 'disable_subprocess_warning'}
    for where, loader in named.items():
        if not isinstance(loader, Mapping):
            raise ConfigError(f'{where}={_short(loader)}: it must be dict(dataset=dict(type=…, …), batch_size=…, …)')
        check_arguments(
            where, {name: value for name, value in loader.items() if name not in of_runner}, DataLoader, ('dataset',)
        )
        for name in ('dataset', 'sampler') if whole else ():
            if loader.get(name) is None and not (name == 'sampler' and loader.get('batch_sampler')):
                raise ConfigError(f'{where} has no {name}: set {name}=dict(type=…, …)')
        if loader.get('shuffle') is not None and loader.get('sampler') is not None:
            raise ConfigError(
                f'{where}.shuffle={_short(loader["shuffle"])}: the sampler decides, by {where}.sampler.shuffle'
            )
        if whole and 'batch_size' not in loader:
            raise ConfigError(f'{where} has no batch_size')
        for name, registry in parts.items():
            if loader.get(name) is not None:
                check(f'{where}.{name}', loader[name], registry)


def _check_evaluator(key: str, evaluator: Any, check: Callable) -> None:
    """Metrics: one, a list, a whole evaluator, or those of named sets."""
    if isinstance(evaluator, Mapping) and 'evaluators' in evaluator:  # of MultiSetTestLoop
        if not isinstance(evaluator['evaluators'], Mapping):
            raise ConfigError(
                f'{key}.evaluators={_short(evaluator["evaluators"])}: it must be a dict of sets, each with its metrics'
            )
        for name, metrics in evaluator['evaluators'].items():
            _check_evaluator(f'{key}.evaluators.{name}', metrics, check)
        evaluator = {name: value for name, value in evaluator.items() if name != 'evaluators'} or None
    elif isinstance(evaluator, Mapping) and 'metrics' in evaluator:
        key, evaluator = f'{key}.metrics', evaluator['metrics']
    for where, metric in _parts(key, evaluator):
        check(where, metric, METRICS)


def _check_optim_wrapper(where: str, wrapper: Any, check: Callable, whole: bool) -> None:
    """The optimizer, what wraps it, and by what rules parameters have settings of their own."""
    if not isinstance(wrapper, Mapping):
        raise ConfigError(f'{where}={_short(wrapper)}: it must be a dict(optimizer=dict(type=…, lr=…), …)')
    constructor = wrapper.get('constructor') or 'DefaultOptimWrapperConstructor'
    make = _look_up(constructor, registries.OPTIM_WRAPPER_CONSTRUCTORS)
    if make is None:
        check(f'{where}.constructor', dict(type=constructor), registries.OPTIM_WRAPPER_CONSTRUCTORS)
    known = make is DefaultOptimWrapperConstructor or getattr(make, '__module__', '').startswith('mmpretrain.')
    if 'optimizer' not in wrapper and known and whole:
        raise ConfigError(f'{where} has no optimizer: set optimizer=dict(type=…, lr=…)')
    if known and 'optimizer' in wrapper:
        check(f'{where}.optimizer', wrapper['optimizer'], OPTIMIZERS)
    if known:
        check(
            where,
            {key: value for key, value in wrapper.items() if key not in ('optimizer', 'constructor', 'paramwise_cfg')},
            registries.OPTIM_WRAPPERS,
            'OptimWrapper',
        )
    clip, functions = (
        wrapper.get('clip_grad'),
        dict(norm=torch.nn.utils.clip_grad_norm_, value=torch.nn.utils.clip_grad_value_),
    )
    if clip is not None:
        if not isinstance(clip, Mapping) or not clip:
            raise ConfigError(f'{where}.clip_grad={_short(clip)}: it must be a dict(max_norm=…), or None')
        kind = clip.get('type', 'norm')
        if kind not in functions:
            raise ConfigError(f"{where}.clip_grad.type={_short(kind)}: it must be 'norm' or 'value'")
        arguments = {key: value for key, value in clip.items() if key != 'type'}
        check_arguments(f'{where}.clip_grad', arguments, functions[kind], given=('parameters',))
    options = wrapper.get('paramwise_cfg')
    if options is not None and known:
        allowed = PARAMWISE if make is DefaultOptimWrapperConstructor else {**PARAMWISE, **LAYER_DECAY}
        _check_value(f'{where}.paramwise_cfg', options, dict[str, Any])
        for key, value in options.items():
            if key not in allowed:
                hint = near_names(key, list(allowed)) or f' It takes {", ".join(allowed)}'
                raise ConfigError(f'{where}.paramwise_cfg has no {key!r}.{hint}')
            if value is not None:
                _check_value(f'{where}.paramwise_cfg.{key}', value, allowed[key])
        make_optimizer = _look_up((wrapper.get('optimizer') or {}).get('type'), OPTIMIZERS)
        for name, settings in (options.get('custom_keys') or {}).items():
            _check_group(f'{where}.paramwise_cfg.custom_keys.{name}', settings, make_optimizer)


def _check_group(where: str, settings: Mapping[str, Any], make_optimizer: Callable | None) -> None:
    """Settings of some of the parameters: factors, or those of the optimizer, which would leave others unread."""
    known, _, takes_others = _signature(make_optimizer) if make_optimizer else ({}, [], True)
    for key, value in settings.items():
        if key in CUSTOM:
            _check_value(f'{where}.{key}', value, CUSTOM[key])
        elif not takes_others and key not in known:
            taken = [*CUSTOM, *sorted(set(known) - {'params'})]
            raise ConfigError(f'{where} has no {key!r}.{near_names(key, taken) or " It takes " + ", ".join(taken)}')
        elif make_optimizer:
            check_arguments(where, {key: value}, make_optimizer, unknown=False, missing=False)


def _parts(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """A part, or those in a list of parts, each with its dotted key."""
    if isinstance(value, (list, tuple)):
        yield from ((f'{key}[{index}]', part) for index, part in enumerate(value))
    elif value is not None:
        yield key, value


def _levels(registry: Registry | None) -> Iterator[Registry]:
    while registry is not None:
        yield registry
        registry = registry.parent


def _look_up(kind: Any, registry: Registry) -> Callable | None:
    """The class or function of a ``type``; None where there is none of that name."""
    if not isinstance(kind, str):
        return kind if callable(kind) else None
    try:
        return registry.get(kind)
    except Exception:  # a dotted name of something that cannot be imported
        return None


def _check_finite(where: str, value: Any) -> None:
    """Nowhere in a config is NaN meant."""
    if isinstance(value, float) and math.isnan(value):
        raise ConfigError(f'{where} is NaN: it must be a number')
    items = (
        value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    )
    for key, item in items:
        _check_finite(f'{where}[{key}]' if isinstance(key, int) else f'{where}.{key}', item)


def _range_of(function: Callable, key: str) -> Any:
    """What :data:`RANGES` says of an argument, of the nearest class."""
    return next(
        (RANGES[base][key] for base in getattr(function, '__mro__', (function,)) if key in RANGES.get(base, ())), Any
    )


@cache
def _signature(function: Callable) -> tuple[dict[str, tuple[Any, Any]], list[str], bool]:
    """({argument: (hint, default)}, those that must be given, whether it takes any other) of a class or a function."""
    chain = [function]
    if isinstance(function, type):  # what **kwargs pass on is for the next class
        chain = [base.__init__ for base in function.__mro__ if base is not object and '__init__' in vars(base)]
        chain += [taker for base, taker in FORWARDED.items() if issubclass(function, base)]
    known: dict[str, tuple[Any, Any]] = {}
    required, takes_others = [], False
    for init in chain:
        try:
            parameters = [
                parameter for parameter in inspect.signature(init).parameters.values() if parameter.name != 'self'
            ]
        except (TypeError, ValueError):  # written in C
            return known, required, True
        hints = _hints_of(init)
        if not init.__module__.startswith('mmcfmask.'):  # others write int where they take 4.0 too
            hints = {name: float if hint is int else hint for name, hint in hints.items()}
        named = [
            parameter
            for parameter in parameters
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        ]
        if init is chain[0]:
            required = [parameter.name for parameter in named if parameter.default is parameter.empty]
        for parameter in named:
            hint = CORRECTED.get(parameter.name, hints.get(parameter.name, Any))
            known.setdefault(parameter.name, (hint, parameter.default))
        takes_others = any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters)
        if not takes_others:
            break
    return known, required, takes_others


def _hints_of(function: Callable) -> dict[str, Any]:
    """Those type hints of a function that can be evaluated."""
    function = inspect.unwrap(function)
    found = {}
    for name, hint in getattr(function, '__annotations__', {}).items():
        # as typing.get_type_hints, which gives up at the first that fails: a name that is imported for type checkers
        # only
        try:
            found[name] = eval(hint, getattr(function, '__globals__', {})) if isinstance(hint, str) else hint
        except Exception:
            continue
    return found


def _check_value(where: str, value: Any, hint: Any, more: str = '') -> None:
    """Raise a ConfigError unless a value is of a type; ``more`` is what else is possible."""
    adapter = None if hint is Any else _adapter(hint)
    if adapter is None:
        return
    try:
        adapter.validate_python(value)
    except ValidationError as error:
        errors = error.errors(include_url=False)
        if any(problem['type'] in ('is_instance_of', 'is_subclass_of', 'callable_type') for problem in errors):
            return  # what it names may be one
        raise ConfigError(
            f'{where}={_short(value)}: it must be {" or ".join(dict.fromkeys(map(_wanted, errors)))}{more}'
        ) from None


@cache
def _adapter(hint: Any) -> TypeAdapter | None:
    """What judges values of a type; None where pydantic has no such thing."""
    try:
        return TypeAdapter(_strict(hint), config=ConfigDict(arbitrary_types_allowed=True))
    except Exception:  # pydantic raises several kinds, and what a hint of somebody else's raises
        return None


# What serves for an abstract type in a config.
ABSTRACT = {collections.abc.Sequence: list, collections.abc.Iterable: list, collections.abc.Mapping: dict}


def _strict(hint: Any) -> Any:
    """A type whose numbers and texts are taken as they are, where pydantic would take '1' for 1; a list still serves
    for a tuple."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint in (int, float, str, bool):
        return Annotated[hint, Strict()]
    if origin is Annotated:
        return Annotated[(_strict(args[0]), *args[1:])]
    if origin in (Union, getattr(types, 'UnionType', Union)):
        return Union[tuple(map(_strict, args))]
    if origin is tuple and len(args) == 1:  # OpenMMLab's way to write a tuple of any length
        args = (*args, ...)
    abstract = ABSTRACT.get(origin or hint)
    if abstract is not None:
        return abstract[tuple(map(_strict, args))] if args else abstract
    if origin in (list, tuple, dict, set):
        return origin[tuple(arg if arg is ... else _strict(arg) for arg in args)]
    return hint


WANTED = dict(
    int_type='a whole number',
    int_from_float='a whole number',
    float_type='a number',
    bool_type='True or False',
    string_type='a text',
    string_too_short='a text that is not empty',
    dict_type='a dict',
    mapping_type='a dict',
    list_type='a list',
    tuple_type='a list',
    sequence_str='a list',
    iterable_type='a list',
    none_required='None',
)


def _wanted(problem: dict) -> str:
    """What pydantic says of a value, in a few words."""
    if problem['type'] in ('too_long', 'too_short'):
        most = problem['ctx'].get('max_length')
        return (
            f'a list of at most {most}'
            if problem['type'] == 'too_long'
            else f'a list of at least {problem["ctx"]["min_length"]}'
        )
    text = WANTED.get(problem['type']) or problem['msg'].removeprefix('Input should be ')
    items = [place for place in problem['loc'] if isinstance(place, int)]
    return f'{text} (at [{items[0]}])' if items else text


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else text[:99] + '…'
