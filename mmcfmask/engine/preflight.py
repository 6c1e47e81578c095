"""Before a run: what is wrong with a config, a checkpoint or an output, found before anything slow begins."""
from __future__ import annotations

import ast
import inspect
import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.hooks import EMAHook
from mmengine.logging import print_log
from mmengine.registry import Registry
from mmpretrain.registry import DATASETS, HOOKS, METRICS, MODELS, OPTIMIZERS, PARAM_SCHEDULERS

from ..compat import multiplies_bfloat16
from ..datasets import FolderDataset, MissingSetError
from ..datasets.folder import check_folders, sub_folders
from ..errors import ConfigError, StorageError
from ..evaluation import ShiftAccuracy
from ..files import FULL, remove_leftovers
from ..models import CAMRefillDataPreprocessor, CLIPDistillHead, CounterfactualClassifier, OpenCLIPBackbone
from ..models.clip_loading import check_pretrained, near_names
from .hooks import DistillWeightHook
from .loops import choose_shifts, may_be_missing, metrics_of, refuse_choice_by_shift

SLOW_BFLOAT16 = 'this CPU has no instructions for bfloat16, in which a step takes ten times as long as in float32, or more. Leave it out'


def check_work_dir(work_dir: str, what: str = 'work dir', option: str = '--work-dir') -> None:
    """Raise a StorageError, with the path, unless results can be written to ``work_dir``; delete what killed runs have left there."""
    try:
        os.makedirs(work_dir, exist_ok=True)
        probe = Path(work_dir) / f'.writable-{os.getpid()}'
        probe.write_bytes(bytes(4096))  # an empty file fits on a full disk
        probe.unlink()
    except OSError as error:
        reason = 'the disk is full' if error.errno in FULL else error.strerror
        raise StorageError(f'cannot write to the {what} {work_dir!r} ({reason}): choose another with {option}') from None
    remove_leftovers(work_dir)


def check_out(path: str, option: str = '--out') -> None:
    """Raise a StorageError, with the path, unless a file can be written to ``path``."""
    if os.path.isdir(path):
        raise StorageError(f'{option} {path!r} is a folder: give the name of a file')
    check_work_dir(os.path.dirname(path) or '.', 'folder', option)


# What a resumed run cannot change: it goes on with the optimizer, the schedule and the weights of the checkpoint.
SAME_IN_A_RESUMED_RUN = ('randomness.seed', 'custom_hooks', 'train_cfg.max_epochs', 'total_batch_size', 'optim_wrapper.optimizer',
                         'optim_wrapper.clip_grad', 'param_scheduler', 'model.backbone.model_name', 'model.head', 'model.teacher',
                         'model.auxiliary', 'model.data_preprocessor')
# But for: where files are, what torch computes the same numbers with, and what the checkpoint has the outcome of.
FREE_IN_A_RESUMED_RUN = ('pretrained', 'cache_dir', 'fused', 'class_weights')


def check_same_run(cfg: Config, checkpoint: dict, name: str) -> None:
    """Raise a ValueError where ``cfg`` would not go on with the training that wrote a checkpoint, but silently mix two.

    The state of the optimizer and of the schedule comes from the checkpoint, so that another learning rate or number of epochs would have
    no effect or a wrong one, and another method would be half of each.
    """
    before, now = (config_values(text) for text in (checkpoint['meta']['cfg'], cfg.pretty_text))
    for values in (before, now):  # of the hooks, those that change what is trained or saved
        values['custom_hooks'] = [
            {key: value for key, value in hook.items() if key not in ('interval', 'priority')}
            for hook in values.get('custom_hooks') or () if is_a((EMAHook, DistillWeightHook), hook['type'], HOOKS)]
    for key in SAME_IN_A_RESUMED_RUN:
        old, new = _value(before, key), _value(now, key)
        if old != new:
            if isinstance(old, dict) and isinstance(new, dict):  # name the part that differs
                part = next(part for part in [*old, *new] if old.get(part) != new.get(part))
                key, old, new = f'{key}.{part}', old.get(part), new.get(part)
            raise ValueError(f'{name} was trained with {key} = {old}, but now it is {new}: resume with the same config, or start another '
                             f'run from these weights with --cfg-options load_from={name}')


