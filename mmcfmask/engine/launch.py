"""What the command-line tools do before and around the Runner."""
from __future__ import annotations

import argparse
import ast
import copy
import inspect
import logging
import os
import pickle
from pathlib import Path

import torch
from mmengine.config import Config, DictAction
from mmengine.dist import get_world_size
from mmengine.hooks import CheckpointHook, EMAHook
from mmengine.logging import print_log
from mmengine.registry import Registry
from mmengine.runner import Runner
from mmpretrain.registry import DATASETS, HOOKS, METRICS, MODELS
from torch import nn

from ..compat import base_configs, can_fuse_optimizer, keep_freed_memory, start_process_group_without_gpu
from ..datasets import FolderDataset, MissingSetError
from ..evaluation import ShiftAccuracy
from ..models import OpenCLIPBackbone
from ..models.clip_loading import check_state_dict, near_names
from .loops import choose_shifts, metrics_of, refuse_choice_by_shift

# What the Runner and the tools read of a config. Every other top-level name is a variable, of which parts of the config hold copies.
READ_KEYS = {*inspect.signature(Runner.__init__).parameters} - {'self', 'cfg'} | {'cache_dir', 'custom_imports', 'total_batch_size'}


def load_config(path: str, options: dict) -> Config:
    """Read a config file and apply ``--cfg-options``.

    A variable, such as ``data_root`` or ``pipeline``, that a config or the options change is changed where the config it was inherited
    from used it: in every dataset whose own value is still that of the variable.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: An option that is neither read by anything nor a variable that something uses; near names are listed.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f'there is no config {path!r}')
    cfg = Config.fromfile(path)
    _strip_delete(cfg)
    spread_variables(cfg, *base_configs(path))
    before = copy.deepcopy(cfg)
    cfg.merge_from_dict(options)
    used = spread_variables(cfg, before)
    for name in dict.fromkeys(key.partition('.')[0] for key in options):
        if name not in READ_KEYS and name not in before:
            known = {*READ_KEYS, *before, *(f'{key}.{name}' for key, value in before.items() if isinstance(value, dict) and name in value)}
            raise ValueError(f'{path} has no {name!r}, and nothing would read it.{near_names(name, sorted(known))}')
        if name not in READ_KEYS and cfg[name] != before[name] and name not in used:
            raise ValueError(f'nothing in {path} uses {name!r} as it stands: change the parts of the config that were made with it')
    return cfg


def spread_variables(cfg: Config, *before: Config) -> set[str]:
    """Change copies of variables in ``cfg``, in place, from their values in ``before`` to those in ``cfg``; the names of those used.

    A copy of a dict or a list is what equals it; of any other value, what equals it and has its name.
    """
    changed = [(name, old) for earlier in before for name, old in earlier.items()
               if name not in READ_KEYS and name in cfg and cfg[name] != old]
    # Dicts may hold copies of lists, and both of other values: an outer one is found as long as what it holds is unchanged.
    changed.sort(key=lambda item: [isinstance(item[1], kind) for kind in (dict, list)], reverse=True)
    return {name for name, old in changed if _replace(cfg, name, old, cfg[name])}


def _strip_delete(node) -> None:
    """Drop the ``_delete_`` that mmengine leaves in dicts inside a dict that has one itself."""
    if isinstance(node, (dict, Config)):
        node.pop('_delete_', None)
    for value in node.values() if isinstance(node, (dict, Config)) else node if isinstance(node, (list, tuple)) else ():
        _strip_delete(value)


def _replace(node, name: str, old, new) -> bool:
    """Change the copies of a variable below ``node``; whether there are any. See :func:`spread_variables`."""
    found = False
    for key, value in list(node.items() if isinstance(node, (dict, Config)) else enumerate(node)):
        if value == old and (isinstance(old, (dict, list)) or key == name):
            node[key] = copy.deepcopy(new)
            found = True
        elif isinstance(value, (dict, list)):
            found = _replace(value, name, old, new) or found
    return found


def add_run_arguments(parser: argparse.ArgumentParser, work_dir: str = 'where logs go', amp: str = 'bfloat16 autocast') -> None:
    """Arguments of every tool that builds a Runner; ``work_dir`` and ``amp`` are what their help says. See :func:`apply_run_arguments`."""
    parser.add_argument('--work-dir', help=f'{work_dir} (default: work_dirs/<config name>)')
    parser.add_argument('--amp', action='store_true', help=amp)
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, default={}, help='override config values, key=value')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none', help='job launcher')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)


def apply_run_arguments(cfg: Config, args: argparse.Namespace) -> None:
    """Launcher and work dir of the command line, in place."""
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg.launcher = args.launcher
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or str(Path('work_dirs') / Path(args.config).stem)


def world_size(launcher: str) -> int:
    """Number of processes of this job, before any process group exists."""
    if launcher == 'none':
        return 1
    return int(os.environ.get(dict(slurm='SLURM_NTASKS', mpi='OMPI_COMM_WORLD_SIZE').get(launcher, 'WORLD_SIZE'), 1))


def fit_total_batch(cfg: Config, processes: int) -> None:
    """Make up ``cfg.total_batch_size`` by gradient accumulation: accumulative_counts = total / (processes × batch per process).

    Sets ``cfg.optim_wrapper.accumulative_counts``, rounds iteration-based checkpoint intervals up to a multiple of it, so that no
    checkpoint falls between two optimizer steps, and makes a moving average of weights count optimizer steps.

    Raises:
        ValueError: The total is not a multiple of what the processes take at once.
    """
    total, each = cfg.get('total_batch_size'), cfg.train_dataloader.batch_size
    if total is None:
        return
    if total % (processes * each):
        raise ValueError(f'total_batch_size={total} is not a multiple of {processes} process(es) x train_dataloader.batch_size={each}: '
                         f'change one of them, e.g. --cfg-options train_dataloader.batch_size='
                         f'{max((b for b in range(1, each + 1) if total % (processes * b) == 0), default=each)}'
                         if total % processes == 0 else
                         f'total_batch_size={total} cannot be split over {processes} processes: change one of them')
    counts = total // (processes * each)
    cfg.optim_wrapper.accumulative_counts = counts
    for hook in cfg.get('custom_hooks') or []:
        if _is_a(CheckpointHook, hook['type'], HOOKS) and not hook.get('by_epoch', True):
            hook['interval'] = -(-hook['interval'] // counts) * counts
        if _is_a(EMAHook, hook['type'], HOOKS):
            hook['interval'] = counts


def _is_a(base: type, kind: str | type, registry: Registry) -> bool:
    """Whether the ``type`` of a config, a registered name or a class, is ``base`` or derives from it."""
    found = registry.get(kind) if isinstance(kind, str) else kind
    return isinstance(found, type) and issubclass(found, base)


def makes_counterfactuals(model: dict) -> bool:
    """Whether a model config trains on counterfactual images."""
    return bool(model.get('teacher')) and (model.get('head') or {}).get('distill', 'feature') is not None and (
        (model.get('data_preprocessor') or {}).get('mask', 'object') is not None)


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


def check_training_data(cfg: Config) -> None:
    """Find what is wrong with the settings and folders of data sets before a model is built, which can take minutes.

    Raises:
        MissingSetError, ValueError: With the key of the data set.
    """
    val = cfg.get('val_dataloader') or {}
    loaders = dict(train_dataloader=cfg.get('train_dataloader'), **{'model.head.class_weights': _value(cfg, 'model.head.class_weights')})
    loaders.update({'val_dataloader': val} if 'dataset' in val else {f'val_dataloader.{name}': loader for name, loader in val.items()})
    for key, loader in loaders.items():
        dataset = (loader or {}).get('dataset')
        if not dataset or not _is_a(FolderDataset, dataset.type, DATASETS):
            continue
        try:
            folder = Path(DATASETS.build(dict(dataset, pipeline=[], lazy_init=True)).img_prefix)
        except (OSError, ValueError) as error:
            raise type(error)(f'{key}.dataset: {error}') from None
        if not folder.is_dir():
            raise MissingSetError(f'{key}.dataset: there is no folder {folder.absolute()}: set its data_root (of all: '
                                  '--cfg-options data_root=…), and split_dir or domain')


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
            metric and _is_a(ShiftAccuracy, metric['type'], METRICS) for metric in metrics):
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
        holdout, other = (dict(images.get('holdout') or {}) for images in (here, there))
        if any(here.get(place) != there.get(place) for place in ('type', 'data_root', 'split_dir', 'domain', 'split')):
            continue  # other images
        if other.pop('part', None) == 'held_out' and (holdout.pop('part', None) != 'train' or holdout != other):
            raise ValueError(f'{key}.dataset has holdout={here.get("holdout")}, but the validation set, of the same folder, '
                             f'{there["holdout"]}: images that choose the checkpoint would be trained on. Give both the same size (or '
                             "fraction) and seed, and part='train' and part='held_out'")


def _images_of(loader: dict) -> dict:
    """What decides which images a loader reads."""
    return {key: value for key, value in loader['dataset'].items() if key not in ('pipeline', 'test_mode', 'lazy_init', 'serialize_data')}


def prepare_test(cfg: Config,
                 checkpoint: str | None = None,
                 shifts: list[str] | None = None,
                 skip_broken: bool = False,
                 amp: bool = False) -> dict | None:
    """Edit a config for a test on several sets, and find what is wrong before anything is loaded.

    Args:
        cfg (Config): With a :class:`MultiSetTestLoop`.
        checkpoint (str, optional): The file to test.
        shifts (list[str], optional): Test on these and on the ID set; their data must be there. None: as the config says.
        skip_broken (bool): Leave out images that cannot be read.
        amp (bool): bfloat16 autocast.

    Returns:
        dict, optional: The checkpoint.

    Raises:
        ValueError: Another kind of test, an unknown shift, a set that cannot leave images out, a checkpoint of another number of classes.
        FileNotFoundError: No such checkpoint.
    """
    loop = cfg.get('test_cfg') or {}
    if 'id_set' not in loop:
        raise ValueError("the config must test by test_cfg=dict(type='MultiSetTestLoop', id_set=…), with a dict of named sets as "
                         'test_dataloader')
    loop.amp = amp
    if shifts is not None:
        loop.shifts = shifts
        loop.skip_missing = [loop.id_set] if loop.get('skip_missing') else False
    names = [loop.id_set, *choose_shifts(cfg.test_dataloader, loop.id_set, loop.get('shifts'))]
    for name in names if skip_broken else ():
        dataset = cfg.test_dataloader[name].dataset
        if not _is_a(FolderDataset, dataset.type, DATASETS):
            raise ValueError(f'the test set {name} is a {dataset.type}, which cannot leave out broken images (a FolderDataset can)')
        dataset.skip_unreadable = True
    cfg.load_from = checkpoint
    cfg.resume = False
    forget_training(cfg.model)
    if checkpoint is None:
        return None
    loaded = check_checkpoint(checkpoint)
    weight, num_classes = loaded['state_dict'].get('head.fc.weight'), (cfg.model.get('head') or {}).get('num_classes')
    if weight is not None and num_classes is not None and len(weight) != num_classes:
        raise ValueError(f'{checkpoint} was trained for {len(weight)} classes, but the config has model.head.num_classes={num_classes}')
    return loaded


def check_work_dir(work_dir: str, what: str = 'work dir', option: str = '--work-dir') -> None:
    """Raise PermissionError or NotADirectoryError, with the path, unless results can be written to ``work_dir``."""
    try:
        os.makedirs(work_dir, exist_ok=True)
        probe = Path(work_dir) / f'.writable-{os.getpid()}'
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise type(error)(f'cannot write to the {what} {work_dir!r} ({error.strerror}): choose another with {option}') from None


def check_out(path: str, option: str = '--out') -> None:
    """Raise PermissionError, NotADirectoryError or IsADirectoryError, with the path, unless a file can be written to ``path``."""
    if os.path.isdir(path):
        raise IsADirectoryError(f'{option} {path!r} is a folder: give the name of a file')
    check_work_dir(os.path.dirname(path) or '.', 'folder', option)


def check_checkpoint(path: str, resume: bool = False) -> dict:
    """Load a checkpoint's tensors without copying them, or say what is wrong with it.

    Args:
        path (str): A local file.
        resume (bool): It must hold the state of a training run, not only weights.

    Raises:
        FileNotFoundError, ValueError: With the path.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f'there is no checkpoint {path!r}')
    try:
        checkpoint = torch.load(path, map_location='cpu', weights_only=True, mmap=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError) as error:
        raise ValueError(f'{path!r} is not a checkpoint that torch can load, or is cut off ({str(error).splitlines()[0]})') from None
    if not isinstance(checkpoint, dict) or 'state_dict' not in checkpoint:
        raise ValueError(f'{path!r} is not a checkpoint of this package: it has no "state_dict"')
    if resume and not {'meta', 'optimizer', 'message_hub'} <= set(checkpoint):
        raise ValueError(f'{path!r} holds weights but no training state, so training cannot resume from it; '
                         'to start from these weights use --cfg-options load_from=…')
    return checkpoint


