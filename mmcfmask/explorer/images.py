"""Images of the explorer: of the data sets of a config, and files."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.config import Config
from mmpretrain.registry import DATASETS
from torch.utils.data import Dataset

from ..datasets.images import why_unreadable
from ..engine.counterfactual_images import images_from_files, name_sets
from ..errors import ConfigError, StorageError, UserError, first_line
from ..evaluation.accuracy import head_labels

KEPT = 512  # images in memory


class Source(NamedTuple):
    """Where an image comes from.

    Attributes:
        name: A set of the config, by the names of ``--split``; without an index, an image file.
        index: Of the image in the set.
    """

    name: str
    index: int | None = None

    @property
    def words(self) -> str:
        """For people: 'test 17', or the name of the file."""
        return Path(self.name).name if self.index is None else f'{self.name} {self.index}'


class ImageShelf:
    """Reads images as the models of a config take them, and keeps the last ones.

    Args:
        cfg (Config): Its data sets are loaded when they are first asked for.

    Attributes:
        names (list[str]): The sets, those for testing first.
    """

    def __init__(self, cfg: Config) -> None:
        self.cfg = cfg
        self.sets = name_sets(cfg)
        self.names = sorted(self.sets, key=lambda name: (name != 'test', name == 'train'))
        self.item = lru_cache(KEPT)(self._item)
        self.dataset = lru_cache(None)(self._dataset)

    def _dataset(self, name: str) -> Dataset:
        """A set by its name.

        Raises:
            ConfigError: The config has no such set.
            StorageError: Its images are not on this machine, or cannot be read.
        """
        if name not in self.sets:
            raise ConfigError(f'the config has no data set {name!r}: choose {", ".join(self.names)}')
        try:
            return DATASETS.build(self.sets[name])
        except UserError:
            raise
        except (OSError, ValueError, RuntimeError) as error:
            raise StorageError(f'the data set {name} cannot be read: {first_line(error)}') from None

    def _item(self, source: Source) -> dict[str, Any]:
        """What the pipeline makes of an image: ``inputs`` (3, H, W) uint8 and ``data_samples``, and ``gt_mask`` (H, W)
        bool if the set knows the object.

        Raises:
            StorageError: The file cannot be read.
            ConfigError: The set has no such image.
        """
        if source.index is None:
            reason = why_unreadable(source.name)
            if reason:
                raise StorageError(reason.replace(source.name, Path(source.name).name))
            return images_from_files(self.cfg, [Path(source.name)])[0]
        dataset = self.dataset(source.name)
        if not 0 <= source.index < len(dataset):
            raise ConfigError(f'{source.name} has {len(dataset)} images, from 0; there is no {source.index}')
        item = dict(dataset[source.index])
        mask = dataset.get_data_info(source.index).get('gt_mask')
        if mask is not None and np.shape(mask) == tuple(item['inputs'].shape[1:]):
            item['gt_mask'] = torch.as_tensor(mask)
        return item

    def label(self, source: Source, num_classes: int) -> int | None:
        """The class of an image among the outputs of the head; None if it is not known."""
        if source.index is None:
            return None
        found = self.item(source)['data_samples'].get('gt_label')
        info = self.dataset(source.name).metainfo
        if found is None or not len(found) or 'class_weights' in info:  # these sets have classes of their own
            return None
        label = head_labels([int(found[0])], info.get('label_groups'))[0]
        return label if 0 <= label < num_classes else None

    def pick(self, name: str, num: int, page: int = 0) -> list[Source]:
        """``num`` images of a set in random order, the same every time; later pages have others."""
        order = np.random.default_rng(0).permutation(len(self.dataset(name)))
        start = page * num % len(order)
        return [Source(name, int(index)) for index in np.roll(order, -start)[:num]]