def config_values(text: str, free: Sequence[str] = FREE_IN_A_RESUMED_RUN) -> dict:
    """The values in the text of a config, as a checkpoint keeps it, without keys of the names in ``free``. Nothing is executed."""

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


def _value(values: dict, key: str):
    """What a dotted key names, None where there is no such thing."""
    for part in key.split('.'):
        values = (values or {}).get(part)
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
        raise ValueError(f'fill={preprocessor.get("fill", "single")!r} takes patches from other images of the batch, but '
                         f'train_dataloader.batch_size={loader.batch_size}: raise it to at least 2, or use fill="none"')
    if not loader.get('drop_last'):
        raise ValueError(f'fill={preprocessor.get("fill", "single")!r} takes patches from other images of the batch, but the last batch '
                         'of an epoch may hold a single one: set train_dataloader.drop_last=True')


def makes_counterfactuals(model: dict) -> bool:
    """Whether a model config trains on counterfactual images."""
    return bool(model.get('teacher')) and (model.get('head') or {}).get('distill', 'feature') is not None and (
        (model.get('data_preprocessor') or {}).get('mask', 'object') is not None)


def check_arguments(cfg: dict) -> None:
    """What would fail when a part of a config is built, which in a study can be hours later.

    Raises:
        ValueError: A setting that a part of the model, the optimizer or a schedule does not take, with near names; or a value that the
            head or the data preprocessor does not take.
    """
    model, schedules = cfg.get('model') or {}, cfg.get('param_scheduler') or []
    for name in ('backbone', 'neck', 'head', 'teacher', 'data_preprocessor', 'gate'):
        part, default = model.get(name) or {}, dict(data_preprocessor='CAMRefillDataPreprocessor', gate='ConformalGate').get(name)
        default = default if is_a(CounterfactualClassifier, model.get('type'), MODELS) else None
        kind = _check_keys(f'model.{name}', part, MODELS, default)
        if is_a((CLIPDistillHead, CAMRefillDataPreprocessor), kind, MODELS):  # quickly built
            arguments = {key: value for key, value in part.items() if key not in ('type', '_scope_')}
            try:
                with torch.random.fork_rng(devices=[]):  # what is built afterwards starts from the same random numbers
                    kind(**{**({'in_channels': 1} if name == 'head' else {}), **arguments})
            except (TypeError, ValueError) as error:
                raise ValueError(f'model.{name}: {error}') from None
    _check_keys('optim_wrapper.optimizer', (cfg.get('optim_wrapper') or {}).get('optimizer') or {}, OPTIMIZERS)
    for schedule in [schedules] if isinstance(schedules, dict) else schedules:
        _check_keys('param_scheduler', schedule, PARAM_SCHEDULERS, known=('convert_to_iter_based', ))


def _check_keys(where: str, part: dict, registry: Registry, default: str | None = None, known: Iterable[str] = ()) -> type | None:
    """Raise a ValueError for a key of ``part`` that its type does not take; the type, where it is a class."""
    kind = part.get('type', default)
    kind = registry.get(kind) if isinstance(kind, str) else kind
    if not isinstance(kind, type):
        return None
    known = {'type', '_scope_', *known}
    for base in kind.__mro__:  # what **kwargs pass on is that of the next class
        parameters = inspect.signature(base.__init__).parameters
        known |= parameters.keys()
        if '__init__' in vars(base) and all(parameter.kind != parameter.VAR_KEYWORD for parameter in parameters.values()):
            break
    for key in part:
        if key not in known:
            taken = sorted(known - {'type', '_scope_', 'self', 'args', 'kwargs', 'params', 'optimizer'})
            raise ValueError(f'{where}: {kind.__name__} has no {key!r}.{near_names(key, taken) or " It takes " + ", ".join(taken)}')
    return kind


