"""Predictions for single images, which ``tools/test.py --predictions`` writes beside the ``metrics.json`` of a run."""

from __future__ import annotations

import csv
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.progress import track

from ..errors import ConfigError
from .runs import Run

FOLDER = 'predictions'
COLUMNS = ('path', 'gt', 'pred', 'correct')


class Predictions(NamedTuple):
    """Predictions of one run for the images of one set.

    Attributes:
        paths: File of each image, or another name of it.
        labels: Names of the right classes, joined by '|'.
        predicted: Name of the predicted class.
        correct: (N,) bool.
    """

    paths: list[str]
    labels: list[str]
    predicted: list[str]
    correct: np.ndarray


class SetPredictions(NamedTuple):
    """Predictions of one method for one set: those of its first run, and which images each run has right.

    Attributes:
        first: Of the run with the lowest seed.
        seed: This seed; None if nothing was trained.
        correct: (runs, N) bool.
    """

    first: Predictions
    seed: int | None
    correct: np.ndarray


BySet = Mapping[str, Mapping[str, SetPredictions]]  # {set: {method: its predictions}}


def read_predictions(path: str | Path) -> Predictions:
    """Read one file of ``tools/test.py --predictions``.

    Raises:
        ConfigError: It lacks a column, or a value is not what it should be; the message names the file and the line.
    """
    columns: tuple[list[str], ...] = ([], [], [], [])
    with open(path, newline='', encoding='utf-8', errors='surrogateescape') as file:
        rows = csv.DictReader(file)
        try:
            if missing := [name for name in COLUMNS if name not in (rows.fieldnames or ())]:
                raise ConfigError(f'{path}: the column {missing[0]!r} is missing; test again with --predictions')
            for row in rows:
                if row['correct'] not in ('0', '1'):
                    raise ConfigError(f"{path}, line {rows.line_num}: 'correct' must be 0 or 1, got {row['correct']!r}")
                for values, name in zip(columns, COLUMNS):
                    values.append(row[name] if name == 'path' else sys.intern(row[name] or ''))
        except csv.Error as error:
            raise ConfigError(f'{path}, line {rows.line_num}: {error}; test again with --predictions') from None
    paths, labels, predicted, correct = columns
    return Predictions(paths, labels, predicted, np.array(correct) == '1')


def gather_predictions(methods: Mapping[str, Sequence[Run]]) -> tuple[dict[str, dict[str, SetPredictions]], list[str]]:
    """The predictions of the methods whose every run has them, by set, and notes on files that do not fit.

    A file is ``predictions/<set>.csv`` beside a ``metrics.json``. Files whose accuracy is another one than that of the
    run are of another test and are left out, with a note.
    """
    found: dict[str, dict[str, SetPredictions]] = {}
    notes = []
    for method, runs in track(methods.items(), 'reading predictions', transient=True):
        for name in runs[0].sets:
            files = [run.path.parent / FOLDER / f'{name}.csv' for run in runs]
            if not all(name in run.sets and file.is_file() for run, file in zip(runs, files)):
                continue
            tables = [read_predictions(file) for file in files]
            wrong = [file for run, file, table in zip(runs, files, tables) if not _fits(run.sets[name], table)]
            if wrong:
                notes.append(f'{wrong[0]} is left out: it is not of the test that wrote metrics.json.')
            elif any(table.paths != tables[0].paths for table in tables):
                notes.append(f'{method}: the predictions on {name} are left out: its runs were tested on other images.')
            else:
                correct = np.stack([table.correct for table in tables])
                found.setdefault(name, {})[method] = SetPredictions(tables[0], runs[0].seed, correct)
    return found, notes


def _fits(result: Mapping, table: Predictions) -> bool:
    accuracy = result['metrics'].get('top1')
    return bool(len(table.correct)) and accuracy is not None and abs(100 * table.correct.mean() - accuracy) < 1e-3
