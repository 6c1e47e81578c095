"""The order of methods and sets: as a study is configured, or as asked for."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ..errors import ConfigError
from .runs import Run, list_sets

STUDY_FILE = 'results.json'  # of a study: its methods and sets in order


class Order(NamedTuple):
    """Names in order; others follow in the order found."""

    methods: Sequence[str] = ()
    sets: Sequence[str] = ()


def read_order(folders: Iterable[Path]) -> Order:
    """The order in the ``results.json`` of the studies in some folders."""
    methods: list[str] = []
    sets: list[str] = []
    for path in sorted({path for folder in folders for path in folder.rglob(STUDY_FILE)}):
        try:
            content = json.loads(path.read_text(encoding='utf-8'))
            methods += content['methods']
            sets += content['columns']
        except (ValueError, TypeError, KeyError):  # another program's file of this name
            continue
    return Order(methods, sets)


def sort_methods(methods: Mapping[str, list[Run]], order: Order) -> dict[str, list[Run]]:
    """Put methods, and the sets of every run, into an order: the in-distribution set first."""
    known = list_sets(run for runs in methods.values() for run in runs)
    sets = dict.fromkeys([*(name for name in order.sets if name in known), *known])

    def sort_sets(run: Run) -> Run:
        names = sorted((name for name in sets if name in run.sets), key=lambda name: name != run.id_set)
        return run._replace(sets={name: run.sets[name] for name in names})

    names = dict.fromkeys([*(name for name in order.methods if name in methods), *methods])
    return {name: list(map(sort_sets, methods[name])) for name in names}


def keep_methods(methods: Mapping[str, list[Run]], names: Sequence[str]) -> dict[str, list[Run]]:
    """The named methods, in this order.

    Raises:
        ConfigError: There is no such method.
    """
    for name in names:
        if name not in methods:
            raise ConfigError(f'--methods: there is no method {name!r}, only {", ".join(methods)}')
    return {name: methods[name] for name in names}
