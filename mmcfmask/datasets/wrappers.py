"""Data sets inside wrappers that repeat, balance, select, join or cache them: their configs, and the built ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def inner_configs(cfg: Any) -> Iterator[Any]:
    """The configs inside a wrapper of any depth, in its order; a config that is no wrapper itself."""
    inside = [cfg['dataset']] if 'dataset' in cfg else cfg.get('datasets')
    if not isinstance(inside, (list, tuple)):
        yield cfg
        return
    for part in inside:
        if isinstance(part, Mapping):
            yield from inner_configs(part)


def inner_datasets(dataset: Any) -> Iterator[Any]:
    """The data sets inside a wrapper of any depth, in its order; a data set that is no wrapper itself."""
    own = vars(dataset)
    inside = [own['dataset']] if 'dataset' in own else own.get('datasets')
    if inside is None:
        yield dataset
        return
    for part in inside:
        yield from inner_datasets(part)
