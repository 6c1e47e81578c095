"""Before a run: what is wrong with a config, a checkpoint or an output, found before anything slow begins."""

from __future__ import annotations

import ast
import copy
import logging
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.device import get_device
from mmengine.hooks import EMAHook
from mmengine.logging import print_log
from mmengine.registry import DefaultScope, Registry
from mmengine.runner import Priority, get_priority
from mmpretrain.registry import DATASETS, HOOKS, METRICS, MODELS, OPTIMIZERS, PARAM_SCHEDULERS
from torch import nn
from torch.utils.data import DataLoader

from ..compat import multiplies_bfloat16
from ..datasets import FolderDataset, MissingSetError
from ..datasets.folder import check_folders, follow_run, sub_folders
from ..datasets.overlap import images_of, known_apart
from ..errors import ConfigError, MissingFileError, StorageError, UserError
from ..evaluation import ShiftAccuracy
from ..files import FULL, HOST, remove_leftovers
from ..models import CAMRefillDataPreprocessor, CLIPDistillHead, CounterfactualClassifier, OpenCLIPBackbone
from ..models.towers.loading import check_pretrained, near_names
from .hooks import DistillWeightHook
from .loops import choose_shifts, may_be_missing, metrics_of, refuse_choice_by_shift
from .schema import check_config

SLOW_BFLOAT16 = 'this CPU has no instructions for bfloat16, in which a step takes ten times as long as in float32, or more. Leave it out'


def check_work_dir(work_dir: str, what: str = 'work dir', option: str = '--work-dir') -> None:
    """Raise a StorageError, with the path, unless results can be written to ``work_dir``; delete what killed runs have
    left there."""
    try:
        os.makedirs(work_dir, exist_ok=True)
        probe = Path(work_dir) / f'.writable.{HOST}.{os.getpid()}-0.part'  # a leftover, if killed here
        probe.write_bytes(bytes(4096))  # an empty file fits on a full disk
        probe.unlink()
    except OSError as error:
        reason = 'the disk is full' if error.errno in FULL else error.strerror
        raise StorageError(
            f'cannot write to the {what} {work_dir!r} ({reason}): choose another with {option}'
        ) from None
    remove_leftovers(work_dir)


def check_out(path: str, option: str = '--out') -> None:
    """Raise a StorageError, with the path, unless a file can be written to ``path``."""
    if os.path.isdir(path):
        raise StorageError(f'{option} {path!r} is a folder: give the name of a file')
    check_work_dir(os.path.dirname(path) or '.', 'folder', option)


# What a resumed run cannot change: it goes on with the optimizer, the schedule and the weights of the checkpoint.
SAME_IN_A_RESUMED_RUN = (
    'randomness.seed',
    'custom_hooks',
    'train_cfg.max_epochs',
    'total_batch_size',
    'optim_wrapper.optimizer',
    'optim_wrapper.clip_grad',
    'param_scheduler',
    'model.backbone.model_name',
    'model.head',
    'model.teacher',
    'model.auxiliary',
    'model.data_preprocessor',
)
# But for: where files are, what torch computes the same numbers with, and what the checkpoint has the outcome of.
FREE_IN_A_RESUMED_RUN = ('pretrained', 'cache_dir', 'fused', 'class_weights')


def check_same_run(cfg: Config, checkpoint: dict, name: str) -> None:
    """Raise a ValueError where ``cfg`` would not go on with the training that wrote a checkpoint, but silently mix two.

    The state of the optimizer and of the schedule comes from the checkpoint, so that another learning rate or number of
    epochs would have no effect or a wrong one, and another method would be half of each.
    """
    before, now = (config_values(text) for text in (checkpoint['meta']['cfg'], cfg.pretty_text))
    for values in (before, now):  # of the hooks, those that change what is trained or saved
        values['custom_hooks'] = [
            {key: value for key, value in hook.items() if key not in ('interval', 'priority')}
            for hook in values.get('custom_hooks') or ()
            if is_a((EMAHook, DistillWeightHook), hook['type'], HOOKS)
        ]
    for key in SAME_IN_A_RESUMED_RUN:
        old, new = value_of(before, key), value_of(now, key)
        if old != new:
            if isinstance(old, dict) and isinstance(new, dict):  # name the part that differs
                part = next(part for part in [*old, *new] if old.get(part) != new.get(part))
                key, old, new = f'{key}.{part}', old.get(part), new.get(part)
            raise ConfigError(
                f'{name} was trained with {key} = {old}, but now it is {new}: resume with the same config, or start '
                f'another run from these weights with --cfg-options load_from={name}'
            )


