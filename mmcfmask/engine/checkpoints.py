"""Find a checkpoint, read it, and check that it is whole and fits."""

from __future__ import annotations

import logging
import os
import re
import socket
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import open_clip
import torch
from mmengine.config import Config
from mmengine.dist import all_gather_object
from mmengine.logging import print_log
from torch import Tensor, nn

from ..errors import ConfigError, MissingFileError, StorageError
from ..files import check_whole
from ..models.preprocessor import fill_normalisation
from ..models.towers.adapters import KINDS, holds_adapters, read_adapters
from ..models.towers.torchscript import is_torchscript
from ..models.towers.weight_files import check_parameters, check_tensors, explain_unreadable
from ..renamed import rename_weights
from .values import parse_config_text

BEST = 'best.pth'
LAST = 'last_checkpoint'


def best_checkpoint(folder: str | os.PathLike) -> Path | None:
    """Return the best checkpoint of a work dir: ``best.pth``, or the newest ``best_*.pth`` (of several metrics, or of
    version 0.1)."""
    folder = Path(folder)
    if (folder / BEST).is_file():
        return folder / BEST
    return max(folder.glob('best_*.pth'), key=lambda path: path.stat().st_mtime, default=None)


def chosen_checkpoint(folder: str | os.PathLike) -> Path | None:
    """Return the checkpoint of a training to test or to publish: the best on the held-out images, or else the last."""
    epochs = Path(folder).glob('epoch_*.pth')
    return best_checkpoint(folder) or max(epochs, key=lambda path: path.stat().st_mtime, default=None)


def find_resumable(work_dir: str | os.PathLike) -> str | None:
    """Find the checkpoint to resume a run from.

    This is the one that ``last_checkpoint`` names, also if the work dir was moved. If it is missing or damaged, it is
    the newest whole one, with a warning.

    Args:
        work_dir: Of the run.

    Returns:
        str, optional: The path; None if nothing was saved yet.

    Raises:
        StorageError: There are checkpoints, but none is whole.
    """
    try:
        recorded = (Path(work_dir) / LAST).read_text(encoding='utf-8', errors='surrogateescape').strip('\n')
    except OSError:
        recorded = ''
    latest = next((path for path in (Path(work_dir) / Path(recorded).name, Path(recorded)) if path.is_file()), None)
    reason = (
        f'{recorded}, which {Path(work_dir) / LAST} names, is missing'
        if recorded
        else f'{Path(work_dir) / LAST} is empty or missing'
    )
    if latest:
        try:
            check_checkpoint(str(latest), resume=True)
            return str(latest)
        except (OSError, ValueError) as error:
            reason = str(error)
    folder = latest.parent if latest else Path(work_dir)
    found = _resumable(folder, Path(recorded).name)
    for path in found:
        try:
            check_checkpoint(path, resume=True)
        except (OSError, ValueError) as error:
            reason += f'; {error}'
            continue
        print_log(f'{reason}: resuming from {path}, the newest whole checkpoint', 'current', level=logging.WARNING)
        return path
    if recorded or found:
        raise StorageError(
            f'{reason}: there is no other checkpoint in {folder} to resume from. To start again, delete the files '
            f'there, {LAST} too, or choose another work dir'
        )
    return None


def _resumable(folder: Path, latest: str) -> list[str]:
    """List the checkpoints in ``folder`` that seem resumable, newest first. Those later than ``latest`` are another
    run's and left out."""
    name = re.compile(r'(.*_)(\d+)\.pth')
    limit, found = name.fullmatch(latest), []
    for path in folder.glob('*.pth'):
        number = name.fullmatch(path.name)
        if limit and number and number[1] == limit[1] and int(number[2]) > int(limit[2]):
            continue
        try:
            checkpoint = read_checkpoint(str(path))
            _check_training_state(checkpoint, str(path))
            found.append((checkpoint['meta']['iter'], str(path)))
        except (OSError, ValueError):
            pass
    return [path for _, path in sorted(found, reverse=True)]


def check_checkpoint(path: str, resume: bool = False) -> dict:
    """Load a checkpoint without executing anything in it, its tensors mapped from the file, and check it.

    Args:
        path (str): A local file.
        resume (bool): It must hold the state of a training run, not only weights.

    Returns:
        dict: With ``state_dict`` and ``meta``.

    Raises:
        MissingFileError: There is no such file.
        StorageError: It is damaged (a checksum is wrong, see :func:`mmcfmask.files.check_whole`).
        ConfigError: It is no checkpoint, or holds impossible numbers.
    """
    check_exists(path)
    check_whole(path)
    checkpoint = read_checkpoint(path)
    check_tensors(checkpoint['state_dict'], path)
    if resume:
        _check_training_state(checkpoint, path)
        check_tensors(dict(_tensors(checkpoint['optimizer'], 'optimizer')), path)
    return checkpoint