# What a resumed run cannot change: it goes on with the optimizer, the schedule and the weights of the checkpoint.
SAME_IN_A_RESUMED_RUN = ('train_cfg.max_epochs', 'total_batch_size', 'optim_wrapper.optimizer', 'optim_wrapper.clip_grad',
                         'param_scheduler', 'model.backbone.model_name', 'model.head', 'model.teacher', 'model.auxiliary',
                         'model.data_preprocessor')
# But for: where files are, what torch computes the same numbers with, and what the checkpoint has the outcome of.
FREE_IN_A_RESUMED_RUN = ('pretrained', 'cache_dir', 'fused', 'class_weights')


def check_same_run(cfg: Config, checkpoint: dict, name: str) -> None:
    """Raise a ValueError where ``cfg`` would not go on with the training that wrote a checkpoint, but silently mix two.

    The state of the optimizer and of the schedule comes from the checkpoint, so that another learning rate or number of epochs would have
    no effect or a wrong one, and another method would be half of each.
    """
    before, now = (config_values(text) for text in (checkpoint['meta']['cfg'], cfg.pretty_text))
    for key in SAME_IN_A_RESUMED_RUN:
        old, new = _value(before, key), _value(now, key)
        if old != new:
            if isinstance(old, dict) and isinstance(new, dict):  # name the part that differs
                part = next(part for part in [*old, *new] if old.get(part) != new.get(part))
                key, old, new = f'{key}.{part}', old.get(part), new.get(part)
            raise ValueError(f'{name} was trained with {key} = {old}, but now it is {new}: resume with the same config, or start another '
                             f'run from these weights with --cfg-options load_from={name}')


