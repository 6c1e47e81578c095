"""Build small parts of a config and throw them away: their classes know best which values go together."""

from __future__ import annotations

import copy
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from traceback import walk_tb

import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.hooks import EMAHook
from mmengine.registry import DefaultScope
from mmengine.runner import Priority, get_priority
from mmpretrain.datasets import PackInputs, PackMultiTaskInputs
from mmpretrain.registry import HOOKS, MODELS, OPTIMIZERS, PARAM_SCHEDULERS, TRANSFORMS
from torch import nn
from torch.utils.data import DataLoader

from ...errors import ConfigError, blame
from ...models import (
    CAMRefillDataPreprocessor,
    CLIPDistillHead,
    ContextTerm,
    CounterfactualClassifier,
    CounterfactualMaker,
)
from ...models.head import check_head
from ...models.maker import OPTIONS
from ...models.preprocessor import fill_normalisation
from ..values import get_value, is_a


def check_parts(cfg: Config) -> None:
    """Build the head, the data preprocessor, context terms, transforms, hooks, the optimizer, its schedules and the
    loaders, and throw them away.

    Raises:
        ConfigError: Names the key of the part and gives the reason of its class.
    """
    _check_model_parts(cfg)
    values = copy.deepcopy(cfg.to_dict())
    if values.get('default_scope') not in (None, 'mmpretrain', 'mmengine'):
        return
    _check_pipelines(values)
    _check_hooks(values)
    _check_schedules(values, _build_optimizer(values))
    for mode in ('train', 'val', 'test'):
        for key, loader in named_loaders(values, mode).items():
            _check_loader(key, loader)


def named_loaders(cfg: Config | dict, mode: str) -> dict[str, dict]:
    """Return the dataloaders of a mode ('train', 'val', 'test') of a config, by dotted key: one, or one per named
    set."""
    key = f'{mode}_dataloader'
    loaders = cfg.get(key) or {}
    return {key: loaders} if 'dataset' in loaders else {f'{key}.{name}': loader for name, loader in loaders.items()}


def _check_model_parts(cfg: Config) -> None:
    """Build the head, the data preprocessor and the context terms of a CounterfactualClassifier."""
    if not is_a(CounterfactualClassifier, get_value(cfg, 'model.type'), MODELS):
        return
    if get_value(cfg, 'model.head.type') is not None:
        check_head(get_value(cfg, 'model.head'))
    for name, default in dict(head=None, data_preprocessor='CAMRefillDataPreprocessor').items():
        part = get_value(cfg, f'model.{name}') or {}
        kind = part.get('type', default)
        kind = MODELS.get(kind) if isinstance(kind, str) else kind
        if is_a((CLIPDistillHead, CAMRefillDataPreprocessor), kind, MODELS):
            arguments = {key: value for key, value in part.items() if key not in ('type', '_scope_')}
            if name == 'data_preprocessor':
                arguments = fill_normalisation(arguments, get_value(cfg, 'model.backbone') or {})
            given = dict(in_channels=1) if name == 'head' else {}
            with _blame(f'model.{name}', (OSError, ValueError, TypeError)), _aside():
                kind(**{**given, **arguments})
    losses, preprocessor = (get_value(cfg, f'model.{name}') for name in ('losses', 'data_preprocessor'))
    for index, term in enumerate(losses if isinstance(losses, (list, tuple)) else ()):
        kind = term.get('type') if isinstance(term, Mapping) else None
        kind = MODELS.get(kind) if isinstance(kind, str) else kind
        if is_a(ContextTerm, kind, MODELS):
            arguments = {key: value for key, value in term.items() if key not in ('type', '_scope_')}
            settings = {key: value for key, value in (preprocessor or {}).items() if key in OPTIONS}
            with _blame(f'model.losses[{index}]', (OSError, ValueError, TypeError)), _aside():
                built = kind(**arguments)
                built.check_images(built.maker or CounterfactualMaker(**settings))


def _check_pipelines(values: dict) -> None:
    """Build every transform; a pipeline must end in one that packs the images."""
    for key, pipeline in _pipelines('', values):
        if (
            key.endswith('.dataset.pipeline')
            and all(_is_known(transform) for transform in pipeline)
            and not _packs(pipeline)
        ):
            shown = '[]' if not pipeline else f'[…, {pipeline[-1]["type"]!r}]'
            raise ConfigError(
                f"{key}={shown}: it must end with dict(type='PackInputs'), which gives the model its images"
            )
        for index, transform in enumerate(pipeline):
            with _trial(f'{key}[{index}]'):
                Compose([transform])


def _is_known(transform) -> bool:
    """Whether a transform comes from mmcv, mmpretrain or this package, where only Pack… transforms pack images."""
    kind = transform.get('type') if isinstance(transform, dict) else None
    kind = TRANSFORMS.get(kind) if isinstance(kind, str) else kind
    return getattr(kind, '__module__', '').partition('.')[0] in ('mmcv', 'mmpretrain', 'mmcfmask')


def _packs(node) -> bool:
    """Whether a pipeline, or a transform inside another one, packs images."""
    if isinstance(node, dict):
        return is_a((PackInputs, PackMultiTaskInputs), node.get('type'), TRANSFORMS) or any(map(_packs, node.values()))
    return isinstance(node, (list, tuple)) and any(map(_packs, node))


