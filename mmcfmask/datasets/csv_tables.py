"""Tables in CSV files: rows, numbers for values, and the files that they name."""

from __future__ import annotations

import csv as csv_module
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Union

from ..errors import ConfigError
from ..messages import near_names, short_list
from .names import read_text

Value = Union[str, int]


def read_table(path: Path, columns: Sequence[str], empty: bool = False) -> list[dict[str, str]]:
    """Rows of a CSV file with a line of column names; values without spaces around them.

    Args:
        path: The file.
        columns: Those to read.
        empty: Whether values may be empty.

    Raises:
        ConfigError: No rows, a column that the file does not have, or a row without a value; the message names it.
    """
    reader = csv_module.DictReader(io.StringIO(read_text(path)), skipinitialspace=True)
    try:
        known = [name.strip() for name in reader.fieldnames or ()]
        reader.fieldnames = known
        unknown = [column for column in columns if column not in known]
        if unknown:
            raise ConfigError(
                f'{path} has no column {unknown[0]!r}; its columns are {short_list(known, 50) or "none"}.'
                f'{near_names(unknown[0], known)}'
            )
        rows = []
        for row in reader:
            values = {column: (row[column] or '').strip() for column in columns}
            lacking = [column for column, value in values.items() if not value]
            if lacking and not empty:
                raise ConfigError(f'{path}, line {reader.line_num}: there is no value of {", ".join(lacking)}.')
            rows.append(values)
    except csv_module.Error as error:
        raise ConfigError(f'{path}, line {reader.line_num}: {error}.') from None
    if not rows:
        raise ConfigError(f'{path} lists no images.')
    return rows


def number_values(values: Sequence[str], names: Sequence[str] | None, where: str) -> tuple[list[int], tuple[str, ...]]:
    """Numbers of texts, and the names of all numbers.

    Args:
        values: A column.
        names: What the numbers mean, in order. None: the distinct values, sorted; as numbers if all are.
        where: Begins error messages.

    Raises:
        ConfigError: The values are neither names, nor indices of names, nor as many as there are names.
    """
    distinct = set(values)
    ordered = in_numerical_order(distinct)
    if names is None:
        names = ordered
    names = tuple(map(str, names))
    if distinct <= set(names):
        number = {value: names.index(value) for value in distinct}
    elif all(value.isdecimal() and int(value) < len(names) for value in distinct):
        number = {value: int(value) for value in distinct}
    elif len(ordered) == len(names) and all(map(is_number, ordered)):
        number = {value: index for index, value in enumerate(ordered)}
    else:
        raise ConfigError(
            f'{where} has {len(ordered)} values ({short_list(ordered)}), but {len(names)} names are given '
            f'({short_list(names)}): texts must be among the names.'
        )
    return [number[value] for value in values], names


def is_number(text: str) -> bool:
    """Whether a text is a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def in_numerical_order(values: Iterable[str]) -> list[str]:
    """Texts in the order of the numbers that they are; in alphabetical order if one is no number."""
    values = sorted(values)
    return sorted(values, key=float) if all(map(is_number, values)) else values


def split_values(split: Value | Sequence[Value], key: str) -> tuple[str, ...]:
    """A value or several, as texts."""
    values = [split] if isinstance(split, (str, int)) else list(split)
    if not values or any(isinstance(value, bool) or not isinstance(value, (str, int)) for value in values):
        raise ConfigError(f'{key}={split!r} must be a value of the split column, or a list of values.')
    return tuple(map(str, values))


def missing_files(root: str | os.PathLike, names: Iterable[str]) -> set[str]:
    """Those of some names for which there is no file in ``root``. Lists every folder once."""
    listed: dict[str, set[str]] = {}
    missing = set()
    for name in names:
        folder, base = os.path.split(os.path.join(root, name))
        if folder not in listed:
            listed[folder] = set(os.listdir(folder)) if os.path.isdir(folder) else set()
        if base not in listed[folder]:
            missing.add(name)
    return missing
