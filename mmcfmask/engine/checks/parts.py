"""Parts that are quickly built are built, and thrown away: their classes know best which values go together."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.hooks import EMAHook
from mmengine.registry import DefaultScope
from mmengine.runner import Priority, get_priority
from mmpretrain.registry import HOOKS, MODELS, OPTIMIZERS, PARAM_SCHEDULERS
from torch import nn
from torch.utils.data import DataLoader

from ...errors import ConfigError, MissingFileError, UserError
from ...models import CAMRefillDataPreprocessor, CLIPDistillHead, CounterfactualClassifier
from ..values import is_a, value_of
from .schema import check_config


def check_arguments(cfg: Config) -> None:
    """What would fail when a part of a config is built, which in a study can be hours later.

    Raises:
        ConfigError: What :func:`.schema.check_config` finds; or values that the head or the data preprocessor does not
            take together.
    """
    check_config(cfg, whole=False)
    ours = is_a(CounterfactualClassifier, value_of(cfg, 'model.type'), MODELS)
    for name, default in dict(head=None, data_preprocessor='CAMRefillDataPreprocessor').items():  # quickly built
        part = value_of(cfg, f'model.{name}') or {}
        kind = part.get('type', default)
        kind = MODELS.get(kind) if isinstance(kind, str) else kind
        if ours and is_a((CLIPDistillHead, CAMRefillDataPreprocessor), kind, MODELS):
            arguments = {key: value for key, value in part.items() if key not in ('type', '_scope_')}
            given = dict(in_channels=1) if name == 'head' else {}
            with (
                lower_errors(f'model.{name}'),
                torch.random.fork_rng(devices=[]),
            ):  # what is built later has the same random numbers
                kind(**{**given, **arguments})
    _check_small_parts(cfg)


def _check_small_parts(cfg: Config) -> None:
    """Make what is made at once - transforms, hooks, the optimizer and its schedules, loaders - and throw it away:
    their classes know best which values go together.

    Raises:
        ConfigError: With the key of the part and what its class says.
    """
    values = copy.deepcopy(cfg.to_dict())
    if values.get('default_scope') not in (None, 'mmpretrain', 'mmengine'):
        return
    for key, pipeline in _pipelines('', values):
        if not pipeline and key.endswith('.dataset.pipeline'):
            raise ConfigError(f"{key}=[]: it must end with dict(type='PackInputs'), which gives the model its images")
        for index, transform in enumerate(pipeline):
            with _refused(f'{key}[{index}]'):
                Compose([transform])
    hooks = {
        f'default_hooks.{name}': hook for name, hook in (values.get('default_hooks') or {}).items() if hook is not None
    }
    hooks.update({f'custom_hooks[{index}]': hook for index, hook in enumerate(values.get('custom_hooks') or ())})
    for key, hook in hooks.items():
        if isinstance(hook, dict):
            kind = HOOKS.get(hook['type']) if isinstance(hook.get('type'), str) else hook.get('type')
            with _refused(key):
                priority = hook.pop('priority', 'NORMAL')
                if isinstance(priority, str) and priority.upper() not in Priority.__members__:
                    raise ConfigError(
                        f'priority={priority!r}: choose a number from 0 to 100 or {", ".join(Priority.__members__)}'
                    )
                get_priority(priority)
                if is_a(EMAHook, kind, HOOKS) and MODELS.get(hook.get('ema_type', 'ExponentialMovingAverage')) is None:
                    raise ConfigError(f'ema_type={hook["ema_type"]!r}: there is none of this name')
                if getattr(kind, '__module__', '').partition('.')[0] in SELF_CONTAINED:
                    HOOKS.build(hook)
    optimizer = _check_optimizer(values)
    schedules = values.get('param_scheduler') or []
    for index, schedule in enumerate(schedules if isinstance(schedules, list) else [schedules]):
        if optimizer is None or not isinstance(schedule, dict) or 'type' not in schedule:
            continue
        with _refused(f'param_scheduler[{index}]' if isinstance(schedules, list) else 'param_scheduler'):
            kind = PARAM_SCHEDULERS.get(schedule['type']) if isinstance(schedule['type'], str) else schedule['type']
            if schedule.pop('convert_to_iter_based', False):
                arguments = {**schedule, 'end': schedule.get('end') or value_of(values, 'train_cfg.max_epochs') or 1}
                del arguments['type']
                kind.build_iter_from_epoch(optimizer=optimizer, epoch_length=100, **arguments)
            else:
                PARAM_SCHEDULERS.build(schedule, default_args=dict(optimizer=optimizer, epoch_length=100))
    for mode in ('train', 'val', 'test'):
        loaders = values.get(f'{mode}_dataloader') or {}
        loaders = (
            {f'{mode}_dataloader': loaders}
            if 'dataset' in loaders
            else {f'{mode}_dataloader.{name}': loader for name, loader in loaders.items()}
        )
        for key, loader in loaders.items():
            _check_loader(key, loader)


# Whose hooks only keep their settings when they are made; some of mmpretrain's need a Runner.
SELF_CONTAINED = ('mmcfmask', 'mmengine')


def _pipelines(where: str, node) -> Iterator[tuple[str, list]]:
    """Every list of transforms in the data sets of a config, with its key."""
    for name, value in (
        node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, (list, tuple)) else ()
    ):
        key = f'{where}[{name}]' if isinstance(name, int) else f'{where}.{name}'.lstrip('.')
        if name == 'pipeline' and isinstance(value, (list, tuple)) and isinstance(node, dict) and 'type' in node:
            yield key, list(value)
        else:
            yield from _pipelines(key, value)


def _check_optimizer(values: dict) -> torch.optim.Optimizer | None:
    """The optimizer of a config, over one number."""
    wrapper = values.get('optim_wrapper') or {}
    part = dict(wrapper.get('optimizer') or {})
    if not part.get('type') or wrapper.get('constructor'):
        return None
    if 'params' in part:
        raise ConfigError('optim_wrapper.optimizer.params is set by the model: leave it out')
    part.pop('fused', None)  # see launch.fit_optimizer
    with _refused('optim_wrapper.optimizer'):
        return OPTIMIZERS.build(dict(part, params=[nn.Parameter(torch.zeros(1))]))


def _check_loader(key: str, loader: dict) -> None:
    if 'collate_fn' in loader and loader['collate_fn'] is None:
        raise ConfigError(f"{key}.collate_fn=None: it must be a dict(type=…), such as dict(type='default_collate')")
    if not isinstance(loader.get('worker_init_fn') or {}, dict):
        raise ConfigError(f'{key}.worker_init_fn={loader["worker_init_fn"]!r}: it must be a dict(type=…)')
    # Of the Runner, or fitted to the machine (launch.fit_loaders).
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
    with _refused(key):
        DataLoader([0], **{name: value for name, value in loader.items() if name not in others})


@contextmanager
def _refused(where: str) -> Iterator[None]:
    """What a class says of the values that it does not take, whatever kind of error it has for that, as a ConfigError
    with the key."""
    try:
        with (
            DefaultScope.overwrite_default_scope('mmpretrain'),
            torch.random.fork_rng(devices=[]),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter('ignore')  # said again when it is built
            yield
    except ImportError:  # of a library that this machine may lack
        pass
    except Exception as error:
        text = str(error.args[0] if isinstance(error, KeyError) and error.args else error).strip()
        raise ConfigError(
            f'{where}: {text.splitlines()[0] if text else "its class does not take these values"}'
        ) from None


@contextmanager
def lower_errors(where: str) -> Iterator[None]:
    """What the parts below raise for a value that the user gave, as a UserError that names the key."""
    try:
        yield
    except UserError as error:
        raise type(error)(f'{where}: {error}') from None
    except FileNotFoundError as error:
        raise MissingFileError(f'{where}: {error}') from None
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f'{where}: {error}') from None