def config_values(text: str, free: Sequence[str] = FREE_IN_A_RESUMED_RUN) -> dict:
    """The values in the text of a config, as a checkpoint keeps it, without keys of the names in ``free``. Nothing is
    executed."""

    def value(node: ast.expr):
        if isinstance(node, ast.Call):  # dict(key=value)
            return {keyword.arg: value(keyword.value) for keyword in node.keywords if keyword.arg not in free}
        if isinstance(node, (ast.List, ast.Tuple)):
            return [value(item) for item in node.elts]
        try:
            return ast.unparse(node) if isinstance(node, ast.Dict) else ast.literal_eval(node)
        except ValueError:  # inf and nan are names
            return ast.unparse(node)

    return {line.targets[0].id: value(line.value) for line in ast.parse(text).body if isinstance(line, ast.Assign)}


def value_of(values: dict, key: str):
    """What a dotted key names, None where there is no such thing."""
    for part in key.split('.'):
        values = values.get(part) if isinstance(values, (dict, Config)) else None
    return values


def check_fill(cfg: Config) -> None:
    """A fill needs at least two images in every batch of a process, the last one of an epoch included.

    Raises:
        ValueError: Names the keys to change.
    """
    preprocessor = cfg.model.get('data_preprocessor') or {}
    if not makes_counterfactuals(cfg.model) or preprocessor.get('fill', 'single') == 'none':
        return
    loader = cfg.train_dataloader
    if loader.batch_size < 2:
        raise ConfigError(
            f'fill={preprocessor.get("fill", "single")!r} takes patches from other images of the batch, but '
            f'train_dataloader.batch_size={loader.batch_size}: raise it to at least 2, or use fill="none"'
        )
    if not loader.get('drop_last'):
        raise ConfigError(
            f'fill={preprocessor.get("fill", "single")!r} takes patches from other images of the batch, but the last '
            'batch of an epoch may hold a single one: set train_dataloader.drop_last=True'
        )


def makes_counterfactuals(model: dict) -> bool:
    """Whether a model config trains on counterfactual images."""
    return (
        bool(model.get('teacher'))
        and (model.get('head') or {}).get('distill', 'feature') is not None
        and ((model.get('data_preprocessor') or {}).get('mask', 'object') is not None)
    )


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


def check_backbone(model: dict) -> None:
    """Raise a ValueError or a FileNotFoundError for an image tower that open_clip has not, or a file of weights that is
    not there."""
    tower = model.get('backbone') or {}
    if is_a(OpenCLIPBackbone, tower.get('type'), MODELS) and tower.get('load', True):
        with lower_errors('model.backbone'):
            check_pretrained(tower.get('model_name'), tower.get('pretrained'))


def check_training_data(cfg: Config) -> None:
    """Find what is wrong with the settings and folders of data sets before a model is built, which can take minutes.

    Raises:
        MissingSetError, ValueError: With the key of the data set.
    """
    val = cfg.get('val_dataloader') or {}
    loaders = dict(
        train_dataloader=cfg.get('train_dataloader'),
        **{'model.head.class_weights': value_of(cfg, 'model.head.class_weights')},
    )
    loaders.update(
        {'val_dataloader': val}
        if 'dataset' in val
        else {f'val_dataloader.{name}': loader for name, loader in val.items()}
    )
    for key, loader in loaders.items():
        _find_folder(f'{key}.dataset', (loader or {}).get('dataset'))


def check_test_data(cfg: Config) -> None:
    """The same for the test sets that would run. One that is not there is no error where it may be left out, but for
    all of them.

    Raises:
        MissingSetError, ValueError: With the key of the data set; class folders that are missing or unknown are named.
    """
    loop, missing = cfg.test_cfg, {}
    names = [loop.id_set, *choose_shifts(cfg.test_dataloader, loop.id_set, loop.get('shifts'))]
    for name in names:
        key = f'test_dataloader.{name}.dataset'
        try:
            dataset = _find_folder(key, cfg.test_dataloader[name].dataset)
        except MissingSetError as error:
            if not may_be_missing(name, loop.get('skip_missing', False)):
                raise
            missing[name] = str(error)
            continue
        folders = () if dataset is None else dataset.folders or ()
        present = sub_folders(Path(dataset.img_prefix)) if folders else ()
        if set(folders) & set(present):  # else the images lie flat, or deeper
            try:
                check_folders(folders, present, Path(dataset.img_prefix), dataset.other_folders)
            except ValueError as error:
                raise ConfigError(f'{key}: {error}') from None
    if len(missing) == len(names):
        raise MissingSetError('none of the test sets is there:\n' + '\n'.join(missing.values()))


