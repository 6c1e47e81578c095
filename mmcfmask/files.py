"""Every file is written under a temporary name and takes its place in one step: whoever reads it finds the old one or the new one whole."""
from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from .errors import StorageError

# errno to what to do about it.
ADVICE = {
    errno.ENOSPC: 'the disk is full: free some space, or write elsewhere',
    errno.EDQUOT: 'your disk quota is used up: free some space, or write elsewhere',
    errno.EACCES: 'you may not write there: change the permissions, or write elsewhere',
    errno.EPERM: 'you may not write there: change the permissions, or write elsewhere',
    errno.EROFS: 'it is on a read-only disk: write elsewhere',
    errno.ENAMETOOLONG: 'the name is too long: choose a shorter one',
}


@contextmanager
def atomic_write(path: str | os.PathLike, mode: str = 'wb', **kwargs) -> Iterator[IO]:
    """Open a file for writing that replaces ``path`` when the context ends, after all of it is on the disk.

    Where the context is left by an exception, or the process is killed, ``path`` stays as it was. Folders are made as needed. The
    temporary name is ``.<name>.<pid>.part``, in the same folder; only a killed process leaves one behind.

    Args:
        path: The file to write.
        mode (str): 'wb' or 'w'.
        **kwargs: Those of ``open``; text is UTF-8.

    Raises:
        StorageError: It cannot be written; the message names ``path`` and what to do.
    """
    path = Path(path)
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.part')
    if 'b' not in mode:
        kwargs.setdefault('encoding', 'utf-8')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, mode, **kwargs) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        raise storage_error(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def storage_error(path: str | os.PathLike, error: OSError) -> StorageError:
    """The error for a file that cannot be written, with its path and what to do."""
    if isinstance(error, StorageError):
        return error
    return StorageError(f'cannot write {os.fspath(path)!r}: {ADVICE.get(error.errno) or error.strerror or error}')


def sync_folder(folder: str | os.PathLike) -> None:
    """Let a new name in a folder survive a power failure, where the file system can."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a text file; see :func:`atomic_write`. Names that are no UTF-8 (surrogates) are written as the bytes they stand for."""
    with atomic_write(path, 'w', errors='surrogateescape', newline='') as file:
        file.write(text)


def write_json(path: str | os.PathLike, value, indent: int | None = 2) -> None:
    """Write a JSON file; see :func:`atomic_write`. Characters that are no UTF-8 are written as escapes, as JSON allows."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        text = json.dumps(value, indent=indent)
    write_text(path, text + '\n')
