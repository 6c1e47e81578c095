"""A split of the built-in benchmark as a dataset."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
from mmpretrain.datasets import BaseDataset
from mmpretrain.registry import DATASETS

from ...errors import ConfigError
from ...ranges import Count, Seed, SubsetSeed
from ..holdout import take_per_class
from .rendering import draw_scene, render
from .scenes import Scene, image_rng, is_on_own_background, sample_scene
from .tables import IMAGE_SIZE, SHAPES_CLASSES, SPLIT_SIZES, SPLITS

GROUP_NAMES = tuple(f'{name}, {place}' for name in SHAPES_CLASSES for place in ('own background', 'another background'))


def find_group(scene: Scene) -> int:
    """The number of a scene's group: 2 label, plus 1 if the background is none of the class's own."""
    return 2 * scene.label + (not is_on_own_background(scene))


@lru_cache(maxsize=8)
def count_groups(size: int, seed: int) -> tuple[int, ...]:
    """The number of images of every group in the first ``size`` images of the training split, without rendering."""
    counts = Counter(
        find_group(sample_scene('train', index % len(SHAPES_CLASSES), image_rng('train', seed, index)))
        for index in range(size)
    )
    return tuple(counts[group] for group in range(len(GROUP_NAMES)))


@DATASETS.register_module()
class ShapesDataset(BaseDataset):
    """One split of the built-in benchmark. An image is rendered when it is first read.

    Before the pipeline (usually just ``PackInputs``), every item is a dict with ``img`` ((64, 64, 3) RGB uint8),
    ``gt_label`` (int), ``gt_mask`` ((64, 64) bool, the object), ``group`` (int), ``img_shape``, ``ori_shape`` and
    ``sample_idx``. Images are RGB, so the data preprocessor needs ``to_rgb=False``.

    A group is a class on one of its own backgrounds or on another one. ``metainfo`` has ``group_names`` and
    ``group_sizes``, the numbers of training images of the groups, for :class:`mmcfmask.evaluation.GroupAccuracy`.

    Args:
        split: 'pretrain' (everything independent, all styles), 'train', 'val', 'test' (photo-like, the background tied
            to the class), 'groups' (photo-like, half of the images on another class's background), or a shift: 'v2',
            'r', 'sketch', 'a'.
        size: Number of images, by default ``SPLIT_SIZES[split]``. Classes alternate, so any multiple of 10 (of
            'groups': 20) is balanced, and a smaller set is the beginning of a larger one.
        seed: Another seed gives an independent draw of the split.
        train_size: Number of training images (of this seed) that ``group_sizes`` counts.
        per_class: Number of images to keep of every class among the ``size`` images, whatever their backgrounds.
            Defaults to None: all.
        subset_seed: Seed of ``per_class``; ``'run'`` is the seed of the run. A smaller draw is part of a larger one.
        pipeline: Transforms of an item.
        test_mode: As in :class:`mmengine.dataset.BaseDataset`.

    Raises:
        ConfigError: Unknown split, a size below 1, or fewer than ``per_class`` images of a class.
    """

    METAINFO = dict(classes=SHAPES_CLASSES)

    def __init__(
        self,
        split: Literal[tuple(SPLITS)] = 'train',
        size: Count | None = None,
        seed: Seed = 0,
        train_size: Count = 2000,
        per_class: Count | None = None,
        subset_seed: SubsetSeed = 0,
        pipeline: Sequence = (),
        test_mode: bool = False,
        **kwargs,
    ):
        if split not in SPLITS:
            raise ConfigError(f'ShapesDataset: unknown split {split!r}, choose one of {", ".join(SPLITS)}')
        size = SPLIT_SIZES[split] if size is None else size
        if size < 1:
            raise ConfigError(f'ShapesDataset: size must be at least 1, got {size}')
        if train_size < 1:
            raise ConfigError(f'ShapesDataset: train_size must be at least 1, got {train_size}')
        if per_class is not None and per_class < 1:
            raise ConfigError(f'per_class={per_class} must be at least 1.')
        self.split, self.size, self.seed = split, size, seed
        self.per_class, self.subset_seed = per_class, subset_seed
        groups = dict(group_names=GROUP_NAMES, group_sizes=count_groups(train_size, seed))
        metainfo = {**groups, **(kwargs.pop('metainfo', None) or {})}
        super().__init__(ann_file='', pipeline=pipeline, test_mode=test_mode, metainfo=metainfo, **kwargs)

    def load_data_list(self) -> list[dict]:
        """Draw the scenes of the split. Each is rendered when it is first read, and its pixels are kept."""
        self._images = np.empty((self.size, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
        self._masks = np.empty((self.size, IMAGE_SIZE, IMAGE_SIZE), bool)
        self._rendered = np.zeros(self.size, bool)
        scenes = ((index, draw_scene(self.split, self.seed, index)[0]) for index in self.choose())
        return [dict(index=index, gt_label=scene.label, group=find_group(scene)) for index, scene in scenes]

    def choose(self) -> list[int]:
        """The numbers of the images that are used, in order."""
        if self.per_class is None:
            return list(range(self.size))
        classes = len(SHAPES_CLASSES)  # they alternate
        numbers = {name: range(label, self.size, classes) for label, name in enumerate(SHAPES_CLASSES)}
        images = {name: [f'{self.split}/{self.seed}/{index}' for index in of] for name, of in numbers.items()}
        drawn = take_per_class(images, self.per_class, self.subset_seed)
        return sorted(int(key.rpartition('/')[2]) for keys in drawn.values() for key in keys)

    def get_data_info(self, idx: int) -> dict:
        """The item before the pipeline; its arrays are copies."""
        info = super().get_data_info(idx)
        index = info.pop('index')
        if not self._rendered[index]:
            self._images[index], self._masks[index], _ = render(self.split, self.seed, index)
            self._rendered[index] = True
        shape = (IMAGE_SIZE, IMAGE_SIZE)
        return dict(
            info, img=self._images[index].copy(), gt_mask=self._masks[index].copy(), img_shape=shape, ori_shape=shape
        )

    def image_keys(self) -> list[str]:
        """A key for every image that differs between splits and seeds, without rendering."""
        return [f'shapes/{self.split}/{self.seed}/{index}' for index in self.choose()]

    def extra_repr(self) -> list[str]:
        return [f'Split: \t{self.split}', f'Seed: \t{self.seed}', f'Images per class: \t{self.per_class}']
