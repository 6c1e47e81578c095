"""Validation and test on several sets."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.evaluator import Evaluator
from mmengine.runner import BaseLoop, TestLoop
from mmpretrain.registry import LOOPS
from torch.utils.data import DataLoader

from ..datasets import MissingSetError
from ..errors import ConfigError
from ..evaluation.set_evaluator import SetEvaluator
from ..files import check_file_name
from ..models import CounterfactualClassifier
from ..models.inference.transfer import build_transfers
from .hooks import unwrapped


class ChainedLoaders:
    """The dataloaders of several sets, as one for mmengine's hooks and logs. Its length is the sum of all, so progress
    and remaining time are of the whole run. Any other attribute is the current loader's."""

    def __init__(self, loaders: dict[str, DataLoader]) -> None:
        self.loaders = loaders
        self.current = next(iter(loaders.values()))

    def __len__(self) -> int:
        return sum(map(len, self.loaders.values()))

    def __getattr__(self, name: str):
        if name == 'current':  # not set yet in a copy
            raise AttributeError(name)
        return getattr(self.current, name)

    def __iter__(self) -> Iterator[tuple[str, Iterator]]:
        """Yield (name, iterator over batches) of every set, in order.

        The workers of a set start when the previous set's workers read their last batches, so the device does not wait
        for the first batch of every set. They do not start earlier, because two sets would compete for the cores.
        """
        started: dict[str, Iterator] = {}
        names = list(self.loaders)

        def batches(name: str, following: str | None) -> Iterator:
            loader = self.loaders[name]
            iterator = started.pop(name, None) or iter(loader)
            almost_done = max(len(loader) - loader.num_workers, 1)
            for done, batch in enumerate(iterator, start=1):
                if done == almost_done and following is not None:
                    started[following] = iter(self.loaders[following])
                yield batch

        for name, following in zip(names, [*names[1:], None]):
            self.current = self.loaders[name]
            yield name, batches(name, following)


def lower_priority(worker_id: int) -> None:
    """Let this data worker run when the forward pass leaves a core free (``worker_init_fn``).

    Without a GPU both share the cores, and all threads of torch wait for the one whose core a worker took. With a lower
    priority the workers fill their queue between two forward passes.
    """
    os.nice(19)


