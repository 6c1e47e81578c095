"""What was chosen by validation images, in tables: tuned values, and the metric that chose the checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .runs import Run
from .summary import Summary

USUAL = 'top1'  # the metric that chooses checkpoints unless a config says otherwise


def add_choices(summary: Summary, methods: Mapping[str, Sequence[Run]]) -> Summary:
    """Add a column for every tuned key, and one of the metric that chose the checkpoints unless all were chosen by
    accuracy; notes say how.

    Args:
        summary (Summary): A table.
        methods (Mapping): Its methods with their runs; ``tuned`` and ``selected_by`` in their files are shown.
    """
    tuned = {m: dict(runs[0].content['tuned']) for m, runs in methods.items() if runs[0].content.get('tuned')}
    keys = list(dict.fromkeys(key for part in tuned.values() for key in part['chosen']))
    labels = shorten_keys(keys)
    texts = dict(summary.texts)
    for key in keys:
        texts[labels[key]] = {m: str(part['chosen'][key]) for m, part in tuned.items() if key in part['chosen']}
    notes = describe_grids(tuned, labels) if tuned else []
    selected = {m: runs[0].content.get('selected_by') for m, runs in methods.items()}
    if any(key is not None and _last(key) != USUAL for key in selected.values()):
        texts['Chosen by'] = {method: _last(key) for method, key in selected.items() if key is not None}
        notes.append('Chosen by: the metric of the validation images that chose the checkpoint; top1 is accuracy.')
    return summary._replace(texts=texts, notes=(*summary.notes, *notes))


def describe_grids(tuned: Mapping[str, Mapping[str, Any]], labels: Mapping[str, str]) -> list[str]:
    """How the values were chosen, and which are at the edge of their grid, as notes.

    Args:
        tuned: ``{method: 'tuned' of its metrics.json}``.
        labels: Config keys to their short names.
    """
    owners = {part['method']: part for part in tuned.values()}  # several methods may share a choice
    ways: dict[str, dict[str, list[str]]] = {}
    for name, part in owners.items():
        budget = ''.join(f', {key}={value}' for key, value in part['cfg_options'].items())
        way = f'by {part["metric"]} on validation images, one training per setting (seed {part["seed"]}{budget})'
        grid = ' and '.join(f'{labels[key]} out of {", ".join(map(str, vs))}' for key, vs in part['grid'].items())
        ways.setdefault(way, {}).setdefault(grid, []).append(name)
    notes = []
    for way, grids in ways.items():
        several = len(ways) > 1 or len(grids) > 1
        texts = [f'{grid} ({", ".join(names)})' if several else grid for grid, names in grids.items()]
        notes.append(f'Chosen {way}: {"; ".join(texts)}.')
    if others := [f'{method} (of {part["method"]})' for method, part in tuned.items() if part['method'] != method]:
        notes.append(f'With the choice of another method: {", ".join(others)}.')
    edges = [f'{name} ({labels[key]} {p["chosen"][key]})' for name, p in owners.items() for key in p['at_edge']]
    if edges:
        notes.append(f'At the edge of the grid, so that a wider one may hold a better value: {", ".join(edges)}.')
    return notes


def shorten_keys(keys: Sequence[str]) -> dict[str, str]:
    """The last parts of config keys, or whole keys where several end alike."""
    last = [_last(key, '.') for key in keys]
    return {key: end if last.count(end) == 1 else key for key, end in zip(keys, last)}


def _last(key: str, separator: str = '/') -> str:
    return key.rpartition(separator)[2]
