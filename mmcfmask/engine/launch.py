"""What the command-line tools do before and around the Runner."""

from __future__ import annotations

import argparse
import ast
import copy
import inspect
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch
import yaml
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import get_world_size
from mmengine.hooks import CheckpointHook, EMAHook
from mmengine.registry import MODEL_WRAPPERS
from mmengine.runner import Runner
from mmengine.utils import import_modules_from_strings
from mmpretrain.registry import DATA_SAMPLERS, DATASETS, HOOKS, MODELS
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..compat import (
    base_configs,
    base_files,
    can_fuse_optimizer,
    keep_freed_memory,
    loads_file,
    start_process_group_without_gpu,
    use_tf32,
)
from ..datasets import FolderDataset
from ..datasets.folder import follow_run
from ..errors import ConfigError, MissingFileError, StorageError, UserError
from ..models import CounterfactualClassifier, OpenCLIPBackbone
from ..models.inference.relevance_crop import check_crop_scale
from ..models.losses.auxiliary import FLYP
from ..models.towers.loading import near_names
from .checkpoints import check_checkpoint, check_same_tower, check_state_dict
from .hooks import RelativeEMAHook
from .loops import ResumableSampler, choose_shifts
from .options import add_cfg_options, file_name
from .preflight import (
    check_arguments,
    check_backbone,
    check_complete,
    check_start,
    is_a,
    lower_errors,
    slow_bfloat16,
    unmatched_keys,
    value_of,
)
from .schema import check_config, check_top_level

# What the Runner and the tools read of a config. Every other top-level name is a variable, of which parts of the config
# hold copies.
READ_KEYS = {*inspect.signature(Runner.__init__).parameters} - {'self', 'cfg'} | {
    'cache_dir',
    'custom_imports',
    'tf32',
    'total_batch_size',
    # Of the Runner, but no arguments.
    'activation_checkpointing',
    'compile',
    'efficient_conv_bn_eval',
    'find_unused_parameters',
    'model_wrapper_cfg',
    'sync_bn',
}


# Hooks without which checkpoints cannot be read, runs do not resume as they were, or a wrong run is not stopped.
OWN_HOOKS = ('PlainCheckpointHook', 'IterationSeedHook', 'CheckClassesHook', 'StopOnInvalidLossHook')


def load_config(path: str, options: dict) -> Config:
    """Read a config file and apply ``--cfg-options``.

    A variable, such as ``data_root`` or ``pipeline``, that a config or the options change is changed where the config
    it was inherited from used it: in every dataset whose own value is still that of the variable. A linear probe or a
    gate of the training images stays one of them.

    Raises:
        MissingFileError: There is no such file.
        ConfigError: A file that is no config; an option that is neither read by anything nor a variable that something
            uses; a value that a part of the config does not take. Near names are listed.
    """
    cfg = read_config(path)
    bases = list(base_configs(path))
    keep_training_images(cfg, *bases)
    spread_variables(cfg, *bases)
    before = copy.deepcopy(cfg)
    try:
        cfg.merge_from_dict(options)
        check_top_level(cfg)
        if cfg.get('custom_imports') and 'custom_imports' in {key.partition('.')[0] for key in options}:
            import_modules_from_strings(**cfg.custom_imports)
    except UserError:
        raise
    except (
        ImportError,
        AttributeError,
        KeyError,
        TypeError,
        ValueError,
    ) as error:  # such as an index into what is no list
        raise ConfigError(f'--cfg-options {" ".join(options)}: {str(error).splitlines()[0]}') from None
    keep_training_images(cfg, before)
    used = spread_variables(cfg, before)
    for name in dict.fromkeys(key.partition('.')[0] for key in options):
        if name not in READ_KEYS and name not in before:
            known = {
                *READ_KEYS,
                *before,
                *(f'{key}.{name}' for key, value in before.items() if isinstance(value, dict) and name in value),
            }
            raise ConfigError(f'{path} has no {name!r}, and nothing would read it.{near_names(name, sorted(known))}')
        if name not in READ_KEYS and cfg[name] != before[name] and name not in used:
            raise ConfigError(
                f'nothing in {path} uses {name!r} as it stands: change the parts of the config that were made with it'
            )
    check_arguments(cfg)
    return cfg