class MultiSetLoop(BaseLoop):
    """The base of :class:`MultiSetTestLoop` and :class:`MultiSetValLoop`.

    Attributes:
        loaders (dict[str, DataLoader]): The sets that run: the ID set first, then the shifts.
        missing (dict[str, str]): The missing sets, each with the reason.
        results (dict[str, dict]): After ``run``, for every set: ``metrics`` (without the name of the set), ``details``
            (of its metrics; on the main process) and ``speed``: ``images_per_second``, and the seconds spent on
            ``data`` (waiting for batches), ``forward`` and ``metric``.
    """

    mode: str

    def __init__(
        self,
        runner,
        dataloader: dict,
        evaluator: dict | list,
        id_set: str,
        shifts: Sequence[str] | None = None,
        skip_missing: bool | Sequence[str] = False,
        amp: bool = False,
        keep_predictions: bool = False,
    ) -> None:
        names = [id_set, *choose_shifts(dataloader, id_set, shifts, self.mode)]
        self._runner = runner
        self.id_set = id_set
        self.amp = amp
        self.loaders, self.missing = {}, {}
        self.results: dict[str, dict] = {}
        for name in names:
            try:
                self.loaders[name] = self._build_loader(name, dataloader[name])
            except MissingSetError as error:
                if not may_be_missing(name, skip_missing):
                    raise MissingSetError(f'{self.mode}_dataloader[{name!r}]: {error}') from None
                self.missing[name] = str(error)
        if not self.loaders:
            raise MissingSetError(
                'none of the sets was found:\n' + '\n'.join(f'{name}: {why}' for name, why in self.missing.items())
            )
        self.evaluators = {name: self._build_evaluator(name, evaluator, keep_predictions) for name in self.loaders}
        self.transfers = self._build_transfers()
        self.dataloader = ChainedLoaders(self.loaders)
        for name, why in self.missing.items():
            runner.logger.warning(f'{name} is left out: {why}')

    def _build_loader(self, name: str, cfg: dict) -> DataLoader:
        if cfg.get('drop_last'):
            raise ConfigError(
                f'{self.mode}_dataloader[{name!r}].drop_last=True would leave out images: set it to False'
            )
        if get_device() == 'cpu':  # torch warns of pinned memory without a device
            cfg = {'worker_init_fn': dict(type=lower_priority), **cfg, 'pin_memory': False}
        diff_rank_seed = self.runner._randomness_cfg.get('diff_rank_seed', False)
        return self.runner.build_dataloader(cfg, seed=self.runner.seed, diff_rank_seed=diff_rank_seed)

    def _build_transfers(self) -> dict:
        """What answers for the sets with classes of their own, while the model still has its pretrained weights."""
        metainfo = {name: loader.dataset.metainfo for name, loader in self.loaders.items()}
        sets = {name: info for name, info in metainfo.items() if info.get('class_weights')}
        model = unwrapped(self.runner.model)
        if sets and not isinstance(model, CounterfactualClassifier):
            raise ConfigError(
                f'{next(iter(sets))} is a ZeroShotDataset, which only a CounterfactualClassifier can be tested on'
            )
        return build_transfers(model, sets) if sets else {}

    @contextmanager
    def _answering(self, name: str) -> Iterator[None]:
        """Inside the context, the model answers with the classes of a set."""
        if name not in self.transfers:
            yield
            return
        model = unwrapped(self.runner.model)
        model.answer_with(self.transfers[name])
        try:
            yield
        finally:
            model.answer_with(None)

    def _build_evaluator(
        self, name: str, cfg: dict | list, keep_predictions: bool = False, prefix: str = ''
    ) -> Evaluator:
        metrics = list_metrics(name, cfg, self.mode)
        evaluator = SetEvaluator([{**metric, 'prefix': prefix + name} for metric in metrics])
        evaluator.dataset_meta = self.loaders[name].dataset.metainfo
        if keep_predictions:
            keeping = [metric for metric in evaluator.metrics if hasattr(metric, 'keep_predictions')]
            if not keeping:
                raise ConfigError(f'the metrics of {name} keep no predictions for single images: use ShiftAccuracy')
            keeping[0].keep_predictions = True
        return evaluator

    def run(self) -> dict[str, float]:
        """Evaluate on every set; returns all metrics, as ``<set>/<metric>``."""
        self._call('before')
        self._call('before', '_epoch')
        self.runner.model.eval()
        metrics: dict[str, float] = {}
        done = 0
        for name, batches in self.dataloader:
            with self._answering(name):
                metrics.update(self._run_set(name, batches, done))
            done += len(self.loaders[name])
        metrics.update(self._averages(metrics))
        self._call('after', '_epoch', metrics=self._logged(metrics))
        self._call('after')
        return metrics

    def _call(self, when: str, what: str = '', **kwargs) -> None:
        self.runner.call_hook(f'{when}_{self.mode}{what}', **kwargs)

    def _run_set(self, name: str, batches: Iterator, done: int) -> dict[str, float]:
        images = len(self.loaders[name].dataset)
        self.runner.logger.info(f'{name}: {images} images')
        clock = Clock()
        for idx, batch in enumerate(batches, start=done):
            clock.lap('data')
            self._call('before', '_iter', batch_idx=idx, data_batch=batch)
            clock.lap('other')
            outputs = self._run_batch(name, batch, clock)
            self._call('after', '_iter', batch_idx=idx, data_batch=batch, outputs=outputs)
            clock.lap('other')
        metrics = self._evaluate(name, images)
        clock.lap('metric')
        speed = dict(
            images_per_second=images / clock.total,
            **{part: clock.seconds[part] for part in ('data', 'forward', 'metric')},
        )
        self.results[name]['speed'] = speed
        self.runner.logger.info(
            f'{name}: {clock.total:.1f} s, {speed["images_per_second"]:.1f} images/s '
            f'(data {speed["data"]:.1f} s, forward {speed["forward"]:.1f} s, metric {speed["metric"]:.1f} s)'
        )
        return metrics

    @torch.inference_mode()
    def _run_batch(self, name: str, batch, clock: Clock) -> list:
        with torch.autocast(get_device(), dtype=torch.bfloat16, enabled=self.amp):
            outputs = getattr(self.runner.model, f'{self.mode}_step')(batch)
        clock.lap('forward')
        self.evaluators[name].process(data_samples=outputs, data_batch=batch)
        clock.lap('metric')
        return outputs

    def _evaluate(self, name: str, images: int) -> dict[str, float]:
        metrics, others = split_metrics(self.evaluators[name].evaluate(images))
        self.results[name] = dict(
            metrics={key.partition('/')[2]: value for key, value in metrics.items()},
            details={
                **{key.partition('/')[2]: value for key, value in others.items()},
                **self._details(self.evaluators[name]),
            },
        )
        return metrics

    @staticmethod
    def _details(evaluator: Evaluator) -> dict:
        details: dict = {}
        for metric in evaluator.metrics:
            details.update(getattr(metric, 'details', {}))
        return details

    @property
    def averaged(self) -> list[str]:
        """The shifts in the mean ``ood_average``: those that ran and have a ``top1``. A set with groups is none."""
        metrics = {name: result['metrics'] for name, result in self.results.items() if name != self.id_set}
        return [name for name, values in metrics.items() if 'top1' in values and 'worst_group' not in values]

    def ood_average(self, results: dict[str, dict]) -> float:
        """Return the unweighted mean of ``top1`` over :attr:`averaged`, for results as in :attr:`results`."""
        return sum(results[name]['metrics']['top1'] for name in self.averaged) / len(self.averaged)

    def _logged(self, metrics: dict[str, float]) -> dict[str, float]:
        """Return the metrics that hooks see."""
        return metrics

    def _averages(self, metrics: dict[str, float]) -> dict[str, float]:
        if not self.averaged:
            return {}
        self.runner.logger.info(f'ood_average/top1 is the mean over {", ".join(self.averaged)}')
        return {'ood_average/top1': self.ood_average(self.results)}


