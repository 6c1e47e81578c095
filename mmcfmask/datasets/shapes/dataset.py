"""A split of the built-in benchmark as a dataset."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from mmpretrain.datasets import BaseDataset
from mmpretrain.registry import DATASETS

from ...errors import ConfigError
from ...ranges import Count, Seed
from .rendering import render
from .tables import IMAGE_SIZE, SHAPES_CLASSES, SPLIT_SIZES, SPLITS


@DATASETS.register_module()
class ShapesDataset(BaseDataset):
    """One split of the built-in benchmark, rendered when the dataset is built.

    Before the pipeline (usually just ``PackInputs``), every item is a dict with ``img`` ((64, 64, 3) RGB uint8),
    ``gt_label`` (int), ``gt_mask`` ((64, 64) bool, the object), ``img_shape``, ``ori_shape`` and ``sample_idx``. Images
    are RGB, so the data preprocessor needs ``to_rgb=False``.

    Args:
        split: 'pretrain' (everything independent, all styles), 'train', 'val', 'test' (photo-like, the background tied
            to the class), or a shift: 'v2', 'r', 'sketch', 'a'.
        size: Number of images, by default ``SPLIT_SIZES[split]``. Classes alternate, so any multiple of 10 is balanced,
            and a smaller set is the beginning of a larger one.
        seed: Another seed gives an independent draw of the split.
        pipeline: Transforms of an item.
        test_mode: As in :class:`mmengine.dataset.BaseDataset`.

    Raises:
        ConfigError: Unknown split, or a size below 1.
    """

    METAINFO = dict(classes=SHAPES_CLASSES)

    def __init__(
        self,
        split: Literal[tuple(SPLITS)] = 'train',
        size: Count | None = None,
        seed: Seed = 0,
        pipeline: Sequence = (),
        test_mode: bool = False,
        **kwargs,
    ):
        if split not in SPLITS:
            raise ConfigError(f'ShapesDataset: unknown split {split!r}, choose one of {", ".join(SPLITS)}')
        size = SPLIT_SIZES[split] if size is None else size
        if size < 1:
            raise ConfigError(f'ShapesDataset: size must be at least 1, got {size}')
        self.split, self.size, self.seed = split, size, seed
        super().__init__(ann_file='', pipeline=pipeline, test_mode=test_mode, **kwargs)

    def load_data_list(self) -> list[dict]:
        """Render the split. Pixels stay in two arrays, so that the list of items is small to copy and serialise."""
        self.images = np.empty((self.size, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
        self.masks = np.empty((self.size, IMAGE_SIZE, IMAGE_SIZE), bool)
        data_list = []
        for index in range(self.size):
            self.images[index], self.masks[index], scene = render(self.split, self.seed, index)
            data_list.append(dict(index=index, gt_label=scene.label))
        return data_list

    def get_data_info(self, idx: int) -> dict:
        """The item before the pipeline; its arrays are copies."""
        info = super().get_data_info(idx)
        index = info.pop('index')
        shape = (IMAGE_SIZE, IMAGE_SIZE)
        return dict(
            info, img=self.images[index].copy(), gt_mask=self.masks[index].copy(), img_shape=shape, ori_shape=shape
        )

    def image_keys(self) -> list[str]:
        """A key for every image that differs between splits and seeds, without rendering."""
        return [f'shapes/{self.split}/{self.seed}/{index}' for index in range(self.size)]

    def extra_repr(self) -> list[str]:
        return [f'Split: \t{self.split}', f'Seed: \t{self.seed}']
