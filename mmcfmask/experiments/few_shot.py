"""Few-shot studies: every data set with K training images of every class, for several K."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mmengine.config import Config

from ..datasets.holdout import RUN_SEED
from ..engine.values import get_value
from ..errors import ConfigError
from .spec import DatasetSpec

TRAIN = 'train_dataloader.dataset'
# What learns from training images. The first is the training itself, the others make the head and the gate.
PARTS = (TRAIN, 'model.head.class_weights.dataset', 'model.knn_gate.dataset')


class PlannedSet(NamedTuple):
    """A data set of a study, all of it or a part.

    Attributes:
        dataset: Its name in the study.
        spec: What the study says of it.
        per_class: Training images of every class; None: all.
    """

    dataset: str
    spec: DatasetSpec
    per_class: int | None


def plan_sets(datasets: Mapping[str, DatasetSpec], numbers: Sequence[int]) -> dict[str, PlannedSet]:
    """The data sets of a study by the names of their folders: one, or one for every number of images per class."""
    return {
        name if number is None else f'{name}-{number}-per-class'.lstrip('-'): PlannedSet(name, spec, number)
        for name, spec in datasets.items()
        for number in numbers or [None]
    }


def few_shot_options(cfg: Config, per_class: int) -> dict[str, Any]:
    """The config values that let everything in a config that learns use the same ``per_class`` images of every class.

    Every run draws its own images, by its seed. Class means take all of them. A batch is at most as large as the
    training set, or else an epoch would have no batch.

    Args:
        cfg (Config): With all other options.
        per_class (int): Images of every class.
    """
    options: dict[str, Any] = {}
    for part in PARTS:
        if isinstance(get_value(cfg, part), dict):
            options.update({f'{part}.per_class': per_class, f'{part}.subset_seed': RUN_SEED})
    means = 'model.head.class_weights'
    if get_value(cfg, f'{means}.type') == 'prototype':
        options[f'{means}.per_class'] = min(per_class, get_value(cfg, f'{means}.per_class') or per_class)
    classes, batch = get_value(cfg, 'model.head.num_classes'), get_value(cfg, 'train_dataloader.batch_size')
    if classes and batch:
        images = per_class * classes
        options['train_dataloader.batch_size'] = batch = min(batch, images)
        if total := cfg.get('total_batch_size'):
            options['total_batch_size'] = max(batch, min(total, images) // batch * batch)
    return options


def check_no_other_subset(where: str, options: Mapping[str, Any]) -> None:
    """Raise a ConfigError if options choose a subset of the training images too."""
    for key in options:
        for part in PARTS:
            if key in (part, f'{part}.per_class', f'{part}.subset_seed', f'{part}.per_group', f'{part}.fraction'):
                raise ConfigError(f'{where}: per_class of the study chooses the training images, but so does {key}')
