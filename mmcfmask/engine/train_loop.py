"""A training loop that resumes even mid-epoch."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
from mmengine.dataset import DefaultSampler
from mmengine.runner import EpochBasedTrainLoop
from mmpretrain.registry import DATA_SAMPLERS, LOOPS

from ..datasets.shards import split_place
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
        return islice(self.order(), start, len(self))

    def order(self) -> Iterator[int]:
        """The samples of this process in this epoch."""
        return super().__iter__()


@DATA_SAMPLERS.register_module()
class ShardSampler(ResumableSampler):
    """Reads shards nearly one after the other: shuffles the shards, and then the images within a buffer.

    Every process has its own shards, up to one at each end. No image comes twice in an epoch: up to
    ``processes - 1`` images are left out, others in each epoch. For a table, a shard is a row group, which must be read
    as a whole.

    Args:
        dataset (BaseDataset): Its images lie in shards. A wrapper may repeat, balance or join such data sets.
        buffer (int): Images that are shuffled together. It should hold many shards if the images of a shard are alike.
            Defaults to 2048.
        **kwargs: Arguments of :class:`ResumableSampler`. With ``shuffle=False`` the images come in the order of the
            shards.

    Raises:
        ConfigError: The images lie in files of their own.
    """

    def __init__(self, dataset: Any, *args, buffer: Count = 2048, **kwargs) -> None:
        super().__init__(dataset, *args, **kwargs)
        self.buffer = buffer
        self.num_samples = len(dataset) // self.world_size
        places = []
        for index in range(len(dataset)):
            path = dataset.get_data_info(index).get('img_path', '')
            place = split_place(path)
            if place is None:
                raise ConfigError(
                    f'ShardSampler needs images in shards, but {path or "an image"} is not in one: use a '
                    'ResumableSampler, or pack the images with mmcfmask pack'
                )
            kind, file, sample = place
            places.append((file, 0, sample.first) if kind == 'tar' else (file, sample.first, sample.second))
        by_place = sorted(range(len(places)), key=places.__getitem__)
        starts = [
            number
            for number, index in enumerate(by_place)
            if number == 0 or places[index][:2] != places[by_place[number - 1]][:2]
        ]
        self.shards = np.split(np.array(by_place, dtype=np.int64), starts[1:])

    def order(self) -> Iterator[int]:
        """The samples of this process in this epoch."""
        if not self.shuffle:
            return iter(self._share(np.concatenate(self.shards)).tolist())
        rng = np.random.default_rng([self.seed, self.epoch])
        share = self._share(np.concatenate([self.shards[number] for number in rng.permutation(len(self.shards))]))
        for start in range(0, len(share), self.buffer):
            rng.shuffle(share[start : start + self.buffer])
        return iter(share.tolist())

    def _share(self, samples: np.ndarray) -> np.ndarray:
        return samples[self.rank * self.num_samples : (self.rank + 1) * self.num_samples]


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
        self.sampler = getattr(self.dataloader, 'sampler', None)  # none in mmpretrain's vis_scheduler
        if self.sampler is not None and not isinstance(self.sampler, ResumableSampler):
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
        if self.sampler is not None:
            self.sampler.start = done * self.dataloader.batch_size
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        for idx, data_batch in enumerate(self.dataloader, start=done):
            self.run_iter(idx, data_batch)
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1