def read_checkpoint(path: str) -> dict:
    """Load a checkpoint with ``state_dict`` and ``meta``, without looking at its numbers."""
    check_exists(path)
    if is_torchscript(path):
        raise ConfigError(f'{path!r} is a TorchScript archive, not a checkpoint: set it as model.backbone.pretrained')
    try:
        # Files of torch < 1.6 are no archives and cannot be mapped.
        checkpoint = torch.load(path, map_location='cpu', weights_only=True, mmap=zipfile.is_zipfile(path) or None)
    except Exception as error:  # torch raises pickle, zip and key errors of many types
        raise StorageError(
            f'{path!r} is not a checkpoint that torch can load, or is cut off ({explain_unreadable(error)})'
        ) from None
    if not isinstance(checkpoint, dict) or 'state_dict' not in checkpoint:
        raise ConfigError(f'{path!r} is not a checkpoint of this package: it has no "state_dict"')
    state = checkpoint['state_dict']
    if (
        not isinstance(state, Mapping)
        or not state
        or not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items())
    ):
        raise ConfigError(f'{path!r}: its "state_dict" must hold named tensors')
    if all(name.startswith('module.') for name in state):  # of a wrapped model
        checkpoint['state_dict'] = {name[len('module.') :]: value for name, value in state.items()}
    checkpoint['state_dict'] = rename_weights(checkpoint['state_dict'])
    meta = checkpoint.setdefault('meta', {})
    if not isinstance(meta, dict):
        raise ConfigError(f'{path!r}: its "meta" is a {type(meta).__name__}, not a dict')
    _check_meta(meta, path)
    return checkpoint


def _check_meta(meta: dict, path: str) -> None:
    """Raise a ConfigError for an impossible seed, or classes that are no list of names. Both may be missing."""
    seed, trained = meta.get('seed'), meta.get('dataset_meta')
    if seed is not None and not (type(seed) is int and 0 <= seed < 2**32):
        raise ConfigError(f'{path!r}: meta["seed"] = {seed!r} is not the seed of a run')
    if trained is not None and not isinstance(trained, dict):
        raise ConfigError(f'{path!r}: meta["dataset_meta"] is a {type(trained).__name__}, not a dict')
    for key in ('classes', 'folders'):
        names = (trained or {}).get(key)
        if names is not None and not (
            isinstance(names, (list, tuple)) and all(isinstance(name, (str, int)) for name in names)
        ):
            raise ConfigError(f'{path!r}: meta["dataset_meta"][{key!r}] is not a list of names')


def check_exists(path: str) -> None:
    """Raise a MissingFileError unless ``path`` is a file."""
    if os.path.isdir(path):
        raise MissingFileError(f'{path!r} is a folder: give the checkpoint in it')
    if not os.path.isfile(path):
        raise MissingFileError(f'there is no checkpoint {path!r}')


def _check_training_state(checkpoint: dict, path: str) -> None:
    """Raise a ConfigError unless training can resume from a checkpoint."""
    if not {'meta', 'optimizer', 'message_hub'} <= set(checkpoint):
        raise ConfigError(
            f'{path!r} holds weights but no training state, so training cannot resume from it; '
            'to start from these weights use --cfg-options load_from=…'
        )
    meta = checkpoint['meta']
    for key in ('epoch', 'iter'):
        if type(meta.get(key)) is not int or meta[key] < 0:
            raise ConfigError(f'{path!r}: training cannot resume from meta[{key!r}] = {meta.get(key)!r}')
    if not isinstance(meta.get('cfg'), str):
        raise ConfigError(f'{path!r} has no config (meta["cfg"]), so training cannot resume from it')
    optimizer = checkpoint['optimizer']
    if not isinstance(optimizer, dict) or not isinstance(checkpoint['message_hub'], dict):
        raise ConfigError(f'{path!r}: its training state is not of a run of mmengine')
    parts = (
        [optimizer] if {'state', 'param_groups'} & set(optimizer) else list(optimizer.values())
    )  # of several optimizers
    if (
        not parts
        or not all(isinstance(part, dict) and {'state', 'param_groups'} <= set(part) for part in parts)
        or (
            meta['iter']
            and any('betas' in group and not part['state'] for part in parts for group in part['param_groups'])
        )
    ):
        raise ConfigError(f'{path!r} lacks the state of the optimizer, so training cannot resume from it')


def check_schedules(cfg: Config, checkpoint: dict, name: str) -> None:
    """Raise a ConfigError for a checkpoint without the state of the schedules of ``cfg``, which would start again."""
    wanted, found = cfg.get('param_scheduler') or [], checkpoint.get('param_schedulers')
    wanted = [wanted] if isinstance(wanted, dict) and 'type' in wanted else wanted
    if wanted and (not found or len(found) != len(wanted)):
        raise ConfigError(
            f'{name} holds the state of {len(found or ())} schedules, but the config has {len(wanted)} '
            '(param_scheduler): training cannot resume from it'
        )
    for schedule in found if isinstance(found, list) else ():
        if type(schedule.get('last_step')) is int and schedule['last_step'] < 0:
            raise ConfigError(f'{name}: a schedule cannot resume at step {schedule["last_step"]}')


