"""Names of classes and folders: how they are read from text files, ordered and compared."""

from __future__ import annotations

import codecs
import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from mmengine.logging import print_log

from ..errors import ConfigError, MissingFileError


def read_text(path: str | Path) -> str:
    """The text of a UTF-8 file (with or without byte-order mark), or of a UTF-16 file with one; line ends are ``\\n``.

    Raises:
        MissingFileError: The file does not exist.
        ConfigError: The file is not such a text.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise MissingFileError(f'the file {str(path)!r} does not exist')
    raw = path.read_bytes()
    encoding = 'utf-16' if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else 'utf-8-sig'
    try:
        return raw.decode(encoding).replace('\r\n', '\n').replace('\r', '\n')
    except UnicodeDecodeError as error:
        raise ConfigError(f'{path} is not UTF-8 text ({error}): save it as UTF-8') from None


def read_names(path: str | Path) -> list[str]:
    """Class names from a text file with one name per line; blank lines do not count.

    Raises:
        MissingFileError: The file does not exist.
        ConfigError: The file holds no names, or a line holds more than a name (commas, numbers); the message names it.
    """
    lines = {number: line.strip() for number, line in enumerate(read_text(path).split('\n'), start=1) if line.strip()}
    if not lines:
        raise ConfigError(f'{path} is empty: write one class name per line')
    for number, line in lines.items():
        if line.endswith((',', ';')) or (len(lines) == 1 and ',' in line):
            raise ConfigError(
                f'{path}, line {number}: {line!r} is more than a class name: write one name per line, without commas'
            )
    numbered = [re.match(r'(\d+)\s*[,;:\t]', line) for line in lines.values()]
    if (
        len(lines) > 1
        and all(numbered)
        and [int(match[1]) - int(numbered[0][1]) for match in numbered] == list(range(len(lines)))
    ):
        first = next(iter(lines))
        raise ConfigError(
            f'{path}, line {first}: {lines[first]!r} begins with the number of the class: write one name per line, '
            'sorted by number, without the numbers'
        )
    return class_names(lines.values(), str(path))


def class_names(names: Iterable[str], where: str) -> list[str]:
    """Names in composed form. Logs a warning for duplicates; an empty name is a ConfigError."""
    names = [composed(str(name)) for name in names]
    empty = [number for number, name in enumerate(names, start=1) if not name.strip()]
    if empty:
        raise ConfigError(f'{where}: class name {empty[0]} of {len(names)} is empty')
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        print_log(
            f'{where}: {len(twice)} class names are duplicates ({", ".join(twice[:5])}): their prompts cannot tell '
            'these classes apart.',
            'current',
            level=logging.WARNING,
        )
    return names


def composed(name: str) -> str:
    """A name in Unicode's composed form (NFC). Macs store the é of a file name as an e and an accent."""
    return unicodedata.normalize('NFC', name)


def plain_name(name: str) -> str:
    """A name in lower case with single spaces in place of punctuation: 'Sports_Car' gives 'sports car'. Symbols stay:
    'C++'."""
    name = composed(name).casefold()
    kept = (
        char if unicodedata.category(char)[0] in 'LMN' or unicodedata.category(char) in ('Sm', 'So', 'Sc') else ' '
        for char in name
    )
    return ' '.join(''.join(kept).split()) or name


def in_order(names: Iterable[str]) -> list[str]:
    """Names sorted by composed form; if all have a number behind the same prefix, by that number: '2' before '10'."""
    names = sorted(names, key=composed)
    numbered = [re.match(r'(\D*)(\d+)', name) for name in names]
    if not all(numbered) or len({match[1] for match in numbered}) > 1:
        return names
    return [name for _, name in sorted(zip(numbered, names), key=lambda pair: int(pair[0][2]))]


def first_difference(ours: Sequence[str], theirs: Sequence[str]) -> int | None:
    """The first label whose names differ, apart from case and punctuation; None if all agree."""
    ours, theirs = list(map(plain_name, ours)), list(map(plain_name, theirs))
    return next(
        (label for label, (a, b) in enumerate(zip(ours, theirs)) if a != b),
        None if len(ours) == len(theirs) else min(len(ours), len(theirs)),
    )
