"""Check the values of a config before anything is built, by the signatures of the classes that its parts name."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from mmengine.config import Config
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import FUNCTIONS, Registry
from mmengine.runner import Runner
from mmengine.utils.dl_utils import set_multi_processing
from mmpretrain import registry as registries
from mmpretrain.registry import DATA_SAMPLERS, DATASETS, HOOKS, LOOPS, METRICS, MODELS, OPTIMIZERS, PARAM_SCHEDULERS
from torch.utils.data import DataLoader

from ...errors import ConfigError
from ...messages import near_names
from ...renamed import REMOVED, TYPES
from .signatures import check_arguments, check_own_type, check_value, read_signature, shorten
from .tables import (
    ALL_REGISTRIES,
    BESIDES,
    CUSTOM,
    DEFAULTS,
    DISTRIBUTED,
    ENVIRONMENT,
    GIVEN,
    LAYER_DECAY,
    OPTIONS,
    OWN_TYPES,
    PARAMWISE,
    REGISTRIES,
    TAKEN,
    TOP_LEVEL,
)


def check_schema(cfg: Config, complete: bool = True) -> None:
    """Check all parts of a config that a Runner reads.

    Args:
        cfg (Config): The config.
        complete (bool): A missing section or argument is an error too. If False, only the values that are set are
            checked.

    Raises:
        ConfigError: Names the key, its value and the possible values.
    """
    values = cfg.to_dict()
    for key, value in values.items():
        _check_finite(key, value)
    known = read_signature(Runner.__init__)[0]
    check_arguments(
        '',
        {key: value for key, value in values.items() if key in known and (key, value) != ('work_dir', None)},
        Runner.__init__,
        missing=False,
    )
    if complete:
        _check_sections(values)
    check_top_level(values)
    check = partial(
        check_part, complete=complete, foreign=values.get('default_scope') not in (None, 'mmpretrain', 'mmengine')
    )
    scope = values.get('default_scope')
    if (
        scope is not None
        and scope not in MODELS.parent.children
        and not (scope.isidentifier() and importlib.util.find_spec(scope))
    ):
        raise ConfigError(f"default_scope={scope!r}: there is no package of this name; use 'mmpretrain'")
    _check_environment(values.get('env_cfg') or {})
    if 'model' in values:
        check('model', values['model'], MODELS)
    for mode, default in dict(train=None, val='ValLoop', test='TestLoop').items():
        _check_loaders(f'{mode}_dataloader', values.get(f'{mode}_dataloader'), check, complete)
        _check_evaluator(f'{mode}_evaluator', values.get(f'{mode}_evaluator'), check)
        loop = values.get(f'{mode}_cfg')
        if loop is not None:
            if 'by_epoch' in loop and 'type' in loop:
                raise ConfigError(
                    f'{mode}_cfg.by_epoch={shorten(loop["by_epoch"])} chooses a loop, and so does {mode}_cfg.type='
                    f'{shorten(loop["type"])}: leave one of them out'
                )
            if mode == 'train':
                default = 'EpochBasedTrainLoop' if loop.get('by_epoch', True) else 'IterBasedTrainLoop'
            check(f'{mode}_cfg', {key: value for key, value in loop.items() if key != 'by_epoch'}, LOOPS, default)
    if values.get('optim_wrapper') is not None:
        _check_optim_wrapper('optim_wrapper', values['optim_wrapper'], check, complete)
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
    """Raise a ConfigError for a top-level value of another type than :data:`TOP_LEVEL` says."""
    for key, hint in TOP_LEVEL.items():
        value = values
        for part in key.split('.'):
            value = value.get(part) if isinstance(value, Mapping) else None
        if value is not None:
            check_value(key, value, hint, ' or None' if '.' not in key else '')


def _check_environment(environment: Mapping[str, Any]) -> None:
    """Raise a ConfigError for a key of ``env_cfg`` that the Runner does not read, or a value of another type."""
    _check_keys('env_cfg', environment, ENVIRONMENT)
    _check_keys('env_cfg.dist_cfg', environment.get('dist_cfg') or {}, DISTRIBUTED)
    check_arguments(
        'env_cfg.mp_cfg', environment.get('mp_cfg') or {}, set_multi_processing, given=('distributed',), missing=False
    )


def _check_keys(where: str, values: Mapping[str, Any], hints: Mapping[str, Any]) -> None:
    """Raise a ConfigError for a key that is not in ``hints``, or a value that is neither None nor of the type there."""
    for key, value in values.items():
        if key not in hints:
            near = near_names(str(key), list(hints)) or f' It takes {", ".join(hints)}'
            raise ConfigError(f'{where} has no {key!r}.{near}')
        if value is not None:
            check_value(f'{where}.{key}', value, hints[key])


def _check_sections(values: Mapping[str, Any]) -> None:
    """Raise a ConfigError for a config without a model, or with only some of the keys that a training, a validation or
    a test needs."""
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
    where: str, part: Any, registry: Registry, default: str | None = None, complete: bool = True, foreign: bool = False
) -> None:
    """Check a part of a config, and the parts in it, by the class that it names.

    Args:
        where (str): Its dotted key, for errors.
        part: ``dict(type=…, …)``, or an object that is already built.
        registry (Registry): Where to look up the class.
        default (str, optional): The type of a part without one.
        complete (bool): A missing argument is an error too.
        foreign (bool): Accept unknown names, which another package may register.

    Raises:
        ConfigError: Names the key, its value and the possible values.
    """
    if not isinstance(part, Mapping):
        if part is None or isinstance(part, (str, int, float, list, tuple)):
            raise ConfigError(f'{where}={shorten(part)}: it must be a dict(type=…, …)')
        return
    kind = part.get('type', default)
    if kind is None and not complete:
        return
    if kind is None:
        raise ConfigError(f'{where} has no type: it must be a dict(type=…, …)')
    found = _look_up(kind, registry)
    if found is not None:
        besides = BESIDES.get(registry, {})
        for key in besides.keys() & part.keys():
            check_value(f'{where}.{key}', part[key], besides[key])
        ours = {'type', '_scope_', *besides}
        arguments = {key: value for key, value in part.items() if key not in ours}
        certain = registry is not FUNCTIONS
        check_arguments(where, arguments, found, GIVEN.get(registry, ()), unknown=certain, missing=complete and certain)
        for key, value in arguments.items():
            _check_inside(
                f'{where}.{key}', key, value, partial(check_part, complete=complete, foreign=foreign), registry, found
            )
    elif not isinstance(kind, str):
        raise ConfigError(f'{where}.type={shorten(kind)}: it must be a name or a class')
    elif not foreign and part.get('_scope_') in (None, 'mmcfmask', 'mmpretrain', 'mmengine'):
        if kind in TYPES:
            raise ConfigError(f'{where}.type={kind!r} is now {TYPES[kind]!r}')
        if kind in REMOVED:
            raise ConfigError(f'{where}.type={kind!r} {REMOVED[kind]}')
        names = sorted({name for level in _levels(registry) for name in level.module_dict})
        raise ConfigError(
            f'{where}.type={kind!r}: nothing is registered under this name.'
            + (near_names(kind, names) or ' To use a class of your own package, set custom_imports=dict(imports=[…])')
        )


def _check_inside(
    where: str, key: str, value: Any, check: Callable, registry: Registry, owner: Callable | None = None
) -> None:
    """Check the parts in the value of a key."""
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
            check_own_type(where, value, OWN_TYPES[base][key])
        if key in OPTIONS.get(base, ()):
            check_arguments(where, value, OPTIONS[base][key])
        for name, taker in TAKEN.get(base, {}).get(key, {}).items():
            if value.get(name) is not None:
                check_value(f'{where}.{name}', value[name], dict)
                check_arguments(f'{where}.{name}', value[name], taker)
            value = {own_key: item for own_key, item in value.items() if own_key != name}
    default = next(
        (DEFAULTS[base][key] for base in getattr(owner, '__mro__', ()) if key in DEFAULTS.get(base, ())), None
    )
    if own is not None and ('type' in value or default is not None):
        check(where, value, own, default)
        return
    if (
        own is None and 'type' in value
    ):  # an unknown place: the type is a name of any registry, or a word of the class itself
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


def _check_loaders(key: str, loaders: Any, check: Callable, complete: bool) -> None:
    """Check one dataloader, or a dict of named ones."""
    if loaders is None:
        return
    if not isinstance(loaders, Mapping):
        raise ConfigError(f'{key}={shorten(loaders)}: it must be dict(dataset=dict(type=…, …), batch_size=…, …)')
    named = {key: loaders} if 'dataset' in loaders else {f'{key}.{name}': loader for name, loader in loaders.items()}
    if complete and not any(isinstance(loader, Mapping) and 'dataset' in loader for loader in named.values()):
        raise ConfigError(f'{key} has no dataset: it must be dict(dataset=dict(type=…, …), batch_size=…, …)')
    parts = dict(dataset=DATASETS, sampler=DATA_SAMPLERS, batch_sampler=DATA_SAMPLERS, collate_fn=FUNCTIONS)
    of_runner = {*parts, 'worker_init_fn', 'num_batch_per_epoch', 'disable_subprocess_warning'}
    for where, loader in named.items():
        if not isinstance(loader, Mapping):
            raise ConfigError(f'{where}={shorten(loader)}: it must be dict(dataset=dict(type=…, …), batch_size=…, …)')
        check_arguments(
            where, {name: value for name, value in loader.items() if name not in of_runner}, DataLoader, ('dataset',)
        )
        for name in ('dataset', 'sampler') if complete else ():
            if loader.get(name) is None and not (name == 'sampler' and loader.get('batch_sampler')):
                raise ConfigError(f'{where} has no {name}: set {name}=dict(type=…, …)')
        if loader.get('shuffle') is not None and loader.get('sampler') is not None:
            raise ConfigError(
                f'{where}.shuffle={shorten(loader["shuffle"])}: the sampler decides, by {where}.sampler.shuffle'
            )
        if complete and 'batch_size' not in loader:
            raise ConfigError(f'{where} has no batch_size')
        for name, registry in parts.items():
            if loader.get(name) is not None:
                check(f'{where}.{name}', loader[name], registry)


def _check_evaluator(key: str, evaluator: Any, check: Callable) -> None:
    """Check the metrics: one, a list, an evaluator, or a dict of named sets."""
    if isinstance(evaluator, Mapping) and 'evaluators' in evaluator:  # of MultiSetTestLoop
        if not isinstance(evaluator['evaluators'], Mapping):
            raise ConfigError(
                f'{key}.evaluators={shorten(evaluator["evaluators"])}: it must be a dict of sets, each with its metrics'
            )
        for name, metrics in evaluator['evaluators'].items():
            _check_evaluator(f'{key}.evaluators.{name}', metrics, check)
        evaluator = {name: value for name, value in evaluator.items() if name != 'evaluators'} or None
    elif isinstance(evaluator, Mapping) and 'metrics' in evaluator:
        key, evaluator = f'{key}.metrics', evaluator['metrics']
    for where, metric in _parts(key, evaluator):
        check(where, metric, METRICS)


def _check_optim_wrapper(where: str, wrapper: Any, check: Callable, complete: bool) -> None:
    """Check the optimizer, its wrapper, and the settings of single parameters (``paramwise_cfg``)."""
    if not isinstance(wrapper, Mapping):
        raise ConfigError(f'{where}={shorten(wrapper)}: it must be a dict(optimizer=dict(type=…, lr=…), …)')
    constructor = wrapper.get('constructor') or 'DefaultOptimWrapperConstructor'
    make = _look_up(constructor, registries.OPTIM_WRAPPER_CONSTRUCTORS)
    if make is None:
        check(f'{where}.constructor', dict(type=constructor), registries.OPTIM_WRAPPER_CONSTRUCTORS)
    known = make is DefaultOptimWrapperConstructor or getattr(make, '__module__', '').startswith('mmpretrain.')
    if 'optimizer' not in wrapper and known and complete:
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
            raise ConfigError(f'{where}.clip_grad={shorten(clip)}: it must be a dict(max_norm=…), or None')
        kind = clip.get('type', 'norm')
        if kind not in functions:
            raise ConfigError(f"{where}.clip_grad.type={shorten(kind)}: it must be 'norm' or 'value'")
        arguments = {key: value for key, value in clip.items() if key != 'type'}
        check_arguments(f'{where}.clip_grad', arguments, functions[kind], given=('parameters',))
    options = wrapper.get('paramwise_cfg')
    if options is not None and known:
        by_layer = make is not DefaultOptimWrapperConstructor
        allowed = LAYER_DECAY if by_layer else PARAMWISE
        check_value(f'{where}.paramwise_cfg', options, dict[str, Any])
        _check_keys(f'{where}.paramwise_cfg', options, allowed)
        make_optimizer = _look_up((wrapper.get('optimizer') or {}).get('type'), OPTIMIZERS)
        for name, settings in (options.get('custom_keys') or {}).items():
            _check_group(f'{where}.paramwise_cfg.custom_keys.{name}', settings, make_optimizer, by_layer)


def _check_group(
    where: str, settings: Mapping[str, Any], make_optimizer: Callable | None, by_layer: bool = False
) -> None:
    """Check the settings of some parameters: factors, or settings of the optimizer, which ignores all others. Where the
    layer decides about the learning rate (``by_layer``), they cannot."""
    known, _, takes_others = read_signature(make_optimizer) if make_optimizer else ({}, [], True)
    for key, value in settings.items():
        if by_layer and key in ('lr', 'lr_mult'):
            raise ConfigError(f'{where}.{key}={shorten(value)}: the constructor sets the learning rate by the layer')
        if key in CUSTOM:
            check_value(f'{where}.{key}', value, CUSTOM[key])
        elif not takes_others and key not in known:
            taken = [*CUSTOM, *sorted(set(known) - {'params'})]
            raise ConfigError(f'{where} has no {key!r}.{near_names(key, taken) or " It takes " + ", ".join(taken)}')
        elif make_optimizer:
            check_arguments(where, {key: value}, make_optimizer, unknown=False, missing=False)


def _parts(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield a part, or the parts of a list, each with its dotted key."""
    if isinstance(value, (list, tuple)):
        yield from ((f'{key}[{index}]', part) for index, part in enumerate(value))
    elif value is not None:
        yield key, value


def _levels(registry: Registry | None) -> Iterator[Registry]:
    while registry is not None:
        yield registry
        registry = registry.parent


def _look_up(kind: Any, registry: Registry) -> Callable | None:
    """Return the class or function of a ``type``, or None if nothing has this name."""
    if not isinstance(kind, str):
        return kind if callable(kind) else None
    try:
        return registry.get(kind)
    except Exception:  # a dotted name that cannot be imported
        return None


def _check_finite(where: str, value: Any) -> None:
    """Raise a ConfigError for a NaN, which no config means."""
    if isinstance(value, float) and math.isnan(value):
        raise ConfigError(f'{where} is NaN: it must be a number')
    items = (
        value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    )
    for key, item in items:
        _check_finite(f'{where}[{key}]' if isinstance(key, int) else f'{where}.{key}', item)