def _find_folder(key: str, dataset: dict | None) -> FolderDataset | None:
    """Build a data set without its images, and look for its folder; None for one that has no folder."""
    if not dataset or not is_a(FolderDataset, dataset.type, DATASETS):
        return None
    with lower_errors(key):
        built = DATASETS.build(dict(dataset, pipeline=[], lazy_init=True))
    folder = Path(built.img_prefix)
    if not folder.is_dir():
        raise MissingSetError(
            f'{key}: there is no folder {folder.absolute()}: set its data_root (of all: --cfg-options data_root=…), '
            'and split_dir or domain'
        )
    return built


def check_selection(cfg: Config) -> None:
    """Nothing of a training may be chosen by a distribution shift.

    Images that choose the checkpoint and are tested in distribution too are warned of, and so are test images that are
    trained on.

    Raises:
        ConfigError: A ``save_best`` or ``monitor`` names a shift or their average, a ``save_best`` no metric, images of
            the validation set are also those of a shift of the test, or images are both trained on and held out.
    """
    loader, loop = cfg.get('val_dataloader') or {}, cfg.get('val_cfg') or {}
    held_out = loader.get(loop['id_set'], {}) if loop.get('id_set') else loader
    _check_hold_out(cfg, value_of(cfg, 'train_dataloader.dataset'), held_out.get('dataset'))
    if not loader:
        return
    if loop.get('id_set'):
        parts = [cfg.get('default_hooks'), cfg.get('custom_hooks'), cfg.get('param_scheduler')]
        refuse_choice_by_shift(parts, loop.id_set, list(loader))
    _check_save_best(cfg)


def check_complete(cfg: Config, mode: str, names: Iterable[str] | None = None) -> None:
    """Raise a ConfigError for a validation or a test that would leave out the last images of a set."""
    loaders = cfg.get(f'{mode}_dataloader') or {}
    loaders = (
        {f'{mode}_dataloader': loaders}
        if 'dataset' in loaders
        else {f'{mode}_dataloader.{name}': loader for name, loader in loaders.items() if names is None or name in names}
    )
    for key, loader in loaders.items():
        if loader.get('drop_last'):
            raise ConfigError(f'{key}.drop_last=True would leave out images: set it to False')


def check_validation(cfg: Config) -> None:
    """The validation of a training sees all images, and gives the metrics that early stopping and schedules wait for.

    Raises:
        ConfigError: ``drop_last``, a validation that begins after the last epoch, or a ``monitor`` that is no metric of
            the validation, as far as these are known here.
    """
    check_complete(cfg, 'val')
    loop = cfg.get('train_cfg') or {}
    begin, last = loop.get('val_begin', 1), loop.get('max_epochs', loop.get('max_iters', 1))
    if cfg.get('val_dataloader') and begin > last:
        raise ConfigError(
            f'train_cfg.val_begin={begin}: a training that ends at {last} would never be validated. For none, use '
            '--no-validate'
        )
    parts = {f'default_hooks.{name}': hook for name, hook in (cfg.get('default_hooks') or {}).items()}
    for key in ('custom_hooks', 'param_scheduler'):
        value = cfg.get(key) or []
        parts.update(
            {key: value} if isinstance(value, dict) else {f'{key}[{index}]': part for index, part in enumerate(value)}
        )
    known = _known_metrics(cfg)
    for key, part in parts.items():
        monitor = (part or {}).get('monitor')
        if monitor is None:
            continue
        if not cfg.get('val_dataloader'):
            raise ConfigError(f'{key}.monitor={monitor!r}: there is no validation that could give it')
        if known is not None and monitor not in known:
            raise ConfigError(f'{key}.monitor={monitor!r}: the validation gives no such metric, but {", ".join(known)}')