def config_values(text: str) -> dict:
    """The values in the text of a config, as a checkpoint keeps it, without :data:`FREE_IN_A_RESUMED_RUN`. Nothing is executed."""

    def value(node: ast.expr):
        if isinstance(node, ast.Call):  # dict(key=value)
            return {keyword.arg: value(keyword.value) for keyword in node.keywords if keyword.arg not in FREE_IN_A_RESUMED_RUN}
        if isinstance(node, (ast.List, ast.Tuple)):
            return [value(item) for item in node.elts]
        return ast.unparse(node) if isinstance(node, ast.Dict) else ast.literal_eval(node)

    return {line.targets[0].id: value(line.value) for line in ast.parse(text).body if isinstance(line, ast.Assign)}


def _value(values: dict, key: str):
    """What a dotted key names, None where there is no such thing."""
    for part in key.split('.'):
        values = (values or {}).get(part)
    return values


def forget_training(model: dict) -> None:
    """Edit a model config in place so that it holds nothing that is of use in training alone."""
    for part in ('teacher', 'auxiliary'):
        if model.get(part):
            model[part] = None


def forget_pretrained(model: dict) -> None:
    """Edit a model config in place so that it loads nothing: a checkpoint will bring all weights."""
    forget_training(model)
    for part, setting in (('head', 'class_weights'), ('backbone', 'init_cfg'), ('neck', 'init_cfg')):
        if model.get(part) and model[part].get(setting):
            model[part][setting] = None
    if model.get('backbone') and model.backbone.get('pretrained'):
        if _is_a(OpenCLIPBackbone, model.backbone.type, MODELS):
            model.backbone.load = False  # `pretrained` still decides the activation
        else:
            model.backbone.pretrained = None