def read_config(path: str) -> Config:
    """``Config.fromfile``; modules of ``custom_imports`` are also found in the current folder, as by ``python -m``.

    Raises:
        MissingFileError: There is no such file, or none that it inherits from.
        ConfigError: It is no config, or fails; with the file and the line.
    """
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    place = [path]
    try:
        _check_files(path, place, [])
        cfg = Config.fromfile(path)
        _strip_delete(cfg)  # which imports what a config in the newer style names
        return cfg
    except UserError:
        raise
    except Exception as error:  # a config is a program
        raise ConfigError(_what_fails(error, place[-1])) from error


def _check_files(path: str, place: list[str], heirs: list[str]) -> None:
    """Raise a UserError for a config, or a base of it, that is no readable file, or inherits from itself; ``place``
    ends with the file that is looked at."""
    place.append(path)
    check_text_file(path, 'config', f' (the _base_ of {heirs[-1]})' if heirs else '')
    chain = [os.path.realpath(heir) for heir in heirs]
    if os.path.realpath(path) in chain:
        raise ConfigError(f'{path} inherits from itself, by _base_: {" -> ".join([*heirs, path])}')
    for base in base_files(path):
        _check_files(base, place, [*heirs, path])
    place.append(path)


def check_text_file(path: str, what: str, more: str = '') -> None:
    """Raise a MissingFileError or a ConfigError unless ``path`` is a readable file of text, of a kind that settings are
    written in."""
    if not os.path.exists(path):
        raise MissingFileError(f'there is no {what} {path!r}{more}')
    if not os.path.isfile(path):
        raise ConfigError(f'the {what} {path!r}{more} is a folder or a device, not a file')
    if Path(path).suffix not in ('.py', '.yaml', '.yml', '.json'):
        raise ConfigError(f'the {what} {path!r}{more} must be a .py, .yaml, .yml or .json file')
    if os.path.getsize(path) > 10 * 2**20:
        raise ConfigError(f'the {what} {path!r}{more} is larger than 10 MB')
    try:
        text = Path(path).read_text(encoding='utf-8')
    except UnicodeDecodeError:
        raise ConfigError(f'the {what} {path!r}{more} is not UTF-8 text') from None
    except OSError as error:
        raise StorageError(f'cannot read the {what} {path!r}{more}: {error.strerror}') from None
    if text.startswith('\ufeff'):
        raise ConfigError(f'the {what} {path!r}{more} begins with a byte order mark: save it as UTF-8 without BOM')
    try:
        if Path(path).suffix == '.py':
            ast.parse(text)
    except SyntaxError as error:
        raise ConfigError(f'{path}, line {error.lineno}: {error.msg}') from None
    except (ValueError, RecursionError, MemoryError):  # a null byte; brackets in brackets in …
        raise ConfigError(f'the {what} {path!r}{more} is no Python that could be read') from None


def _what_fails(error: Exception, path: str) -> str:
    """Where the program that a config is fails, in one line."""
    path, line = os.path.abspath(path), error.lineno if isinstance(error, SyntaxError) else None
    for frame, number in traceback.walk_tb(error.__traceback__):
        inside = frame.f_locals.get('filename')
        if (
            frame.f_globals.get('__name__') == 'mmengine.config.config'
            and frame.f_code.co_name == '_file2dict'
            and inside
        ):
            path = inside
        elif frame.f_code.co_filename == path:  # mmengine runs a config under its name
            line = number
    text = 'it is nested too deeply' if isinstance(error, RecursionError) else (str(error).splitlines() or [''])[0]
    if isinstance(error, yaml.YAMLError):
        text = ' '.join(str(error).split())
    elif isinstance(error, AttributeError) and not path.endswith('.py'):
        text = 'it must be a mapping of names to values'
    kind = (
        ''
        if isinstance(error, (yaml.YAMLError, RecursionError)) or not path.endswith('.py')
        else f'{type(error).__name__}: '
    )
    return f'{path}{"" if line is None else f", line {line}"}: {kind}{text}'