def check_backbone(model: dict) -> None:
    """Raise a ValueError or a FileNotFoundError for an image tower that open_clip has not, or a file of weights that is not there."""
    tower = model.get('backbone') or {}
    if is_a(OpenCLIPBackbone, tower.get('type'), MODELS) and tower.get('load', True):
        check_pretrained(tower.get('model_name'), tower.get('pretrained'))


def check_training_data(cfg: Config) -> None:
    """Find what is wrong with the settings and folders of data sets before a model is built, which can take minutes.

    Raises:
        MissingSetError, ValueError: With the key of the data set.
    """
    val = cfg.get('val_dataloader') or {}
    loaders = dict(train_dataloader=cfg.get('train_dataloader'), **{'model.head.class_weights': _value(cfg, 'model.head.class_weights')})
    loaders.update({'val_dataloader': val} if 'dataset' in val else {f'val_dataloader.{name}': loader for name, loader in val.items()})
    for key, loader in loaders.items():
        _find_folder(f'{key}.dataset', (loader or {}).get('dataset'))


def check_test_data(cfg: Config) -> None:
    """The same for the test sets that would run. One that is not there is no error where it may be left out, but for all of them.

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
                raise ValueError(f'{key}: {error}') from None
    if len(missing) == len(names):
        raise MissingSetError('none of the test sets is there:\n' + '\n'.join(missing.values()))


def _find_folder(key: str, dataset: dict | None) -> FolderDataset | None:
    """Build a data set without its images, and look for its folder; None for one that has no folder."""
    if not dataset or not is_a(FolderDataset, dataset.type, DATASETS):
        return None
    try:
        built = DATASETS.build(dict(dataset, pipeline=[], lazy_init=True))
    except (OSError, ValueError) as error:
        kind = MissingSetError if isinstance(error, MissingSetError) else ValueError
        raise kind(f'{key}: {error}') from None
    folder = Path(built.img_prefix)
    if not folder.is_dir():
        raise MissingSetError(f'{key}: there is no folder {folder.absolute()}: set its data_root (of all: --cfg-options data_root=…), and '
                              'split_dir or domain')
    return built


def check_selection(cfg: Config) -> None:
    """Nothing of a training may be chosen by a distribution shift.

    Raises:
        ValueError: A ``save_best`` or ``monitor`` names a shift or their average, a ``save_best`` no metric, the validation set is one of
            the shifts of the test, or images are both trained on and held out.
    """
    loader, loop = cfg.get('val_dataloader'), cfg.get('val_cfg') or {}
    if not loader:
        return
    held_out = loader.get(loop['id_set'], {}) if loop.get('id_set') else loader
    if held_out.get('dataset'):
        _check_hold_out(cfg, held_out)
    if loop.get('id_set'):
        parts = [cfg.get('default_hooks'), cfg.get('custom_hooks'), cfg.get('param_scheduler')]
        refuse_choice_by_shift(parts, loop.id_set, list(loader))
    _check_save_best(cfg, loop.get('id_set'))
    if loop.get('id_set'):
        return
    id_set = (cfg.get('test_cfg') or {}).get('id_set')
    for name, test in (cfg.get('test_dataloader') or {}).items() if id_set else ():
        if name != id_set and _images_of(loader) == _images_of(test):
            raise ValueError(f'val_dataloader reads the same images as the shift {name!r} of test_dataloader: a checkpoint chosen by them '
                             'is fitted to that shift. Validate on images held out of the training set')


def _check_save_best(cfg: Config, id_set: str | None) -> None:
    """The metric that chooses the checkpoint must be one that the validation gives, as far as its metrics are known here."""
    chosen, evaluator = _value(cfg, 'default_hooks.checkpoint.save_best'), cfg.get('val_evaluator')
    metrics = metrics_of(id_set, evaluator, 'val') if id_set else evaluator if isinstance(evaluator, list) else [evaluator]
    if not isinstance(chosen, str) or chosen == 'auto' or not all(
            metric and is_a(ShiftAccuracy, metric['type'], METRICS) for metric in metrics):
        return
    prefixes = [id_set or metric.get('prefix') or ShiftAccuracy.default_prefix for metric in metrics]
    known = [f'{prefix}/{name}' for prefix in prefixes for name in ShiftAccuracy.NAMES]
    if chosen not in known:
        raise ValueError(f'default_hooks.checkpoint.save_best={chosen!r}: the validation gives no such metric, but {", ".join(known)}')


def _check_hold_out(cfg: Config, held_out: dict) -> None:
    """Two parts of one folder are apart only if they are split in the same way."""
    there = _images_of(held_out)
    for key in ('train_dataloader', 'model.head.class_weights'):
        part = _value(cfg, key) or {}
        if not part.get('dataset'):
            continue
        here = _images_of(part)
        if not is_a(FolderDataset, here['type'], DATASETS) or any(
                here.get(place) != there.get(place) for place in ('type', 'data_root', 'split_dir', 'domain')):
            continue  # other images
        ours, theirs = ({'seed': 0, **(images.get('holdout') or {})} for images in (here, there))
        if {ours.pop('part', None), theirs.pop('part', None)} != {'train', 'held_out'} or ours != theirs:
            raise ValueError(f'{key}.dataset has holdout={here.get("holdout")}, but the validation set, of the same folder, '
                             f'{there.get("holdout")}: images that choose the checkpoint would be trained on. Give both the same size (or '
                             "fraction) and seed, and part='train' and part='held_out'")


def _images_of(loader: dict) -> dict:
    """What decides which images a loader reads."""
    return {key: value for key, value in loader['dataset'].items() if key not in ('pipeline', 'test_mode', 'lazy_init', 'serialize_data')}


def warn_of_random_start(cfg: Config) -> None:
    """Log a warning for an image tower that no weights are named for."""
    tower = cfg.model.get('backbone') or {}
    if tower.get('model_name') and tower.get('pretrained') is None and ':' not in tower.model_name and not tower.get('init_cfg'):
        print_log(f'{tower.model_name} starts from random weights, since model.backbone.pretrained is not set: there is no robustness that '
                  "could be kept. Name a tag of open_clip, such as 'openai', or a file", 'current', level=logging.WARNING)


def check_start(cfg: Config) -> None:
    """Raise a ConfigError for a model that, without a checkpoint, would have random weights."""
    if cfg.model.get('pretrained') or cfg.model.get('init_cfg'):
        return
    tower, head = cfg.model.get('backbone') or {}, cfg.model.get('head') or {}
    if not (tower.get('pretrained') or tower.get('init_cfg') or ':' in tower.get('model_name', '')):
        raise ConfigError('the image tower would have random weights: give a checkpoint, or set model.backbone.pretrained')
    if not (head.get('class_weights') or head.get('init_cfg')):
        raise ConfigError('the head would have random weights: give a checkpoint, or set model.head.class_weights')


def slow_bfloat16(cfg: Config, device: str) -> str | None:
    """What to say of a run that is asked for bfloat16 where the CPU multiplies it one number at a time; None elsewhere."""
    asked = []
    if _value(cfg, 'optim_wrapper.type') == 'AutocastOptimWrapper' or _value(cfg, 'val_cfg.amp') or _value(cfg, 'test_cfg.amp'):
        asked.append('--amp')
    if _value(cfg, 'model.teacher.precision') == 'bf16':
        asked.append("model.teacher.precision='bf16'")
    if not asked or multiplies_bfloat16(device):
        return None
    return f'{" and ".join(asked)}: {SLOW_BFLOAT16}'


def is_a(base: type | tuple[type, ...], kind: str | type | None, registry: Registry) -> bool:
    """Whether the ``type`` of a config, a registered name or a class, is ``base``, or one of them, or derives from it."""
    found = registry.get(kind) if isinstance(kind, str) else kind
    return isinstance(found, type) and issubclass(found, base)