def build_model(cfg: dict, checkpoint: dict | None = None, name: str | None = None) -> nn.Module:
    """Build a classifier to look at, in eval mode and without a teacher, with its pre-trained weights or a checkpoint's.

    Args:
        cfg (dict): The ``model`` of a config. It is changed.
        checkpoint (dict, optional): From :func:`check_checkpoint`.
        name (str, optional): Of the checkpoint, for errors.

    Raises:
        ValueError: The checkpoint does not fit the model.
    """
    ours = cfg.type == 'CounterfactualClassifier'
    if ours and checkpoint is not None:
        forget_pretrained(cfg)
    elif ours:
        forget_training(cfg)
    model = MODELS.build(cfg).eval()
    if checkpoint is None:
        if not ours:  # ours has its weights from construction
            model.init_weights()
        return model
    check_fits(model, checkpoint, name)
    model.load_state_dict(checkpoint['state_dict'], strict=False)
    return model


def check_fits(model: nn.Module, checkpoint: dict, name: str) -> None:
    """Raise a ValueError that names the tensors that a checkpoint lacks, or has in another shape or besides those of ``model``.

    mmengine would leave what does not fit at random, and log it. What losses of the training have (``auxiliary``) does not count.
    """
    expected, found = ({key: value for key, value in weights.items() if not key.startswith('auxiliary.')}
                       for weights in (model.state_dict(), checkpoint['state_dict']))
    check_state_dict(expected, found, where=f'{name} does not fit the model of the config')