def spread_variables(cfg: Config, *before: Config) -> set[str]:
    """Change copies of variables in ``cfg``, in place, from their values in ``before`` to those in ``cfg``; the names
    of those used.

    A copy of a dict or a list is what equals it; of any other value, what equals it and has its name.
    """
    changed = [
        (name, old)
        for earlier in before
        for name, old in earlier.items()
        if name not in READ_KEYS and name in cfg and cfg[name] != old
    ]
    # Dicts may hold copies of lists, and both of other values: an outer one is found as long as what it holds is
    # unchanged.
    changed.sort(key=lambda item: [isinstance(item[1], kind) for kind in (dict, list)], reverse=True)
    return {name for name, old in changed if _replace(cfg, name, old, cfg[name])}


def keep_training_images(cfg: Config, *before: Config) -> None:
    """Let a linear probe and a gate be made of the training images of ``cfg``, in place, if they were of those of
    ``before``; and of the validation images likewise."""
    start = value_of(cfg, 'model.head.class_weights') or {}
    for part in (start if value_of(start, 'type') == 'linear_probe' else {}, value_of(cfg, 'model.gate') or {}):
        for images, loader in dict(dataset='train_dataloader', held_out='val_dataloader').items():
            now, *earlier = (value_of(config, f'{loader}.dataset') for config in (cfg, *before))
            if now and value_of(part, images) and part[images] in earlier:
                part[images] = copy.deepcopy(now)


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


def add_run_arguments(
    parser: argparse.ArgumentParser, work_dir: str = 'where logs go', amp: str = 'bfloat16 autocast'
) -> None:
    """Arguments of every tool that builds a Runner; ``work_dir`` and ``amp`` are what their help says. See
    :func:`apply_run_arguments`."""
    parser.add_argument('--work-dir', type=file_name, help=f'{work_dir} (default: work_dirs/<config name>)')
    parser.add_argument('--amp', action='store_true', help=amp)
    add_cfg_options(parser)
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none', help='job launcher')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)


def apply_run_arguments(cfg: Config, args: argparse.Namespace) -> None:
    """Launcher and work dir of the command line, in place.

    Raises:
        ConfigError: The config lacks something that a Runner needs, or the launcher did not start this process.
    """
    check_config(cfg)
    for mode in ('val', 'test'):
        loop = cfg.get(f'{mode}_cfg') or {}
        if 'id_set' in loop:
            choose_shifts(cfg[f'{mode}_dataloader'], loop.id_set, loop.get('shifts'), mode)
    check_launcher(args.launcher)
    if args.launcher == 'mpi' and 'OMPI_COMM_WORLD_LOCAL_RANK' in os.environ:
        os.environ['LOCAL_RANK'] = os.environ[
            'OMPI_COMM_WORLD_LOCAL_RANK'
        ]  # the Runner wraps the model for the GPU of this name
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg.launcher = args.launcher
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or str(Path('work_dirs') / Path(args.config).stem)


# What mmengine reads of the environment that a launcher sets.
LAUNCHERS = dict(
    pytorch=('RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT'),
    slurm=('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_NODELIST'),
    mpi=('OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_LOCAL_RANK', 'MASTER_ADDR'),
)


def check_launcher(launcher: str) -> None:
    """Raise a ConfigError for a launcher that this process was not started by."""
    starters = dict(pytorch='torchrun (tools/dist_train.sh)', slurm='srun', mpi='mpirun')
    for variable in LAUNCHERS.get(launcher, ()):
        value = os.environ.get(variable)
        if value is None:
            raise ConfigError(
                f'--launcher {launcher} is for processes that {starters[launcher]} starts, but {variable} is not set: '
                'leave it out for a single process'
            )
        if variable.endswith(('RANK', 'SIZE', 'PORT', 'PROCID', 'NTASKS')) and not value.isdecimal():
            raise ConfigError(f'--launcher {launcher}: {variable}={value!r} is not a number')


