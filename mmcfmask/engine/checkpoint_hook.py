"""Write checkpoints, delete old ones, and keep the best one."""

from __future__ import annotations

import math
import os
import re
import shutil
from numbers import Real
from pathlib import Path

import mmengine.hooks
from mmengine.dist import is_main_process
from mmpretrain.registry import HOOKS

from ..errors import ConfigError
from ..evaluation import nll_key, preference
from ..files import atomic_write, check_file_name, write_text
from .checkpoints import BEST, LAST, read_checkpoint
from .fsdp import save_checkpoint


@HOOKS.register_module(force=True)
class CheckpointHook(mmengine.hooks.CheckpointHook):
    """mmengine's ``CheckpointHook`` for runs that may be killed at any moment and resumed.

    The hook first writes a checkpoint to the disk, then its name to ``last_checkpoint``, and then deletes an older
    checkpoint. ``best.pth`` is the best checkpoint by ``save_best``, with ties decided by
    :func:`mmcfmask.evaluation.preference`. Its ``meta`` has ``epoch``, ``iter`` and
    ``best=dict(metric=…, value=…, rule=…, metrics=…)``, the last all numbers of that validation.
    Several metrics have a ``best_<metric>.pth`` each. A resumed run finds its files even if its folder was moved.

    Configs get this class by ``type='CheckpointHook'``. It takes the arguments of mmengine's hook.
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
        """Find earlier checkpoints of this run; copy the best one of a run that began in another folder."""
        info = runner.message_hub.runtime_info
        info.pop('keep_ckpt_ids', None)  # mmengine mixes the checkpoints of all hooks there
        if '://' in str(self.out_dir):
            raise ConfigError(
                f'CheckpointHook.out_dir={self.out_dir!r}: checkpoints can only be written to local folders'
            )
        super().before_train(runner)
        self.kept = self._own_steps(runner) if self.max_keep_ckpts > 0 and self._resumed_here(runner) else []
        self._remove_old()  # the run may have been killed before it did so
        if self.save_best is None:
            return
        others = [
            hook
            for hook in runner.hooks
            if isinstance(hook, CheckpointHook) and hook is not self and hook.save_best is not None
        ]
        if others:
            raise ConfigError(
                'two CheckpointHooks have save_best, but a run has one best checkpoint: give one hook a list of all '
                'metrics'
            )
        if not runner.iter:
            if is_main_process() and self.best_path(self.key_indicators[0]).is_file():
                runner.logger.warning(
                    f'{self.best_path(self.key_indicators[0])} is of an earlier run; this run will replace it'
                )
            return
        for key in self.key_indicators:
            self._find_best(runner, key)

    def _resumed_here(self, runner) -> bool:
        """Whether the run resumes from a checkpoint in its own folder; otherwise the files there are another run's."""
        start = runner._load_from  # None: mmengine finds it in the work dir
        return runner.iter > 0 and (start is None or Path(start).parent.resolve() == Path(self.out_dir).resolve())

    def _own_steps(self, runner) -> list[int]:
        """List the epochs or iterations of this hook's checkpoints in the folder. Those after the current one are
        another run's."""
        name = re.compile(re.escape(self.filename_tmpl).replace(r'\{\}', r'(\d+)'))
        found = map(name.fullmatch, os.listdir(self.out_dir) if os.path.isdir(self.out_dir) else ())
        done = runner.epoch if self.by_epoch else runner.iter
        return sorted(int(match[1]) for match in found if match and int(match[1]) <= done)

    def best_path(self, key: str) -> Path:
        """Return the path of the best checkpoint by a metric."""
        return Path(self.out_dir) / (BEST if len(self.key_indicators) == 1 else f'best_{key.replace("/", "_")}.pth')

    def _names(self, key: str) -> tuple[str, str, str]:
        """Return names in the message hub: of the best score, its file (both mmengine's), and its cross-entropy, which
        decides ties."""
        end = '' if len(self.key_indicators) == 1 else f'_{key}'
        return f'best_score{end}', f'best_ckpt{end}', f'best_nll{end}'

    def _find_best(self, runner, key: str) -> None:
        """Let the message hub of a resumed run name the best checkpoint in this work dir, or forget its score."""
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
        # The run began in another work dir.
        for path in (Path(runner._load_from or '').parent / recorded.name, recorded):
            if path.is_file() and _read_score(path) in (None, info.get(score)):
                if is_main_process():
                    with open(path, 'rb') as source, atomic_write(own) as copy:
                        shutil.copyfileobj(source, copy, 1 << 24)
                runner.message_hub.update_info(name, str(own))
                return
        runner.logger.warning(
            f'the best checkpoint so far, {recorded}, is missing: the next validation chooses a new one'
        )
        for part in (score, name, nll):
            info.pop(part, None)

    def _save_checkpoint_with_step(self, runner, step: int, meta: dict) -> None:
        name = self.filename_tmpl.format(step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        save_checkpoint(
            runner,
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
            if score in hub.runtime_info:  # without a known cross-entropy the earlier one stays
                best = preference(
                    {nll_key(key): hub.runtime_info.get(nll, -math.inf), key: hub.runtime_info[score]}, key, rule
                )
            if not found > best:
                continue
            before, path = hub.runtime_info.get(name), self.best_path(key)
            hub.update_info(score, metrics[key])
            hub.update_info(name, str(path))
            hub.update_info(nll, metrics.get(nll_key(key), -math.inf))
            numbers = {k: float(v) for k, v in metrics.items() if isinstance(v, Real) and not isinstance(v, bool)}
            chosen = dict(metric=key, value=float(metrics[key]), rule=rule, metrics=numbers)
            meta = dict(epoch=runner.epoch, iter=runner.iter, best=chosen)
            save_checkpoint(
                runner,
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
                self._remove(before)  # written under an older name

    def _remove(self, path: str) -> None:
        if self.file_backend.isfile(path):
            self.file_backend.remove(path)


def _read_score(path: Path) -> float | None:
    """Read the score in a best checkpoint."""
    try:
        return read_checkpoint(str(path))['meta']['best']['value']
    except (KeyError, TypeError, OSError, ValueError):
        return None
