"""What a user did wrong or a machine could not do. A tool prints such an error as one line; any other keeps its
traceback."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """Something the user can mend; the message names the file, key or value, and what to do."""


class ConfigError(UserError, ValueError):
    """A value of a config, a study or the command line that cannot be meant."""


class NumericalError(UserError, FloatingPointError):
    """A loss, a gradient or logits that are no longer finite numbers."""


class MissingFileError(UserError, FileNotFoundError):
    """A file or folder that is not there."""


class StorageError(UserError, OSError):
    """A file or folder that cannot be read or written."""


@contextmanager
def blame(
    where: str, kinds: type[Exception] | tuple[type[Exception], ...] = (OSError, ValueError, TypeError)
) -> Iterator[None]:
    """Inside the context, an error about a value of the user becomes a :class:`UserError` that begins with ``where``.

    Args:
        where (str): The key or the file that holds the value.
        kinds: Errors that the code inside raises for bad values. All others pass unchanged.
    """
    try:
        yield
    except UserError as error:
        raise type(error)(f'{where}: {error}') from None
    except FileNotFoundError as error:
        raise MissingFileError(f'{where}: {error}') from None
    except kinds as error:
        text = str(error.args[0] if isinstance(error, KeyError) and error.args else error).strip()
        reason = text.splitlines()[0] if text else 'its class does not take these values'
        raise ConfigError(f'{where}: {reason}') from None


@contextmanager
def one_line(where: str | None = None) -> Iterator[None]:
    """Inside the context a :class:`UserError` ends the program with its message in one line, after ``where`` unless it
    names that itself, and exit code 1."""
    try:
        yield
    except UserError as error:
        text = message_of(error)
        raise SystemExit(f'{where}: {text}' if where and where not in text else text) from None


def message_of(error: UserError) -> str:
    """What an error says; around one of a data worker torch puts the worker's traceback, which is left out."""
    text = str(error)
    return (
        text.strip().rpartition('\n')[2].partition(': ')[2]
        if re.match(r'Caught \w+ in DataLoader worker', text)
        else text
    )
