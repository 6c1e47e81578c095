"""Checkpoints: when they are written and deleted, which one a run resumes from, and whether one is whole and fits."""

from __future__ import annotations

import logging
import math
import os
import re
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import mmengine.hooks
import open_clip
import torch
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.logging import print_log
from mmpretrain.registry import HOOKS
from torch import Tensor, nn

from ..errors import ConfigError, MissingFileError, StorageError
from ..evaluation import nll_key, preference
from ..files import atomic_write, check_file_name, check_whole, write_text
from ..models.towers.torchscript import is_torchscript
from ..models.towers.weight_files import check_parameters, check_tensors, explain_unreadable
from .values import config_values

BEST = 'best.pth'
LAST = 'last_checkpoint'


@HOOKS.register_module(force=True)
class CheckpointHook(mmengine.hooks.CheckpointHook):
    """mmengine's ``CheckpointHook``, with which a run that is killed at any moment can be resumed.

    A checkpoint is whole on the disk before ``last_checkpoint`` names it, and only then is an older one deleted. The
    best one, by ``save_best`` and among equals by :func:`mmcfmask.evaluation.preference`, is ``best.pth``: its ``meta``
    has ``epoch``, ``iter`` and ``best=dict(metric=…, value=…)`` (of several metrics each has a ``best_<metric>.pth``).
    A resumed run finds its own files in the folder, under whatever path they were written.

    Configs get this class by ``type='CheckpointHook'``. Arguments are those of mmengine's.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        template = check_file_name(self.filename_tmpl, 'filename_tmpl')
        if not re.fullmatch(r'[^{}]*\{\}[^{}]*\.pth', template):
            raise ConfigError(
                f'filename_tmpl={template!r} must have one {{}} for the epoch or the iteration, and end in .pth'
            )
        if self.save_best == []:
            raise ConfigError('save_best=[] names no metric: give one, or None')

    def before_train(self, runner) -> None:
        """Find what lies in the folder; of a run that was started elsewhere the best checkpoint is copied."""
        info = runner.message_hub.runtime_info
        info.pop('keep_ckpt_ids', None)  # mmengine's, of all hooks together
        if '://' in str(self.out_dir):
            raise ConfigError(
                f'CheckpointHook.out_dir={self.out_dir!r}: checkpoints are written to folders of this machine alone'
            )
        super().before_train(runner)
        self.kept = self._own_steps(runner) if self.max_keep_ckpts > 0 and self._resumed_here(runner) else []
        self._remove_old()  # a run that was killed before it did
        if self.save_best is None:
            return
        others = [
            hook
            for hook in runner.hooks
            if isinstance(hook, CheckpointHook) and hook is not self and hook.save_best is not None
        ]
        if others:
            raise ConfigError(
                'two CheckpointHooks have save_best, but a run has one best checkpoint: give all metrics to one, as a '
                'list'
            )
        if not runner.iter:
            if is_main_process() and self.best_path(self.key_indicators[0]).is_file():
                runner.logger.warning(
                    f'{self.best_path(self.key_indicators[0])} is of an earlier run: this one will replace it'
                )
            return
        for key in self.key_indicators:
            self._find_best(runner, key)

    def _resumed_here(self, runner) -> bool:
        """Whether the run resumes from a checkpoint in its own folder: else what lies there is another run's."""
        start = runner._load_from  # None: mmengine finds it in the work dir
        return runner.iter > 0 and (start is None or Path(start).parent.resolve() == Path(self.out_dir).resolve())

    def _own_steps(self, runner) -> list[int]:
        """Epochs, or iterations, of this hook's checkpoints in the folder, up to where the run is; later ones are
        another run's."""
        name = re.compile(re.escape(self.filename_tmpl).replace(r'\{\}', r'(\d+)'))
        found = map(name.fullmatch, os.listdir(self.out_dir) if os.path.isdir(self.out_dir) else ())
        done = runner.epoch if self.by_epoch else runner.iter
        return sorted(int(match[1]) for match in found if match and int(match[1]) <= done)

    def best_path(self, key: str) -> Path:
        """Where the best checkpoint by a metric is written."""
        return Path(self.out_dir) / (BEST if len(self.key_indicators) == 1 else f'best_{key.replace("/", "_")}.pth')

    def _names(self, key: str) -> tuple[str, str, str]:
        """Names in the message hub: mmengine's for the best score and its file, and ours for the cross-entropy that
        decides ties."""
        end = '' if len(self.key_indicators) == 1 else f'_{key}'
        return f'best_score{end}', f'best_ckpt{end}', f'best_nll{end}'

    def _find_best(self, runner, key: str) -> None:
        """Let the message hub of a resumed run name the best checkpoint in this work dir; without one, forget its
        score."""
        info, (score, name, nll) = runner.message_hub.runtime_info, self._names(key)
        recorded = info.get(name)
        if not recorded:
            return
        own, recorded = self.best_path(key), Path(recorded)
        if self._resumed_here(runner):
            for path in (own, own.with_name(recorded.name)):
                if path.is_file():
                    runner.message_hub.update_info(name, str(path))
                    return
        for path in (
            Path(runner._load_from or '').parent / recorded.name,
            recorded,
        ):  # a run that began in another work dir
            if path.is_file() and _score_of(path) in (None, info.get(score)):
                if is_main_process():
                    with open(path, 'rb') as source, atomic_write(own) as copy:
                        shutil.copyfileobj(source, copy, 1 << 24)
                runner.message_hub.update_info(name, str(own))
                return
        runner.logger.warning(
            f'the best checkpoint so far, {recorded}, is no longer there: the next validation gives a new one'
        )
        for part in (score, name, nll):
            info.pop(part, None)

    def _save_checkpoint_with_step(self, runner, step: int, meta: dict) -> None:
        name = self.filename_tmpl.format(step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        runner.save_checkpoint(
            self.out_dir,
            name,
            self.file_client_args,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        if self.max_keep_ckpts > 0:
            self.kept = [*(kept for kept in self.kept if kept != step), step]
        if is_main_process():
            write_text(Path(runner.work_dir) / LAST, self.last_ckpt)
        self._remove_old()

    def _remove_old(self) -> None:
        while 0 < self.max_keep_ckpts < len(self.kept):
            old = os.path.join(self.out_dir, self.filename_tmpl.format(self.kept.pop(0)))
            if is_main_process():
                self._remove(old)

    def _save_best_checkpoint(self, runner, metrics: dict) -> None:
        if not self.save_best:
            return
        if 'auto' in self.key_indicators:
            self._init_rule(self.rules, [next(iter(metrics))])
        hub = runner.message_hub
        for key, rule in zip(self.key_indicators, self.rules):
            score, name, nll = self._names(key)
            if metrics[key] is None:
                continue
            found, best = preference(metrics, key, rule), (-math.inf, -math.inf)
            if score in hub.runtime_info:  # unknown cross-entropy: the earlier one stays
                best = preference(
                    {nll_key(key): hub.runtime_info.get(nll, -math.inf), key: hub.runtime_info[score]}, key, rule
                )
            if not found > best:
                continue
            before, path = hub.runtime_info.get(name), self.best_path(key)
            hub.update_info(score, metrics[key])
            hub.update_info(name, str(path))
            hub.update_info(nll, metrics.get(nll_key(key), -math.inf))
            meta = dict(epoch=runner.epoch, iter=runner.iter, best=dict(metric=key, value=float(metrics[key])))
            runner.save_checkpoint(
                self.out_dir,
                path.name,
                self.file_client_args,
                save_optimizer=False,
                save_param_scheduler=False,
                meta=meta,
                by_epoch=False,
                backend_args=self.backend_args,
            )
            runner.logger.info(f'{path.name}: {key} = {metrics[key]:.4f}, of epoch {runner.epoch}, is the best so far.')
            if (
                before
                and Path(before).parent.resolve() == path.parent.resolve()
                and Path(before).name != path.name
                and is_main_process()
            ):
                self._remove(before)  # under its older name

    def _remove(self, path: str) -> None:
        if self.file_backend.isfile(path):
            self.file_backend.remove(path)


def _score_of(path: Path) -> float | None:
    """The score that a best checkpoint says it has."""
    try:
        return _read(str(path))['meta']['best']['value']
    except (KeyError, TypeError, OSError, ValueError):
        return None


def best_checkpoint(folder: str | os.PathLike) -> Path | None:
    """The best checkpoint of a work dir: ``best.pth``, or the newest ``best_*.pth`` (one of several metrics, or of
    version 0.1)."""
    folder = Path(folder)
    if (folder / BEST).is_file():
        return folder / BEST
    return max(folder.glob('best_*.pth'), key=lambda path: path.stat().st_mtime, default=None)


def find_resumable(work_dir: str | os.PathLike) -> str | None:
    """The checkpoint to resume a run from: the one that ``last_checkpoint`` names, in the work dir, which may have been
    moved, or where it was written; where that is gone or damaged, the newest whole one, with a warning. None where
    nothing was saved yet.

    Raises:
        StorageError: There are checkpoints, or a name of one, but none is whole.
    """
    try:
        recorded = (Path(work_dir) / LAST).read_text(encoding='utf-8', errors='surrogateescape').strip('\n')
    except OSError:
        recorded = ''
    latest = next((path for path in (Path(work_dir) / Path(recorded).name, Path(recorded)) if path.is_file()), None)
    reason = (
        f'{recorded}, which {Path(work_dir) / LAST} names, is gone'
        if recorded
        else f'{Path(work_dir) / LAST} is empty or not there'
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
            f'{reason}: there is no other checkpoint in {folder} to resume from. To start '
            f'again, delete what is there, {LAST} too, or choose another work dir'
        )
    return None


def _resumable(folder: Path, latest: str) -> list[str]:
    """The checkpoints in ``folder`` that seem to be resumable, newest first, but for later ones than ``latest``:
    another run's."""
    name = re.compile(r'(.*_)(\d+)\.pth')
    limit, found = name.fullmatch(latest), []
    for path in folder.glob('*.pth'):
        number = name.fullmatch(path.name)
        if limit and number and number[1] == limit[1] and int(number[2]) > int(limit[2]):
            continue
        try:
            checkpoint = _read(str(path))
            _check_training_state(checkpoint, str(path))
            found.append((checkpoint['meta']['iter'], str(path)))
        except (OSError, ValueError):
            pass
    return [path for _, path in sorted(found, reverse=True)]


def check_checkpoint(path: str, resume: bool = False) -> dict:
    """Load a checkpoint's tensors without copying them, or say what is wrong with it. Nothing in the file is executed.

    Args:
        path (str): A local file.
        resume (bool): It must hold the state of a training run, not only weights.

    Raises:
        MissingFileError, StorageError, ConfigError: With the path: there is none, it is damaged (a checksum is wrong,
            see :func:`check_whole`), it is something else, or holds numbers that cannot be right.
    """
    check_exists(path)
    check_whole(path)
    checkpoint = _read(path)
    check_tensors(checkpoint['state_dict'], path)
    if resume:
        _check_training_state(checkpoint, path)
        check_tensors(dict(_tensors(checkpoint['optimizer'], 'optimizer')), path)
    return checkpoint


def _read(path: str) -> dict:
    """A checkpoint with ``state_dict`` and ``meta``, as far as that can be told without looking at its numbers."""
    check_exists(path)
    if is_torchscript(path):
        raise ConfigError(f'{path!r} is a TorchScript archive, no checkpoint: name it as model.backbone.pretrained')
    try:
        # What torch < 1.6 wrote is no archive and cannot be mapped.
        checkpoint = torch.load(path, map_location='cpu', weights_only=True, mmap=zipfile.is_zipfile(path) or None)
    except Exception as error:  # the readers raise pickle, zip and key errors of many types
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
        raise ConfigError(f'{path!r}: its "state_dict" is not made of named tensors')
    if all(name.startswith('module.') for name in state):  # of a wrapped model
        checkpoint['state_dict'] = {name[len('module.') :]: value for name, value in state.items()}
    meta = checkpoint.setdefault('meta', {})
    if not isinstance(meta, dict):
        raise ConfigError(f'{path!r}: its "meta" is a {type(meta).__name__}, not a dict')
    _check_meta(meta, path)
    return checkpoint


def _check_meta(meta: dict, path: str) -> None:
    """Raise a ConfigError for a seed that is none, or classes that are no list of names; other programs may write
    neither."""
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
        raise ConfigError(
            f'{path!r} does not say what it was trained with (meta["cfg"]), so training cannot resume from it'
        )
    optimizer = checkpoint['optimizer']
    if not isinstance(optimizer, dict) or not isinstance(checkpoint['message_hub'], dict):
        raise ConfigError(f'{path!r}: its training state is not that of a run of mmengine')
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
    """Raise a ConfigError where a checkpoint lacks the state of the schedules of ``cfg``, so that they would begin
    again."""
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
    """All tensors in nested dicts and lists, with names."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, (dict, list, tuple)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _tensors(item, f'{name}.{key}')


def check_state_dict(model: nn.Module, checkpoint: dict, name: str) -> None:
    """Raise a ValueError that names the tensors that a checkpoint lacks, or has in another shape or besides those of
    ``model``.

    mmengine would leave what does not fit at random, and log it. What losses of the training have (``auxiliary``) does
    not count.
    """
    expected, found = (
        {key: value for key, value in weights.items() if not key.startswith('auxiliary.')}
        for weights in (model.state_dict(), checkpoint['state_dict'])
    )
    check_parameters(expected, found, where=f'{name} does not fit the model of the config')


def check_same_tower(model: dict, checkpoint: dict, name: str) -> None:
    """Raise a ConfigError where a checkpoint says that it was trained with another image tower, or another activation,
    than ``model``.

    Their weights may have the same names and shapes. Another normalisation of images is warned of.

    Args:
        model (dict): The ``model`` of a config.
        checkpoint (dict): From :func:`check_checkpoint`. One that does not say is accepted.
        name (str): Of the checkpoint, for the error.
    """
    try:
        trained = config_values(checkpoint['meta']['cfg'], free=())['model']
        before = trained['backbone']
    except (KeyError, TypeError, SyntaxError):
        return
    ours = config_values(Config(dict(model=model)).pretty_text, free=())['model']
    now = ours.get('backbone') or {}
    for key in ('model_name', 'arch', 'layer_cfgs', 'act_cfg', 'norm_cfg', 'pre_norm', 'out_type'):
        old, new = (
            _tower_name(part) if key == 'model_name' and part.get(key) else part.get(key) for part in (before, now)
        )
        if old != new:
            raise ConfigError(
                f'{name} was trained with model.backbone.{key} = {before.get(key)!r}, but now it is {now.get(key)!r}, '
                'which computes something else from the same weights'
            )
    for key in ('mean', 'std'):
        old, new = ((part.get('data_preprocessor') or {}).get(key) for part in (trained, ours))
        if old and new and (len(old) != len(new) or any(abs(a - b) > 1e-3 for a, b in zip(old, new))):
            print_log(
                f'{name} was trained on images normalised by model.data_preprocessor.{key} = {old}, but now it is '
                f'{new}',
                'current',
                level=logging.WARNING,
            )


def inherited_meta(checkpoint: dict) -> dict:
    """What a checkpoint that is made of another one says as well: the config and the classes that the weights were
    trained with."""
    return {key: checkpoint['meta'][key] for key in ('cfg', 'dataset_meta') if key in checkpoint['meta']}


def _tower_name(backbone: dict) -> str:
    """Name of an open_clip tower, with the activation that it has: OpenAI's tags switch QuickGELU on under any name."""
    name, tag = str(backbone['model_name']), backbone.get('pretrained')
    config = open_clip.get_model_config(name) or {}
    quick = config.get('quick_gelu', name.endswith('-quickgelu')) or (
        isinstance(tag, str) and open_clip.get_pretrained_cfg(name, tag).get('quick_gelu', False)
    )
    return re.sub('-quickgelu$', '', name) + ('-quickgelu' if quick else '')