def _known_metrics(cfg: Config) -> list[str] | None:
    """The names of all metrics of the validation; None where one of them is not ours."""
    loop, evaluator = cfg.get('val_cfg') or {}, cfg.get('val_evaluator')
    sets = list(cfg.val_dataloader) if loop.get('id_set') else [None]
    known = []
    for name in sets:
        metrics = (
            metrics_of(name, evaluator, 'val') if name else evaluator if isinstance(evaluator, list) else [evaluator]
        )
        for metric in metrics:
            if not metric or not is_a(ShiftAccuracy, metric.get('type'), METRICS):
                return None
            prefix = name or metric.get('prefix') or ShiftAccuracy.default_prefix
            known += [f'{prefix}/{key}' for key in ShiftAccuracy.NAMES]
    return list(dict.fromkeys(known))


def _check_save_best(cfg: Config) -> None:
    """The metric that chooses the checkpoint must be one that the validation gives, as far as its metrics are known
    here."""
    chosen, known = value_of(cfg, 'default_hooks.checkpoint.save_best'), _known_metrics(cfg)
    for name in [chosen] if isinstance(chosen, str) else chosen or []:
        if known is not None and name != 'auto' and name not in known:
            raise ConfigError(
                f'default_hooks.checkpoint.save_best={name!r}: the validation gives no such metric, but '
                f'{", ".join(known)}'
            )


def check_start_images(cfg: Config) -> None:
    """:func:`check_selection` for a test: of the images that the head or a gate of the tested model is made of.

    Raises:
        ConfigError: Images of a shift choose something, or images are both learned from and held out.
    """
    _check_hold_out(cfg)


def _check_hold_out(cfg: Config, train: dict | None = None, val: dict | None = None) -> None:
    """Which images are learned from, choose something and are tested: compared are the images, however their configs
    are written."""
    listed: dict[str, set[str]] = {}

    def shared(one: str, other: str) -> str:
        """How many images of the data set at key ``other`` are at key ``one`` too, in words; empty if there are none."""
        if not sets.get(one) or not sets.get(other) or known_apart(sets[one], sets[other]):
            return ''
        for key in (one, other):
            if key not in listed:
                listed[key] = _list_images(key, sets[key], value_of(cfg, 'randomness.seed'))
        both = listed[one] & listed[other]
        return f'{len(both):,} of its {len(listed[other]):,} images (such as {min(both)})' if both else ''

    tests = {name: f'test_dataloader.{name}.dataset' for name in cfg.get('test_dataloader') or ()}
    learned = {
        'train_dataloader.dataset': train
    }  # key of what is learned from, and of what chooses something: data set
    choosing = {'val_dataloader': val}
    for part in ('model.head.class_weights', 'model.gate'):
        made_of, held_out = (value_of(cfg, f'{part}.{key}') for key in ('dataset', 'held_out'))
        if made_of and made_of not in learned.values():
            learned[f'{part}.dataset'] = made_of
        if held_out and held_out not in choosing.values():
            choosing[f'{part}.held_out'] = held_out
    sets = {**learned, **choosing, **{key: cfg.test_dataloader[name].get('dataset') for name, key in tests.items()}}
    for one in learned:
        for other in choosing:
            if both := shared(one, other):
                raise ConfigError(
                    f'{other} chooses by its images, but {both} would be trained on ({one}). Give both data sets of '
                    'one '
                    "folder the same holdout=dict(fraction=…, seed=…), one with part='train' and one with "
                    "part='held_out'"
                )
    whole = None
    if train and val and known_apart(train, val):  # parts of one folder, which then is listed once
        whole = 'train_dataloader.dataset (without holdout)'
        sets[whole] = {key: value for key, value in train.items() if key not in ('holdout', 'per_class', 'indices')}
    loop = cfg.get('test_cfg') or {}
    for name, key in tests.items() if loop.get('id_set') else ():
        if name != loop.id_set and loop.get('shifts') is not None and name not in loop.shifts:
            continue  # it does not run
        elsewhere = whole and not shared(whole, key)
        for other in choosing:
            if elsewhere and other == 'val_dataloader' or not (both := shared(other, key)):
                continue
            what = (
                ('a checkpoint', 'the checkpoint') if other == 'val_dataloader' else ('what is', 'a part of the model')
            )
            if name != loop.id_set:
                raise ConfigError(
                    f'{other} reads images of the shift {name!r} of test_dataloader, {both}: {what[0]} chosen by '
                    'them is fitted to that shift. Validate on images held out of the training set'
                )
            print_log(
                f'{key}: {both} also choose {what[1]} ({other}), which is better on them than on others. Test on a '
                'part '
                "of its own: holdout=dict(fraction=0.1, test=0.1, …, part='test')",
                'current',
                level=logging.WARNING,
            )
        for one in learned:
            if not (elsewhere and one == 'train_dataloader.dataset') and (both := shared(one, key)):
                print_log(
                    f'{key}: {both} are trained on ({one.removesuffix(".dataset")}), so that the accuracy on them '
                    'says nothing of others',
                    'current',
                    level=logging.WARNING,
                )