def _check_hooks(values: dict) -> None:
    """Build the hooks of a config, except for those that need a Runner."""
    hooks = {
        f'default_hooks.{name}': hook for name, hook in (values.get('default_hooks') or {}).items() if hook is not None
    }
    hooks.update({f'custom_hooks[{index}]': hook for index, hook in enumerate(values.get('custom_hooks') or ())})
    for key, hook in hooks.items():
        if isinstance(hook, dict):
            kind = HOOKS.get(hook['type']) if isinstance(hook.get('type'), str) else hook.get('type')
            with _trial(key):
                priority = hook.pop('priority', 'NORMAL')
                if isinstance(priority, str) and priority.upper() not in Priority.__members__:
                    raise ConfigError(
                        f'priority={priority!r}: choose a number from 0 to 100 or {", ".join(Priority.__members__)}'
                    )
                get_priority(priority)
                if is_a(EMAHook, kind, HOOKS) and MODELS.get(hook.get('ema_type', 'ExponentialMovingAverage')) is None:
                    raise ConfigError(f'ema_type={hook["ema_type"]!r}: nothing is registered under this name')
                if getattr(kind, '__module__', '').partition('.')[0] in SELF_CONTAINED:
                    HOOKS.build(hook)


def _check_schedules(values: dict, optimizer: torch.optim.Optimizer | None) -> None:
    """Build the schedules of a config."""
    schedules = values.get('param_scheduler') or []
    for index, schedule in enumerate(schedules if isinstance(schedules, list) else [schedules]):
        if optimizer is None or not isinstance(schedule, dict) or 'type' not in schedule:
            continue
        with _trial(f'param_scheduler[{index}]' if isinstance(schedules, list) else 'param_scheduler'):
            kind = PARAM_SCHEDULERS.get(schedule['type']) if isinstance(schedule['type'], str) else schedule['type']
            if schedule.pop('convert_to_iter_based', False):
                arguments = {**schedule, 'end': schedule.get('end') or get_value(values, 'train_cfg.max_epochs') or 1}
                del arguments['type']
                kind.build_iter_from_epoch(optimizer=optimizer, epoch_length=100, **arguments)
            else:
                PARAM_SCHEDULERS.build(schedule, default_args=dict(optimizer=optimizer, epoch_length=100))


# Packages whose hooks only store their settings when built; some hooks of mmpretrain need a Runner.
SELF_CONTAINED = ('mmcfmask', 'mmengine')

# Packages whose classes may raise any error for a wrong value. An unexpected error inside another class is a bug in it.
LIBRARIES = {'mmcfmask', 'mmengine', 'mmpretrain', 'mmcv', 'torch', 'torchvision', *sys.stdlib_module_names}


def _pipelines(where: str, node) -> Iterator[tuple[str, list]]:
    """Yield every pipeline of the data sets of a config, with its key."""
    for name, value in (
        node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, (list, tuple)) else ()
    ):
        key = f'{where}[{name}]' if isinstance(name, int) else f'{where}.{name}'.lstrip('.')
        if name == 'pipeline' and isinstance(value, (list, tuple)) and isinstance(node, dict) and 'type' in node:
            yield key, list(value)
        else:
            yield from _pipelines(key, value)


def _build_optimizer(values: dict) -> torch.optim.Optimizer | None:
    """Build the optimizer of a config, over one number."""
    wrapper = values.get('optim_wrapper') or {}
    part = dict(wrapper.get('optimizer') or {})
    if not part.get('type') or wrapper.get('constructor'):
        return None
    if 'params' in part:
        raise ConfigError('optim_wrapper.optimizer.params is set by the model: leave it out')
    part.pop('fused', None)  # see build.fit_optimizer
    with _trial('optim_wrapper.optimizer'):
        return OPTIMIZERS.build(dict(part, params=[nn.Parameter(torch.zeros(1))]))


def _check_loader(key: str, loader: dict) -> None:
    """Build a dataloader over one number."""
    if 'collate_fn' in loader and loader['collate_fn'] is None:
        raise ConfigError(f"{key}.collate_fn=None: it must be a dict(type=…), such as dict(type='default_collate')")
    if not isinstance(loader.get('worker_init_fn') or {}, dict):
        raise ConfigError(f'{key}.worker_init_fn={loader["worker_init_fn"]!r}: it must be a dict(type=…)')
    # The Runner reads these, or build.fit_loaders fits them to the machine.
    others = (
        'dataset',
        'sampler',
        'batch_sampler',
        'collate_fn',
        'worker_init_fn',
        'num_batch_per_epoch',
        'pin_memory',
        'persistent_workers',
    )
    with _trial(key):
        DataLoader([0], **{name: value for name, value in loader.items() if name not in others})


@contextmanager
def _trial(where: str) -> Iterator[None]:
    """Inside the context, an error of a class is a ConfigError that names the key ``where``, see :func:`_blame`. A
    library that is missing on this machine is no error."""
    with _blame(where, Exception), suppress(ImportError), _aside():
        yield


@contextmanager
def _blame(where: str, kinds: type[Exception] | tuple[type[Exception], ...]) -> Iterator[None]:
    """Like :func:`blame`, but what fails inside a class of the user, other than by a wrong value, keeps its
    traceback."""
    try:
        yield
    except Exception as error:
        owners = [type(frame.f_locals['self']) for frame, _ in walk_tb(error.__traceback__) if 'self' in frame.f_locals]
        is_own = any(owner.__module__.partition('.')[0] not in LIBRARIES for owner in owners)
        with blame(where, (OSError, ValueError) if is_own else kinds):
            raise


@contextmanager
def _aside() -> Iterator[None]:
    """Keep the random numbers of later parts, and leave warnings to the building of the real part."""
    with (
        DefaultScope.overwrite_default_scope('mmpretrain'),
        torch.random.fork_rng(devices=[]),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter('ignore')
        yield
