"""Training that goes on where it was killed, and testing on several sets in one run."""
from __future__ import annotations

from itertools import islice

import torch
from mmengine.dataset import DefaultSampler
from mmengine.device import get_device
from mmengine.runner import BaseLoop, EpochBasedTrainLoop, TestLoop
from mmpretrain.registry import DATA_SAMPLERS, LOOPS


@DATA_SAMPLERS.register_module()
class ResumableSampler(DefaultSampler):
    """mmengine's ``DefaultSampler`` whose next pass may start in the middle.

    Attributes:
        start (int): Number of this process's samples to leave out of the next pass; reset to 0 by it.
    """
    start = 0

    def __iter__(self):
        start, self.start = self.start, 0
        return islice(super().__iter__(), start, None)


@LOOPS.register_module()
class ResumableEpochLoop(EpochBasedTrainLoop):
    """mmengine's ``EpochBasedTrainLoop`` that resumes inside an epoch: batches already seen are skipped without being decoded.

    Needs a :class:`ResumableSampler`.
    """

    def __init__(self, runner, dataloader, *args, **kwargs) -> None:
        super().__init__(runner, dataloader, *args, **kwargs)
        if len(self.dataloader) == 0:
            raise ValueError(f'the training set has {len(self.dataloader.dataset)} images, fewer than one batch of '
                             f'{self.dataloader.batch_size} per process: lower train_dataloader.batch_size')
        if not isinstance(self.dataloader.sampler, ResumableSampler):
            raise TypeError('ResumableEpochLoop needs train_dataloader.sampler.type="ResumableSampler"')

    def run_epoch(self) -> None:
        """Iterate one epoch, or what is left of it."""
        done = self._iter - self._epoch * len(self.dataloader)
        self.dataloader.sampler.start = done * self.dataloader.batch_size
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        for idx, data_batch in enumerate(self.dataloader, start=done):
            self.run_iter(idx, data_batch)
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1


@LOOPS.register_module()
class MultiSetTestLoop(BaseLoop):
    """Test one model on several sets in one run: ``test_dataloader`` is a dict of named dataloaders.

    Metrics are reported as ``<set>/<metric>``, and ``ood_average/top1`` is the unweighted mean over all sets but ``id_set``.

    Args:
        runner (Runner): The runner.
        dataloader (dict[str, dict]): Dataloader config of each set.
        evaluator (dict | list): Metric configs, used for every set.
        id_set (str): The in-distribution set.
        amp (bool): bfloat16 autocast. Defaults to False.
    """

    def __init__(self, runner, dataloader: dict, evaluator: dict | list, id_set: str, amp: bool = False) -> None:
        if not dataloader or any(not isinstance(loader, dict) or 'dataset' not in loader for loader in dataloader.values()):
            raise ValueError('MultiSetTestLoop takes test_dataloader = dict(<name of set>=dict(dataset=…, …), …)')
        if id_set not in dataloader:
            raise ValueError(f'test_cfg.id_set={id_set!r} is not among the test sets {list(dataloader)}')
        self._runner = runner
        self.id_set = id_set
        self.amp = amp
        metrics = [evaluator] if isinstance(evaluator, dict) else evaluator
        self.loops = {
            name: TestLoop(runner, loader, [{**metric, 'prefix': name} for metric in metrics])
            for name, loader in dataloader.items()
        }
        self.dataloader = self.loops[id_set].dataloader  # the current one: mmengine's loggers ask for its length

    def run(self) -> dict[str, float]:
        """Test on every set; returns all metrics."""
        metrics = {}
        for name, loop in self.loops.items():
            self.dataloader = loop.dataloader
            self.runner.logger.info(f'{name}: {len(loop.dataloader.dataset)} images')
            with torch.autocast(get_device(), dtype=torch.bfloat16, enabled=self.amp):
                metrics.update(loop.run())
        shifts = [name for name in self.loops if name != self.id_set and f'{name}/top1' in metrics]
        if shifts:
            metrics['ood_average/top1'] = sum(metrics[f'{name}/top1'] for name in shifts) / len(shifts)
        return metrics
