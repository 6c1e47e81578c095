"""A training loop that resumes even mid-epoch."""

from __future__ import annotations

from itertools import islice

from mmengine.dataset import DefaultSampler
from mmengine.runner import EpochBasedTrainLoop
from mmpretrain.registry import DATA_SAMPLERS, LOOPS

from ..errors import ConfigError
from ..ranges import Count


@DATA_SAMPLERS.register_module()
class ResumableSampler(DefaultSampler):
    """mmengine's ``DefaultSampler`` whose next pass may start in the middle.

    Args:
        multiple (int): A pass gives this process a multiple of this number of samples and leaves out the rest, as
            ``drop_last`` does. With the samples of one optimizer step, no accumulated gradient is left over when the
            checkpoint at the end of an epoch is saved.
        **kwargs: Arguments of ``DefaultSampler``.

    Attributes:
        start (int): Number of this process's samples that the next pass skips; the pass resets it to 0.
    """

    start = 0

    def __init__(self, *args, multiple: Count = 1, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.multiple = multiple

    def __len__(self) -> int:
        return super().__len__() // self.multiple * self.multiple

    def __iter__(self):
        start, self.start = self.start, 0
        return islice(super().__iter__(), start, len(self))


@LOOPS.register_module()
class ResumableEpochLoop(EpochBasedTrainLoop):
    """mmengine's ``EpochBasedTrainLoop`` that resumes mid-epoch: it skips batches already seen without reading them.

    It needs a :class:`ResumableSampler`.
    """

    def __init__(self, runner, dataloader, *args, **kwargs) -> None:
        super().__init__(runner, dataloader, *args, **kwargs)
        if len(self.dataloader) == 0:
            step = getattr(self.dataloader.sampler, 'multiple', 1)
            what, key = (
                ('optimizer step', 'total_batch_size')
                if step > self.dataloader.batch_size
                else ('batch', 'train_dataloader.batch_size')
            )
            raise ConfigError(
                f'the training set has {len(self.dataloader.dataset)} images, fewer than one {what} of '
                f'{max(step, self.dataloader.batch_size)} per process: lower {key}'
            )
        if not isinstance(self.dataloader.sampler, ResumableSampler):
            raise ConfigError('ResumableEpochLoop needs train_dataloader.sampler.type="ResumableSampler"')

    def run(self):
        """Train. A run that was killed after an epoch begins with its validation, which may not have finished.

        Raises:
            ConfigError: A resumed run has another number of images, images per batch or processes.
        """
        before = self.runner.message_hub.runtime_info  # from the checkpoint, until mmengine's hook overwrites it
        if self._iter and {'max_iters', 'max_epochs'} <= before.keys():
            length = before['max_iters'] // before['max_epochs']
            if length != len(self.dataloader):
                raise ConfigError(
                    f'the run to resume had {length} batches per epoch and process, this one has '
                    f'{len(self.dataloader)}: resume with the same images, train_dataloader.batch_size and number of '
                    'processes, or start another run from its weights with --cfg-options load_from=…'
                )
        self.runner.call_hook('before_train')
        if self._iter and self._iter == self._epoch * len(self.dataloader):
            self._validate()
        while self._epoch < self._max_epochs and not self.stop_training:
            self.run_epoch()
            self._validate()
        self.runner.call_hook('after_train')
        return self.runner.model

    def _validate(self) -> None:
        """Validate after an epoch if it is due."""
        self._decide_current_val_interval()
        due = self._epoch % self.val_interval == 0 or self._epoch == self._max_epochs
        if self.runner.val_loop is not None and self._epoch >= self.val_begin and due:
            self.runner.val_loop.run()

    def run_epoch(self) -> None:
        """Run one epoch, or the rest of it."""
        done = self._iter - self._epoch * len(self.dataloader)
        self.dataloader.sampler.start = done * self.dataloader.batch_size
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        for idx, data_batch in enumerate(self.dataloader, start=done):
            self.run_iter(idx, data_batch)
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1
