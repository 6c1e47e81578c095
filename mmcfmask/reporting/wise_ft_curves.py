"""WiSE-FT curves of tested runs: the ``wise_ft.json`` beside a ``metrics.json`` of ``tools/wise_ft.py``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import NamedTuple

from ..errors import ConfigError
from .runs import Run

FILE_NAME = 'wise_ft.json'


class CurvePoint(NamedTuple):
    """Top-1 accuracies in percent at one α, averaged over seeds: ``{set: accuracy}``."""

    alpha: float
    accuracies: Mapping[str, float]


def find_curves(methods: Mapping[str, Sequence[Run]]) -> dict[str, list[CurvePoint]]:
    """``{method: points in the order of α}`` of the methods whose every run has a curve, at the α that all runs have.

    Raises:
        ConfigError: A file is not one of tools/wise_ft.py.
    """
    curves = {}
    for method, runs in methods.items():
        files = [run.path.parent / FILE_NAME for run in runs]
        if not all(file.is_file() for file in files):
            continue
        lines = [read_curve(file) for file in files]
        alphas = sorted(set(lines[0]).intersection(*lines[1:]))
        points = [
            CurvePoint(alpha, {name: mean(line[alpha][name] for line in lines) for name in lines[0][alpha]})
            for alpha in alphas
            if all(line[alpha].keys() == lines[0][alpha].keys() for line in lines)
        ]
        if len(points) > 1:
            curves[method] = points
    return curves


def read_curve(path: Path) -> dict[float, dict[str, float]]:
    """``{α: {set: top-1 accuracy}}``.

    Raises:
        ConfigError: The file is not one of tools/wise_ft.py.
    """
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
        return {
            float(point['alpha']): {
                name: float(point['metrics'][f'{name}/top1'])
                for name in content['sets']
                if f'{name}/top1' in point['metrics']
            }
            for point in content['line']
        }
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(f'{path}: not a file of tools/wise_ft.py ({error}); run it again, or move the file') from None