@LOOPS.register_module()
class MultiSetTestLoop(MultiSetLoop):
    """Test one model on several sets in one run: ``test_dataloader`` is a dict of named dataloaders.

    Metrics are named ``<set>/<metric>``; ``ood_average/top1`` is the unweighted mean over the shifts that ran; sets
    with groups (:class:`mmcfmask.evaluation.GroupAccuracy`) are none.

    Args:
        runner (Runner): The runner.
        dataloader (dict[str, dict]): Dataloader config of each set.
        evaluator (dict | list): Metric configs, used for every set. Or ``dict(evaluators={<set>: dict or list, …}, …)``
            for sets with their own metrics; the keys beside ``evaluators`` are the metric of all others.
        id_set (str): The in-distribution set; it always runs, first.
        shifts (Sequence[str], optional): The other sets to run. Defaults to None: all.
        skip_missing (bool | Sequence[str]): Leave out sets with missing data
            (:class:`mmcfmask.datasets.MissingSetError`), with a warning; or the names of those that may be missing.
            Any other missing set is an error. Defaults to False.
        amp (bool): bfloat16 autocast. Defaults to False.
        keep_predictions (bool): Keep the prediction for every image (:class:`mmcfmask.evaluation.ShiftAccuracy`).
            Defaults to False.

    Raises:
        ConfigError: Unknown sets, a set without metrics.
        MissingSetError: A set is missing that may not be, or all sets are missing.
    """

    mode = 'test'

    def _build_loader(self, name: str, cfg: dict) -> DataLoader:
        # A set is read once, so its workers end with it.
        return super()._build_loader(name, {**cfg, 'persistent_workers': False})


@LOOPS.register_module()
class MultiSetValLoop(MultiSetLoop):
    """Validate on several sets during training: ``val_dataloader`` is a dict of named dataloaders.

    Arguments and errors are the same as for :class:`MultiSetTestLoop`. No shift may choose anything: a
    ``CheckpointHook.save_best`` or ``monitor`` (early stopping, learning rate) that names a shift or ``ood_average`` is
    an error. With ``persistent_workers=True`` the workers of a set stay, idle, from one validation to the next.
    """

    mode = 'val'

    def __init__(self, runner, dataloader: dict, evaluator: dict | list, id_set: str, *args, **kwargs) -> None:
        refuse_choice_by_shift([runner.hooks, runner.param_schedulers], id_set, list(dataloader))
        super().__init__(runner, dataloader, evaluator, id_set, *args, **kwargs)
        if id_set in self.missing:
            raise MissingSetError(f'the in-distribution validation set {id_set!r} is missing: {self.missing[id_set]}')


@LOOPS.register_module()
class OneSetTestLoop(TestLoop):
    """mmengine's TestLoop for one set of a :class:`MultiSetTestLoop`: for programs that know one test set
    (:mod:`.one_set`). Metrics of mmpretrain judge by the classes of the set, as there.

    Raises:
        ConfigError: The set brings classes and class embeddings of its own, which only MultiSetTestLoop can answer.
    """

    def __init__(self, runner, dataloader: dict, evaluator: dict | list, **kwargs) -> None:
        super().__init__(runner, dataloader, SetEvaluator(evaluator), **kwargs)
        if self.dataloader.dataset.metainfo.get('class_weights'):
            raise ConfigError('a ZeroShotDataset can be tested by MultiSetTestLoop alone: choose another one_test_set')


class Clock:
    """Measure where the time goes: :meth:`lap` adds the time since its last call to a part."""

    def __init__(self) -> None:
        self.start = self.last = time.perf_counter()
        self.seconds: dict[str, float] = defaultdict(float)

    def lap(self, part: str) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # else the forward pass would count where its result is first used
        now = time.perf_counter()
        self.seconds[part] += now - self.last
        self.last = now

    @property
    def total(self) -> float:
        return self.last - self.start


