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
    """The text of a UTF-8 file, line ends as ``\\n``, without the byte-order mark that Windows programs write; or of
    UTF-16 with such a mark.

    Raises:
        MissingFileError, ConfigError: There is no such file, or it is no such text; with its path.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise MissingFileError(f'there is no file {str(path)!r}')
    raw = path.read_bytes()
    encoding = 'utf-16' if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else 'utf-8-sig'
    try:
        return raw.decode(encoding).replace('\r\n', '\n').replace('\r', '\n')
    except UnicodeDecodeError as error:
        raise ConfigError(f'{path} is no UTF-8 text ({error}): save it as UTF-8') from None


def read_names(path: str | Path) -> list[str]:
    """Class names of a text file with one per line; blank lines do not count.

    Raises:
        MissingFileError, ConfigError: No such file; no names in it, or names with commas or numbers around them, with
            the line.
    """
    lines = {number: line.strip() for number, line in enumerate(read_text(path).split('\n'), start=1) if line.strip()}
    if not lines:
        raise ConfigError(f'{path} is empty: it must hold one class name per line')
    for number, line in lines.items():
        if line.endswith((',', ';')) or (len(lines) == 1 and ',' in line):
            raise ConfigError(
                f'{path}, line {number}: {line!r} is more than a class name: write one name per line, without commas '
                'around it'
            )
    numbered = [re.match(r'(\d+)\s*[,;:\t]', line) for line in lines.values()]
    if (
        len(lines) > 1
        and all(numbered)
        and [int(match[1]) - int(numbered[0][1]) for match in numbered] == list(range(len(lines)))
    ):
        first = next(iter(lines))
        raise ConfigError(
            f'{path}, line {first}: {lines[first]!r} begins with the number of the class: write one name per line, in '
            'the order of the numbers and without them'
        )
    return class_names(lines.values(), str(path))


def class_names(names: Iterable[str], where: str) -> list[str]:
    """Names in composed form; a warning for those that stand twice, a ConfigError for one without a letter or a sign."""
    names = [composed(str(name)) for name in names]
    empty = [number for number, name in enumerate(names, start=1) if not name.strip()]
    if empty:
        raise ConfigError(f'{where}: class name {empty[0]} of {len(names)} is empty')
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        print_log(
            f'{where}: {len(twice)} class names stand twice ({", ".join(twice[:5])}): by their names these classes '
            'cannot be told apart.',
            'current',
            level=logging.WARNING,
        )
    return names


def composed(name: str) -> str:
    """A name in Unicode's composed form (NFC): Macs store the é of a file name as an e and an accent."""
    return unicodedata.normalize('NFC', name)


def plain_name(name: str) -> str:
    """A name without case, and with a single space for punctuation: 'Sports_Car' is 'sports car'. 'C++' keeps its
    signs."""
    name = composed(name).casefold()
    kept = (
        char if unicodedata.category(char)[0] in 'LMN' or unicodedata.category(char) in ('Sm', 'So', 'Sc') else ' '
        for char in name
    )
    return ' '.join(''.join(kept).split()) or name


def in_order(names: Iterable[str]) -> list[str]:
    """Sorted by composed form; where all have a number after the same beginning, by that number: '2' comes before '10'."""
    names = sorted(names, key=composed)
    numbered = [re.match(r'(\D*)(\d+)', name) for name in names]
    if not all(numbered) or len({match[1] for match in numbered}) > 1:
        return names
    return [name for _, name in sorted(zip(numbered, names), key=lambda pair: int(pair[0][2]))]


def first_difference(ours: Sequence[str], theirs: Sequence[str]) -> int | None:
    """The first label whose names differ, but for case and punctuation; None where there is none."""
    ours, theirs = list(map(plain_name, ours)), list(map(plain_name, theirs))
    return next(
        (label for label, (a, b) in enumerate(zip(ours, theirs)) if a != b),
        None if len(ours) == len(theirs) else min(len(ours), len(theirs)),
    )