def _list_images(key: str, dataset: dict, seed: int | None) -> set[str]:
    """:func:`images_of` the config of a data set; empty, with a warning, where they cannot be listed."""
    dataset = copy.deepcopy(dataset)
    follow_run(dataset, seed or 0)
    try:
        return set(images_of(dataset))
    except MissingFileError:  # said by those who need it
        return set()
    except ConfigError as error:
        raise ConfigError(f'{key}: {error}') from None
    except Exception as error:  # of any data set there may be
        print_log(
            f'the images of {key} cannot be compared with those of other data sets ({type(error).__name__}: {error})',
            'current',
            level=logging.WARNING,
        )
        return set()


def warn_of_random_start(cfg: Config) -> None:
    """Log a warning for an image tower that no weights are named for."""
    tower = cfg.model.get('backbone') or {}
    if (
        tower.get('model_name')
        and tower.get('pretrained') is None
        and ':' not in tower.model_name
        and not tower.get('init_cfg')
    ):
        print_log(
            f'{tower.model_name} starts from random weights, since model.backbone.pretrained is not set: there is no '
            'robustness that '
            "could be kept. Name a tag of open_clip, such as 'openai', or a file",
            'current',
            level=logging.WARNING,
        )


def check_start(cfg: Config) -> None:
    """Raise a ConfigError for a model that, without a checkpoint, would have random weights."""
    if cfg.model.get('pretrained') or cfg.model.get('init_cfg'):
        return
    tower, head = cfg.model.get('backbone') or {}, cfg.model.get('head') or {}
    if not (tower.get('pretrained') or tower.get('init_cfg') or ':' in tower.get('model_name', '')):
        raise ConfigError(
            'the image tower would have random weights: give a checkpoint, or set model.backbone.pretrained'
        )
    if not (head.get('class_weights') or head.get('init_cfg')):
        raise ConfigError('the head would have random weights: give a checkpoint, or set model.head.class_weights')


def unmatched_keys(cfg: Config, model: nn.Module) -> str | None:
    """What to say of settings for parameters that the model does not have; None where there are none."""
    keys = value_of(cfg, 'optim_wrapper.paramwise_cfg.custom_keys') or {}
    names = [name for name, _ in model.named_parameters()] if keys else []
    unmatched = [key for key in keys if not any(key in name for name in names)]
    if not unmatched:
        return None
    parts = sorted({part for name in names for part in name.split('.')} - {'weight', 'bias'})
    return 'optim_wrapper.paramwise_cfg.custom_keys: no parameter of the model has ' + ', '.join(
        f'{key!r} in its name, so it does nothing.{near_names(key, parts)}' for key in unmatched
    )


def check_device(cfg: Config) -> None:
    """Raise a ConfigError for a training that needs a GPU where there is none."""
    if value_of(cfg, 'optim_wrapper.type') == 'AmpOptimWrapper' and get_device() == 'cpu':
        raise ConfigError(
            "optim_wrapper.type='AmpOptimWrapper' needs a GPU: use --amp, which is bfloat16 on any device"
        )


def slow_bfloat16(cfg: Config, device: str) -> str | None:
    """What to say of a run that is asked for bfloat16 where the CPU multiplies it one number at a time; None elsewhere."""
    asked = []
    if (
        value_of(cfg, 'optim_wrapper.type') == 'AutocastOptimWrapper'
        or value_of(cfg, 'val_cfg.amp')
        or value_of(cfg, 'test_cfg.amp')
    ):
        asked.append('--amp')
    if value_of(cfg, 'model.teacher.precision') == 'bf16':
        asked.append("model.teacher.precision='bf16'")
    if not asked or multiplies_bfloat16(device):
        return None
    return f'{" and ".join(asked)}: {SLOW_BFLOAT16}'


def is_a(base: type | tuple[type, ...], kind: str | type | None, registry: Registry) -> bool:
    """Whether the ``type`` of a config, a registered name or a class, is ``base``, or one of them, or derives from it."""
    found = registry.get(kind) if isinstance(kind, str) else kind
    return isinstance(found, type) and issubclass(found, base)