def warn_of_random_start(cfg: Config) -> None:
    """Log a warning for an image tower that no weights are named for."""
    tower = cfg.model.get('backbone') or {}
    if tower.get('model_name') and tower.get('pretrained') is None and ':' not in tower.model_name and not tower.get('init_cfg'):
        print_log(f'{tower.model_name} starts from random weights, since model.backbone.pretrained is not set: there is no robustness that '
                  "could be kept. Name a tag of open_clip, such as 'openai', or a file", 'current', level=logging.WARNING)


def fit_loaders(cfg: Config, processes: int = 1) -> None:
    """Fit every dataloader of ``cfg`` to this machine, in place: no more workers than its cores, shared by the processes on it, and
    memory pinned only for a GPU.
    """
    local = int(os.environ.get('LOCAL_WORLD_SIZE', os.environ.get('SLURM_NTASKS_PER_NODE', processes)))
    most = max((os.cpu_count() or 1) // local, 1)
    for key in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        loaders = cfg.get(key) or {}
        for loader in [loaders] if 'dataset' in loaders else loaders.values():
            loader.num_workers = min(loader.get('num_workers', 0), most)
            if loader.num_workers == 0:
                loader.persistent_workers = False
            if not torch.cuda.is_available():
                loader.pin_memory = False


def cache_images(cfg: Config) -> None:
    """Where ``cfg.cache_dir`` is set, keep the resized images of the training and the validation set there, in place
    (:class:`mmcfmask.datasets.CachedDataset`)."""
    if cfg.get('cache_dir') is None:
        return
    for key in ('train_dataloader', 'val_dataloader'):
        loader = cfg.get(key)
        if loader and 'dataset' in loader and loader.dataset.type != 'CachedDataset':
            loader.dataset = dict(type='CachedDataset', dataset=loader.dataset, cache_dir=cfg.cache_dir)


def fit_optimizer(cfg: Config) -> None:
    """Drop ``fused=True`` from the optimizer of ``cfg``, in place, where torch has no fused kernel for this machine."""
    optimizer = (cfg.get('optim_wrapper') or {}).get('optimizer') or {}
    if optimizer.get('fused') and not can_fuse_optimizer():
        optimizer.pop('fused')


def build_runner(cfg: Config) -> Runner:
    """``Runner.from_cfg`` that also works under a launcher on a machine without a GPU, with loaders fitted to the machine."""
    fit_loaders(cfg, world_size(cfg.launcher))
    cache_images(cfg)
    fit_optimizer(cfg)
    if not torch.cuda.is_available():
        keep_freed_memory()
    if start_process_group_without_gpu(cfg.launcher):
        cfg.model_wrapper_cfg = dict(type='MMDistributedDataParallel', device_ids=None)
        assert get_world_size() == world_size(cfg.launcher)
    return Runner.from_cfg(cfg)