def _tensors(value, name: str) -> Iterator[tuple[str, Tensor]]:
    """Yield all tensors in nested dicts and lists, with their names."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, (dict, list, tuple)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _tensors(item, f'{name}.{key}')


def check_state_dict(model: nn.Module, checkpoint: dict, name: str) -> None:
    """Raise a ConfigError for a checkpoint with missing, unexpected or differently shaped tensors, and name them.

    mmengine would log such tensors and leave random weights. Weights of loss terms (``losses.*``) are not compared.

    Args:
        model (nn.Module): The model.
        checkpoint (dict): From :func:`check_checkpoint`.
        name (str): Its path, for the error.
    """
    expected, found = (
        {key: value for key, value in weights.items() if not key.startswith('losses.')}
        for weights in (model.state_dict(), checkpoint['state_dict'])
    )
    check_parameters(expected, found, where=f'{name} does not fit the model of the config')


def check_same_tower(model: dict, checkpoint: dict, name: str) -> None:
    """Raise a ConfigError for a checkpoint of another image tower, or another activation, than ``model``; its weights
    may still have the same names and shapes. Warn of another normalisation of images.

    Args:
        model (dict): The ``model`` of a config.
        checkpoint (dict): From :func:`check_checkpoint`. Without a config in it, it is accepted.
        name (str): Its path, for the error.
    """
    try:
        trained = parse_config_text(checkpoint['meta']['cfg'], free=())['model']
        before = trained['backbone']
    except (KeyError, TypeError, SyntaxError):
        return
    ours = parse_config_text(Config(dict(model=model)).pretty_text, free=())['model']
    now = ours.get('backbone') or {}
    for key in ('model_name', 'arch', 'layer_cfgs', 'act_cfg', 'norm_cfg', 'pre_norm', 'out_type', 'global_pool'):
        old, new = (
            _tower_name(part) if key == 'model_name' and part.get(key) else part.get(key) for part in (before, now)
        )
        if old != new:
            raise ConfigError(
                f'{name} was trained with model.backbone.{key} = {before.get(key)!r}, but now it is {now.get(key)!r}, '
                'which computes something else from the same weights'
            )
    if holds_adapters(checkpoint.get('state_dict') or {}) and read_adapters(before) != read_adapters(now):
        old, new = ({kind: part[kind] for kind in KINDS if part.get(kind) is not None} for part in (before, now))
        raise ConfigError(
            f'{name} holds adapters trained with model.backbone = {old}, but now it has {new}: set them as in the '
            'training'
        )
    normalised = [
        fill_normalisation(part.get('data_preprocessor') or {}, part.get('backbone') or {}) for part in (trained, ours)
    ]
    for key in ('mean', 'std'):
        old, new = (options.get(key) for options in normalised)
        if old and new and (len(old) != len(new) or any(abs(a - b) > 1e-3 for a, b in zip(old, new))):
            print_log(
                f'{name} was trained on images normalised by model.data_preprocessor.{key} = {old}, but now it is '
                f'{new}',
                'current',
                level=logging.WARNING,
            )


def check_same_start(checkpoint: dict | None, work_dir: str) -> None:
    """Check that all processes of a job resume from the same iteration; all must call this together.

    Args:
        checkpoint (dict, optional): What this process resumes from. None: it starts anew.
        work_dir (str): Where it was looked for.

    Raises:
        ConfigError: In all processes, if machines found different checkpoints.
    """
    found = all_gather_object((socket.gethostname(), checkpoint and checkpoint['meta']['iter']))
    if len({iteration for _, iteration in found}) > 1:
        starts = {
            f'{host} from {"the start" if iteration is None else f"iteration {iteration}"}' for host, iteration in found
        }
        raise ConfigError(
            f'--resume: the machines found different checkpoints in {work_dir}: {", ".join(sorted(starts))}. Put the '
            'work dir on a file system that all machines share, or copy the latest checkpoint to all of them'
        )


def inherited_meta(checkpoint: dict) -> dict:
    """Return the ``meta`` that a checkpoint made of another one keeps: config and classes of the training, and by which
    metric that one was chosen."""
    return {key: checkpoint['meta'][key] for key in ('cfg', 'dataset_meta', 'best') if key in checkpoint['meta']}


def _tower_name(backbone: dict) -> str:
    """Name an open_clip tower with its activation: OpenAI's tags switch QuickGELU on under any name."""
    name, tag = str(backbone['model_name']), backbone.get('pretrained')
    config = open_clip.get_model_config(name) or {}
    quick = config.get('quick_gelu', name.endswith('-quickgelu')) or (
        isinstance(tag, str) and open_clip.get_pretrained_cfg(name, tag).get('quick_gelu', False)
    )
    return re.sub('-quickgelu$', '', name) + ('-quickgelu' if quick else '')
