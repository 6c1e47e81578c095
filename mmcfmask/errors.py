"""Errors that a user can mend. A tool prints them as one line; any other exception keeps its traceback."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """Something a user can mend. The message names the file, key or value, and says what to do."""


class ConfigError(UserError, ValueError):
    """A wrong value in a config, a study or the command line."""


class NumericalError(UserError, FloatingPointError):
    """A loss, a gradient or logits became NaN or infinite."""


class MissingFileError(UserError, FileNotFoundError):
    """A file or folder does not exist."""


class StorageError(UserError, OSError):
    """A file or folder cannot be read or written."""


class MemoryShortageError(UserError, MemoryError):
    """A GPU or the machine has too little memory."""


class MissingPackageError(UserError, ImportError):
    """An optional package is not installed, or too old."""


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
        reason = first_line(error) if str(error).strip() else 'its class does not take these values'
        raise ConfigError(f'{where}: {reason}') from None


def first_line(error: Exception) -> str:
    """The first line of the message of an error of a library, or its type where there is no message."""
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error).strip()
    return text.splitlines()[0] if text else type(error).__name__


@contextmanager
def one_line(where: str | None = None) -> Iterator[None]:
    """End the program with one line and exit code 1 if a :class:`UserError` is raised inside the context.

    Args:
        where (str, optional): A file or key that the line begins with, unless the message names it.
    """
    try:
        yield
    except UserError as error:
        text = error_message(error)
        raise SystemExit(f'{where}: {text}' if where and where not in text else text) from None


def error_message(error: UserError) -> str:
    """The message of an error, without the traceback that torch adds to one from a data worker."""
    text = str(error)
    return (
        text.strip().rpartition('\n')[2].partition(': ')[2]
        if re.match(r'Caught \w+ in DataLoader worker', text)
        else text
    )
