"""Effective robustness: accuracy under a shift beyond what the accuracy in distribution predicts.

Taori et al., "Measuring Robustness to Natural Distribution Shifts in Image Classification", NeurIPS 2020. Models
trained on the same data lie near a line when both accuracies are on a logit scale (also Miller et al., "Accuracy on the
Line", ICML 2021); a model's effective robustness is its height above that line, in percentage points.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ..errors import ConfigError, MissingFileError

REFERENCE_MODELS = Path(__file__).with_name('reference_models.csv')
MIN_MODELS = 3

ReferenceModels = Mapping[str, Mapping[str, float]]


class Line(NamedTuple):
    """``logit(ood) = intercept + slope · logit(id)``.

    Attributes:
        slope, intercept: Of the least-squares fit.
        r2: Fraction of the variance of logit(ood) that the line explains, 0..1.
        models: Number of models of the fit.
        id_range: Their lowest and highest ID accuracy in percent; outside this range the line is extrapolated.
    """

    slope: float
    intercept: float
    r2: float
    models: int
    id_range: tuple[float, float]

    def predict(self, acc_id: ArrayLike) -> np.ndarray:
        """OOD accuracy in percent that the line predicts at an ID accuracy in percent; any shape."""
        return percent(self.intercept + self.slope * logit(acc_id))


def logit(accuracy: ArrayLike) -> np.ndarray:
    """``log(p / (1 - p))`` of an accuracy in percent; any shape. Infinite at 0 and 100."""
    p = np.asarray(accuracy, dtype=float) / 100
    with np.errstate(divide='ignore'):
        return np.log(p) - np.log1p(-p)


def percent(logits: ArrayLike) -> np.ndarray:
    """Inverse of :func:`logit`: an accuracy in 0..100."""
    return 50 * (1 + np.tanh(np.asarray(logits, dtype=float) / 2))  # the sigmoid, without overflow


def fit_line(acc_id: Sequence[float], acc_ood: Sequence[float]) -> Line:
    """Least squares on ``(logit(acc_id), logit(acc_ood))``.

    Args:
        acc_id, acc_ood: Accuracies in percent of the reference models, (N,), above 0 and below 100.

    Raises:
        ConfigError: Fewer than three models, an accuracy outside (0, 100), or equal ID accuracies.
    """
    id_, ood = np.asarray(acc_id, dtype=float), np.asarray(acc_ood, dtype=float)
    if id_.shape != ood.shape or id_.ndim != 1:
        raise ConfigError(
            f'acc_id and acc_ood must be lists of the same length, got shapes {id_.shape} and {ood.shape}'
        )
    if len(id_) < MIN_MODELS:
        raise ConfigError(f'a line needs at least {MIN_MODELS} models, got {len(id_)}')
    for values in (id_, ood):
        if not ((values > 0) & (values < 100)).all():
            raise ConfigError(
                f'accuracies must be above 0 and below 100 percent, got {values[~((values > 0) & (values < 100))][0]:g}'
            )
    if np.ptp(id_) == 0:
        raise ConfigError(f'all models have the same ID accuracy, {id_[0]:g}: no line')
    x, y = logit(id_), logit(ood)
    slope, intercept = np.polyfit(x, y, 1)
    spread = np.square(y - y.mean()).sum()
    r2 = 1 - np.square(y - intercept - slope * x).sum() / spread if spread > 0 else 1.0
    return Line(float(slope), float(intercept), float(r2), len(x), (float(id_.min()), float(id_.max())))


def effective_robustness(acc_id: ArrayLike, acc_ood: ArrayLike, line: Line) -> np.ndarray:
    """``acc_ood - line.predict(acc_id)`` in percentage points.

    Args:
        acc_id, acc_ood: Accuracies in percent, 0..100; any shape.
        line (Line): Of :func:`fit_line` or :func:`reference_line`.

    Example:
        >>> line = fit_line([60, 70, 80], [50, 60, 70])
        >>> round(float(effective_robustness(70, 75, line)), 1)
        15.0
    """
    return np.asarray(acc_ood, dtype=float) - line.predict(acc_id)


def read_reference_models(path: str | Path = REFERENCE_MODELS) -> dict[str, dict[str, float]]:
    """Accuracies of reference models from a CSV file.

    The header is ``model`` and names of sets; every other row is a model and its accuracies in percent, above 0 and
    below 100, left empty where not measured. Lines that start with ``#`` are comments.

    Args:
        path: The file. Defaults to the one of the package, whose first lines name the sources.

    Returns:
        dict[str, dict[str, float]]: ``{model: {set: accuracy}}``; what was not measured has no entry.

    Raises:
        MissingFileError: If there is no such file.
        ConfigError: If it is not such a table: columns missing or twice, a row of another length, a model twice, an
            accuracy that is not a number above 0 and below 100, fewer than three models. The message names the file and
            the line.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(
            f'{path}: no such file; a CSV of reference models was expected (columns: model, and one for each set)'
        )
    try:
        lines = path.read_text(encoding='utf-8-sig').splitlines()
    except UnicodeDecodeError as error:
        raise ConfigError(f'{path}: not a text file in UTF-8 ({error.reason} at byte {error.start})') from None
    rows = [
        (number, next(csv.reader([line])))
        for number, line in enumerate(lines, start=1)
        if line.strip() and line[0] != '#'
    ]
    if not rows:
        raise ConfigError(f'{path}: no header; the first row must be "model" and the names of sets')
    header = [name.strip() for name in rows[0][1]]
    where = f'{path}, line {rows[0][0]}'
    if 'model' not in header or len(header) < 3:
        raise ConfigError(
            f'{where}: the header must have "model" and at least two sets, one of them in distribution; '
            f'it has {", ".join(header)}'
        )
    if len(set(header)) < len(header) or '' in header:
        raise ConfigError(f'{where}: column names must be there once each, got {", ".join(header)}')
    models = {}
    for number, row in rows[1:]:
        where = f'{path}, line {number}'
        if len(row) != len(header):
            raise ConfigError(f'{where}: {len(row)} cells under {len(header)} columns')
        cells = {name: cell.strip() for name, cell in zip(header, row)}
        model = cells.pop('model')
        if not model or model in models:
            raise ConfigError(f'{where}: ' + (f'model {model!r} is there twice' if model else 'no name of a model'))
        models[model] = {
            name: _accuracy(cell, f'{where}: {model!r} on {name!r}') for name, cell in cells.items() if cell
        }
    if len(models) < MIN_MODELS:
        raise ConfigError(f'{path}: {len(models)} models; a line needs at least {MIN_MODELS}')
    return models