def world_size(launcher: str) -> int:
    """Number of processes of this job, before any process group exists."""
    if launcher == 'none':
        return 1
    return int(os.environ.get(dict(slurm='SLURM_NTASKS', mpi='OMPI_COMM_WORLD_SIZE').get(launcher, 'WORLD_SIZE'), 1))


def is_first_process(launcher: str) -> bool:
    """Whether this process is the one of its job that writes, before any process group exists."""
    return (
        launcher == 'none'
        or int(os.environ.get(dict(slurm='SLURM_PROCID', mpi='OMPI_COMM_WORLD_RANK').get(launcher, 'RANK'), 0)) == 0
    )


def set_gradient_accumulation(cfg: Config, processes: int) -> None:
    """Make up ``cfg.total_batch_size`` by gradient accumulation: accumulative_counts = total / (processes × batch per
    process).

    Sets ``cfg.optim_wrapper.accumulative_counts``, rounds iteration-based checkpoint intervals up to a multiple of it
    and the batches of an epoch down to one, so that no checkpoint falls between two optimizer steps, and makes a moving
    average of weights count optimizer steps.

    Raises:
        ConfigError: ``accumulative_counts`` is something else, or the total is not a multiple of what the processes
            take at once.
    """
    total, each = cfg.get('total_batch_size'), cfg.train_dataloader.batch_size
    if total is None:
        return
    if total % (processes * each):
        raise ConfigError(
            f'total_batch_size={total} is not a multiple of {processes} process(es) x '
            f'train_dataloader.batch_size={each}: '
            f'change one of them, e.g. --cfg-options train_dataloader.batch_size='
            f'{max((b for b in range(1, each + 1) if total % (processes * b) == 0), default=each)}'
            if total % processes == 0
            else f'total_batch_size={total} cannot be split over {processes} processes: change one of them'
        )
    counts = total // (processes * each)
    given = cfg.optim_wrapper.get('accumulative_counts', counts)
    if given != counts:
        raise ConfigError(
            f'optim_wrapper.accumulative_counts={given}, but total_batch_size={total} is {counts} x '
            f'train_dataloader.batch_size={each} x {processes} process(es): leave out accumulative_counts, or '
            'set total_batch_size=None'
        )
    cfg.optim_wrapper.accumulative_counts = counts
    sampler = cfg.train_dataloader.get('sampler') or {}
    if counts > 1 and is_a(ResumableSampler, sampler.get('type'), DATA_SAMPLERS):
        sampler.multiple = counts * each
    for hook in cfg.get('custom_hooks') or []:
        if is_a(CheckpointHook, hook['type'], HOOKS) and not hook.get('by_epoch', True):
            hook['interval'] = -(-hook['interval'] // counts) * counts
        if is_a(EMAHook, hook['type'], HOOKS) and not is_a(
            RelativeEMAHook, hook['type'], HOOKS
        ):  # which does so itself
            hook['interval'] = hook.get('interval', 1) * counts


def prepare_test(
    cfg: Config,
    checkpoint: str | None = None,
    shifts: list[str] | None = None,
    skip_broken: bool = False,
    amp: bool = False,
    keep_start: bool = False,
) -> dict | None:
    """Edit a config for a test on several sets, and find what is wrong before anything is loaded.

    Args:
        cfg (Config): With a :class:`MultiSetTestLoop`.
        checkpoint (str, optional): The file to test.
        shifts (list[str], optional): Test on these and on the ID set; their data must be there. None: as the config
            says.
        skip_broken (bool): Leave out images that cannot be read.
        amp (bool): bfloat16 autocast.
        keep_start (bool): The pre-trained weights are needed beside those of the checkpoint, as they are for a gate.

    Returns:
        dict, optional: The checkpoint.

    Raises:
        ValueError: Another kind of test, an unknown shift, a set that cannot leave images out, a checkpoint of another
            number of classes.
        FileNotFoundError: No such checkpoint.
    """
    loop = cfg.get('test_cfg') or {}
    if 'id_set' not in loop:
        raise ConfigError(
            "the config must test by test_cfg=dict(type='MultiSetTestLoop', id_set=…), with a dict of named sets as "
            'test_dataloader'
        )
    loop.amp = amp
    if shifts is not None:
        loop.shifts = shifts
        loop.skip_missing = [loop.id_set] if loop.get('skip_missing') else False
    names = [loop.id_set, *choose_shifts(cfg.test_dataloader, loop.id_set, loop.get('shifts'))]
    check_complete(cfg, 'test', names)
    for name in names if skip_broken else ():
        dataset = cfg.test_dataloader[name].dataset
        if not is_a(FolderDataset, dataset.type, DATASETS):
            raise ConfigError(
                f'the test set {name} is a {dataset.type}, which cannot leave out broken images (a FolderDataset can)'
            )
        dataset.skip_unreadable = True
    cfg.load_from = checkpoint
    cfg.resume = False
    makes_head = any(is_a(FLYP, loss.get('type'), MODELS) for loss in cfg.model.get('auxiliary') or ())
    if not (keep_start and makes_head):
        forget_training(cfg.model)
    if checkpoint is None or keep_start or cfg.model.get('gate'):
        check_backbone(cfg.model)
    loaded = None if checkpoint is None else check_checkpoint(checkpoint)
    if keep_start and makes_head and not any(name.startswith('auxiliary.') for name in loaded['state_dict']):
        raise ConfigError(
            f'{checkpoint} has no text tower, of which the head is made (model.auxiliary): give a checkpoint of the '
            'training'
        )
    trained = (loaded or {}).get('meta') or {}
    follow_run(cfg, trained.get('seed', (cfg.get('randomness') or {}).get('seed')))
    if loaded is None:
        return None
    check_same_tower(cfg.model, loaded, checkpoint)
    weight, num_classes = loaded['state_dict'].get('head.fc.weight'), (cfg.model.get('head') or {}).get('num_classes')
    if weight is not None and num_classes is not None and len(weight) != num_classes:
        raise ConfigError(
            f'{checkpoint} was trained for {len(weight)} classes, but the config has '
            f'model.head.num_classes={num_classes}'
        )
    if not keep_start and not cfg.model.get('gate'):
        skip_pretrained_weights(cfg.model)
    return loaded


def inference_config(path: str, checkpoint: str | None = None, options: dict | None = None) -> Config:
    """A config for mmpretrain's ``get_model`` and ``ImageClassificationInferencer``, which look for one test set: that
    in distribution.

    Its model has its weights whoever builds it, its pipeline begins with an image file, and ``classes`` are the names
    of the classes.

    Args:
        path (str): A config file that tests on several sets.
        checkpoint (str, optional): The weights. None: the pre-trained ones.
        options (dict, optional): As ``--cfg-options``.

    Raises:
        FileNotFoundError, ValueError: As of :func:`load_config` and :func:`prepare_test`; without a checkpoint, a
            config that names no pre-trained weights.

    Example:
        >>> inferencer = ImageClassificationInferencer(inference_config('configs/cfmask_vitb16.py', 'best.pth'))
        >>> inferencer('photo.jpg')
    """
    cfg = load_config(path, options or {})
    loaded = prepare_test(cfg, checkpoint)
    if checkpoint is None:
        check_start(cfg)
    cfg.test_dataloader = cfg.test_dataloader[cfg.test_cfg.id_set]
    dataset = cfg.test_dataloader.dataset
    while 'pipeline' not in dataset and (
        'dataset' in dataset or 'datasets' in dataset
    ):  # a wrapper, of sets that are read alike
        dataset = dataset.get('dataset') or dataset.datasets[0]
    cfg.test_dataloader.dataset = dataset
    cfg.classes = class_names([dataset], loaded)
    dataset.pipeline = file_pipeline(dataset, cfg.model)
    cfg.model = dict(type='ModelWithWeights', model=cfg.model, checkpoint=checkpoint)
    return cfg


@MODELS.register_module()
def ModelWithWeights(model: dict, checkpoint: str | None = None, data_preprocessor: None = None) -> nn.Module:  # noqa: N802
    """A model of a config with the weights it is tested with, for those who build configs and load no weights, as
    ``get_model`` does.

    Args:
        model: The ``model`` of a config.
        checkpoint: Its weights. None: the pre-trained ones.
        data_preprocessor: ``get_model`` puts one that is None into every config; that of ``model`` counts.

    Raises:
        FileNotFoundError, ValueError: No such checkpoint, or one that does not fit the model.
    """
    built = MODELS.build(model)
    loaded = None if checkpoint is None else check_checkpoint(checkpoint)
    load_weights(built, loaded, checkpoint)
    return built


def class_names(datasets: Sequence[dict], checkpoint: dict | None = None) -> Sequence[str] | None:
    """Names of a model's classes: those in a checkpoint, else of the first data set that has names of its own, or has
    its images at hand, whose folders have names. None where there are none.

    Args:
        datasets: Configs.
        checkpoint: From :func:`check_checkpoint`.
    """
    names = (((checkpoint or {}).get('meta') or {}).get('dataset_meta') or {}).get('classes')
    for dataset in datasets:
        names = names or getattr(DATASETS.get(dataset['type']), 'METAINFO', {}).get('classes')
    for dataset in datasets if names is None else ():
        with suppress(OSError, ValueError, RuntimeError):
            return DATASETS.build({**dataset, 'pipeline': []}).metainfo.get('classes')
    return names


def file_pipeline(dataset: dict, model: dict) -> list[dict]:
    """The pipeline of a data set from image files on, also of one that renders its images.

    Args:
        dataset: Config of a data set.
        model: Config of a model, whose data preprocessor says in which order of channels the set gives its images.
    """
    if any(loads_file(step) for step in dataset.pipeline):
        return dataset.pipeline
    height, width = DATASETS.build({**dataset, 'pipeline': []})[0]['img'].shape[:2]
    order = (
        []
        if (model.get('data_preprocessor') or {}).get('to_rgb')
        else [dict(type='NumpyToPIL', to_rgb=True), dict(type='PILToNumpy')]
    )
    return [
        dict(type='LoadImageFromFile', imdecode_backend='pillow', color_type='color_ignore_orientation'),
        dict(type='ResizeEdge', scale=min(height, width), edge='short', backend='pillow', interpolation='bicubic'),
        dict(type='CenterCrop', crop_size=(width, height)),
        *order,
        *dataset.pipeline,
    ]


def add_gate(cfg: Config) -> None:
    """Give the model of ``cfg`` a :class:`mmcfmask.models.KNNGate` of its training and validation images, in place,
    with what ``cfg.model.gate`` says already.

    Raises:
        ValueError: The model cannot have one, or the config has no such images.
    """
    if not is_a(CounterfactualClassifier, cfg.model.type, MODELS):
        raise ConfigError(f'a gate needs a CounterfactualClassifier, but model.type={cfg.model.type!r}')
    gate = dict(cfg.model.get('gate') or {})
    for part, loader in dict(dataset='train_dataloader', held_out='val_dataloader').items():
        if 'type' in (gate.get(part) or {}):
            continue
        images = cfg.get(loader) or {}
        if 'dataset' not in images:
            raise ConfigError(
                f'a gate is made of the training and the validation images, but the config has no {loader}.dataset: '
                f'use one that has, or set model.gate.{part}'
            )
        gate[part] = {**copy.deepcopy(images.dataset), **(gate.get(part) or {})}
        gate.setdefault('num_workers', min(images.get('num_workers', 0), usable_cores()))
    cfg.model.gate = gate


def add_second_look(cfg: Config, side: float) -> None:
    """Let the model of ``cfg`` predict by two looks, in place; see
    :func:`mmcfmask.models.inference.relevance_crop.predict_with_crop`.

    Raises:
        ValueError: The model cannot, or ``side`` is out of range.
    """
    if not is_a(CounterfactualClassifier, cfg.model.type, MODELS):
        raise ConfigError(f'a second look needs a CounterfactualClassifier, but model.type={cfg.model.type!r}')
    with lower_errors('second look'):
        check_crop_scale(side)
    cfg.model.crop_scale = side


def method_name(config: str, model: dict, checkpoint: dict | None) -> str:
    """What a test is called in tables and reports; the words are those of studies.

    The name of the config that was trained, with what was made of its weights and with what they were tested. Without a
    checkpoint nothing of the config was trained: it is 'zero-shot', or 'LP' where the head is a linear probe.

    Args:
        config (str): Path of the config.
        model (dict): The model as it was tested.
        checkpoint (dict, optional): What was tested.
    """
    meta = (checkpoint or {}).get('meta') or {}
    start = ((model.get('head') or {}).get('class_weights') or {}).get('type')
    name = Path(config).stem if checkpoint else 'LP' if start == 'linear_probe' else 'zero-shot'
    made = [
        *(['WiSE-FT'] if meta.get('wise_ft_alpha') is not None else []),
        *([f'{meta["soup"]} soup'] if meta.get('soup') else []),
    ]
    ways = [words for part, words in dict(gate='gate', crop_scale='second look').items() if model.get(part)]
    return ' + '.join([name, *made, *([' and '.join(ways)] if ways else [])])


def forget_training(model: dict) -> None:
    """Edit a model config in place so that it holds nothing that is of use in training alone."""
    for part in ('teacher', 'auxiliary'):
        if model.get(part):
            model[part] = None


def skip_pretrained_weights(model: dict) -> None:
    """Edit a model config in place so that it loads nothing: a checkpoint will bring all weights."""
    forget_training(model)
    if model.get('gate'):
        model.gate = None  # it is made of the start
    for part, setting in (('head', 'class_weights'), ('backbone', 'init_cfg'), ('neck', 'init_cfg')):
        if model.get(part) and model[part].get(setting):
            model[part][setting] = None
    if model.get('backbone') and model.backbone.get('pretrained'):
        if is_a(OpenCLIPBackbone, model.backbone.type, MODELS):
            model.backbone.load = False  # `pretrained` still decides the activation
        else:
            model.backbone.pretrained = None


def build_model(cfg: dict, checkpoint: dict | None = None, name: str | None = None) -> nn.Module:
    """Build a classifier to look at, in eval mode and without a teacher, with its pre-trained weights or a
    checkpoint's.

    Args:
        cfg (dict): The ``model`` of a config. It is changed.
        checkpoint (dict, optional): From :func:`check_checkpoint`.
        name (str, optional): Of the checkpoint, for errors.

    Raises:
        ValueError: The checkpoint does not fit the model.
    """
    ours = cfg.type == 'CounterfactualClassifier'
    if checkpoint is not None:
        check_same_tower(cfg, checkpoint, name)
    if ours and checkpoint is not None:
        skip_pretrained_weights(cfg)
    elif ours:
        forget_training(cfg)
    model = MODELS.build(cfg).eval()
    load_weights(model, checkpoint, name)
    return model


def load_weights(model: nn.Module, checkpoint: dict | None, name: str | None = None) -> None:
    """Put the weights of a checkpoint into a model, or without one the pre-trained; arguments and errors of
    :func:`build_model`."""
    if checkpoint is not None:
        check_state_dict(model, checkpoint, name)
        model.load_state_dict(checkpoint['state_dict'], strict=False)
    elif not isinstance(model, CounterfactualClassifier):  # which has them from construction
        model.init_weights()


def usable_cores() -> int:
    """Cores that this process may use: a scheduler, a container or taskset may give it fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def fit_loaders(cfg: Config, processes: int = 1) -> None:
    """Fit every dataloader of ``cfg`` to this machine, in place: no more workers than the usable cores, shared by the
    processes on it, and memory pinned only for a GPU.
    """
    local = int(os.environ.get('LOCAL_WORLD_SIZE', os.environ.get('SLURM_NTASKS_PER_NODE', processes)))
    most = max(usable_cores() // local, 1)
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
    (:class:`mmcfmask.datasets.CachedDataset`); of a wrapper, such as a ClassBalancedDataset, those of the sets in it.
    """

    def cached(dataset: dict) -> dict:
        if dataset.get('type') == 'CachedDataset':
            return dataset
        if 'dataset' in dataset:
            return dict(dataset, dataset=cached(dataset['dataset']))
        if 'datasets' in dataset:
            return dict(dataset, datasets=[cached(part) for part in dataset['datasets']])
        return dict(type='CachedDataset', dataset=dataset, cache_dir=cfg.cache_dir)

    if cfg.get('cache_dir') is None:
        return
    for key in ('train_dataloader', 'val_dataloader'):
        loader = cfg.get(key)
        if loader and 'dataset' in loader:
            loader.dataset = cached(loader.dataset)


def add_own_hooks(cfg: Config) -> None:
    """Add :data:`OWN_HOOKS` to the custom hooks of ``cfg``, in place, where a config with a list of its own has left
    them out."""
    hooks = list(cfg.get('custom_hooks') or [])
    named = {
        hook['type'] if isinstance(hook['type'], str) else hook['type'].__name__
        for hook in hooks
        if isinstance(hook, dict)
    }
    cfg.custom_hooks = [*(dict(type=name) for name in OWN_HOOKS if name not in named), *hooks]


def fit_optimizer(cfg: Config) -> None:
    """Drop ``fused=True`` from the optimizer of ``cfg``, in place, where torch has no fused kernel for this machine."""
    optimizer = (cfg.get('optim_wrapper') or {}).get('optimizer') or {}
    if optimizer.get('fused') and not can_fuse_optimizer():
        optimizer.pop('fused')


def build_runner(cfg: Config) -> Runner:
    """``Runner.from_cfg`` that also works under a launcher on a machine without a GPU, with loaders fitted to the
    machine, and with the hooks that the package relies on.

    ``cfg.tf32`` (default: False) lets products and convolutions of float32 numbers round their factors to TensorFloat32
    on a GPU, and ``cfg.randomness.deterministic`` makes two runs equal to the last bit there.
    """
    add_own_hooks(cfg)
    fit_loaders(cfg, world_size(cfg.launcher))
    cache_images(cfg)
    fit_optimizer(cfg)
    if not torch.cuda.is_available():
        keep_freed_memory()
    else:
        use_tf32(cfg.get('tf32', False))
    if (cfg.get('randomness') or {}).get('deterministic'):
        os.environ.setdefault(
            'CUBLAS_WORKSPACE_CONFIG', ':4096:8'
        )  # torch asks for it; read with the first product on a GPU
    if start_process_group_without_gpu(cfg.launcher):
        wrapper = cfg.get('model_wrapper_cfg') or dict(
            broadcast_buffers=False, find_unused_parameters=cfg.get('find_unused_parameters', False)
        )  # as the Runner's own
        wrapper = {'type': 'MMDistributedDataParallel', **wrapper}
        if is_a(DistributedDataParallel, wrapper['type'], MODEL_WRAPPERS):
            wrapper['device_ids'] = None
        cfg.model_wrapper_cfg = wrapper
        assert get_world_size() == world_size(cfg.launcher)
    runner = Runner.from_cfg(cfg)
    for handler in runner.logger.handlers:
        if isinstance(handler, logging.FileHandler):  # names of files may be no UTF-8
            handler.stream.reconfigure(errors='backslashreplace')
    for warning in filter(None, [slow_bfloat16(cfg, get_device()), unmatched_keys(cfg, runner.model)]):
        runner.logger.warning(warning)
    return runner