def split_metrics(metrics: dict) -> tuple[dict[str, float], dict]:
    """Split metrics into numbers, as floats, and all others, such as a confusion matrix, as lists."""
    numbers, others = {}, {}
    for key, value in metrics.items():
        values = np.asarray(value.detach().cpu() if isinstance(value, torch.Tensor) else value)
        if values.dtype.kind in 'biuf' and values.size == 1:
            numbers[key] = float(values.item())
        else:
            others[key] = values.tolist()
    return numbers, others


def may_be_missing(name: str, skip_missing: bool | Sequence[str]) -> bool:
    """Whether a set may be missing; ``skip_missing`` as in :class:`MultiSetTestLoop`."""
    return skip_missing if isinstance(skip_missing, bool) else name in skip_missing


def find_sets(cfg: Config, mode: str = 'test') -> list[str] | None:
    """Return the sets of a config that a validation ('val') or a test runs, the ID set first; None without names.

    Raises:
        ConfigError: As of :func:`choose_shifts`.
    """
    loop = cfg.get(f'{mode}_cfg') or {}
    if 'id_set' not in loop:
        return None
    return [loop.id_set, *choose_shifts(cfg[f'{mode}_dataloader'], loop.id_set, loop.get('shifts'), mode)]


def choose_shifts(dataloader: dict, id_set: str, shifts: Sequence[str] | None, mode: str = 'test') -> list[str]:
    """Return the shifts to run: those in ``shifts``, or all sets except ``id_set``.

    Raises:
        ConfigError: Not a dict of dataloaders, a name that no file can have, or an unknown name.
    """
    if not dataloader or any(not isinstance(loader, dict) or 'dataset' not in loader for loader in dataloader.values()):
        raise ConfigError(
            f'{mode}_cfg.type="MultiSet…Loop" takes {mode}_dataloader = dict(<name of set>=dict(dataset=…, …), …)'
        )
    for name in dataloader:
        check_file_name(name, f'{mode}_dataloader')
    if id_set not in dataloader:
        raise ConfigError(f'{mode}_cfg.id_set={id_set!r} is not among the {mode} sets {", ".join(dataloader)}')
    known = [name for name in dataloader if name != id_set]
    if shifts is None:
        return known
    unknown = [name for name in shifts if name not in known]
    if unknown:
        hints = [
            f'{name!r} is the in-distribution set, which always runs' if name == id_set else repr(name)
            for name in unknown
        ]
        raise ConfigError(
            f'no such shift: {", ".join(hints)}; the shifts of this config are {", ".join(known) or "none"}'
        )
    return list(dict.fromkeys(shifts))


def list_metrics(name: str, evaluator: dict | list, mode: str = 'test') -> list[dict]:
    """Return the metric configs of one set; see ``evaluator`` of :class:`MultiSetTestLoop`."""
    if isinstance(evaluator, dict) and 'evaluators' in evaluator:
        shared = {key: value for key, value in evaluator.items() if key != 'evaluators'}
        evaluator = evaluator['evaluators'].get(name, shared)
        if not evaluator:
            raise ConfigError(
                f'{mode}_evaluator.evaluators has no metric for {name}: add one, or a type beside evaluators for all '
                'other sets'
            )
    return [evaluator] if isinstance(evaluator, dict) else list(evaluator)


def refuse_choice_by_shift(parts, id_set: str, sets: Sequence[str]) -> None:
    """Raise a ConfigError if a set other than ``id_set`` chooses something.

    Args:
        parts: Hooks and parameter schedulers, or their configs, in nested lists and dicts. This looks at their
            ``save_best`` (CheckpointHook) and ``monitor`` (EarlyStoppingHook, ReduceOnPlateau…).
        id_set (str): The in-distribution validation set.
        sets (Sequence[str]): All validation sets.
    """
    if isinstance(parts, (list, tuple)) or (isinstance(parts, dict) and 'type' not in parts):
        for part in parts.values() if isinstance(parts, dict) else parts:
            refuse_choice_by_shift(part, id_set, sets)
        return
    for setting in ('save_best', 'monitor'):
        keys = parts.get(setting) if isinstance(parts, dict) else getattr(parts, setting, None)
        for key in [keys] if isinstance(keys, str) else keys if isinstance(keys, (list, tuple)) else []:
            name = key.split('/')[0]
            advice = f"Choose by the in-distribution validation set: {setting}='{id_set}/top1'"
            if name != id_set and name in (*sets, 'ood_average'):
                raise ConfigError(
                    f'{setting}={key!r} would choose by a distribution shift. What is chosen on a shift is fitted to '
                    f'it, and its accuracy there no longer measures robustness. {advice}'
                )
            if setting == 'save_best' and key != 'auto' and name != id_set:
                raise ConfigError(
                    f'{setting}={key!r}: there is no such metric. Metrics are named <set>/<metric>, and the sets are '
                    f'{", ".join(sets)}. {advice}'
                )