def _accuracy(cell: str, where: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not 0 < value < 100:
        raise ConfigError(
            f'{where}: accuracy must be a percentage above 0 and below 100 (empty if not measured), got {cell!r}'
        )
    return value


def measured_sets(models: ReferenceModels) -> tuple[str, ...]:
    """Names of the sets that any of the models was measured on, in order."""
    return tuple(dict.fromkeys(name for accuracies in models.values() for name in accuracies))


def reference_points(models: ReferenceModels, id_set: str, shifts: Sequence[str]) -> np.ndarray:
    """(ID accuracy, mean accuracy over the shifts) of every model that has them all, (N, 2) in percent."""
    needed = (id_set, *shifts)
    have = [accuracies for accuracies in models.values() if all(name in accuracies for name in needed)]
    return np.array([(a[id_set], sum(a[name] for name in shifts) / len(shifts)) for a in have], dtype=float).reshape(
        -1, 2
    )


def reference_line(models: ReferenceModels, id_set: str, shifts: Sequence[str]) -> Line | None:
    """The line of the mean accuracy over the shifts; None if the models were not measured on one of the sets.

    Raises:
        ConfigError: Fewer than three models have all the sets, or no line fits.
    """
    if not {id_set, *shifts} <= set(measured_sets(models)):
        return None
    try:
        return fit_line(*reference_points(models, id_set, shifts).T)
    except ValueError as error:
        raise ConfigError(f'reference models with accuracies on {", ".join((id_set, *shifts))}: {error}') from None
