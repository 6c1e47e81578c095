"""Write files atomically: under a temporary name first, so that a reader always finds the old or the new file whole."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import re
import shutil
import socket
import stat
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import IO

import torch

from .errors import ConfigError, StorageError

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

# errno to what to do about it.
ADVICE = {
    errno.ENOSPC: 'the disk is full: free some space, or write elsewhere',
    errno.EDQUOT: 'your disk quota is used up: free some space, or write elsewhere',
    errno.EFBIG: 'it is larger than files may be there: raise the limit (ulimit -f), or write elsewhere',
    errno.EACCES: 'you may not write there: change the permissions, or write elsewhere',
    errno.EPERM: 'you may not write there: change the permissions, or write elsewhere',
    errno.EROFS: 'it is on a read-only disk: write elsewhere',
    errno.ENAMETOOLONG: 'the name is too long: choose a shorter one',
}
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

HOST = re.sub(r'[^\w-]', '_', socket.gethostname().partition('.')[0])[:40] or 'host'
PART = re.compile(r'\..*\.(?P<host>[\w-]+)\.(?P<pid>\d+)-\d+\.part', re.DOTALL)
_numbers = itertools.count()
_locks: set[str] = set()


def as_path(path: str | os.PathLike | None) -> str | None:
    """Return a path as a string; None stays None."""
    return None if path is None else os.fspath(path)


@contextmanager
def atomic_write(path: str | os.PathLike, mode: str = 'wb', **kwargs) -> Iterator[IO]:
    """Open a file for writing that replaces ``path`` when the context ends, after all of it is on the disk.

    After an exception, or if the process is killed, ``path`` is unchanged. Missing folders are made. The temporary
    file ``.<name>.<host>.<pid>-<number>.part`` is in the same folder; only a killed process leaves one behind, for
    :func:`remove_leftovers`. A symbolic link still leads to the file. A path that is not an ordinary file
    (``/dev/stdout``) is written directly.

    Args:
        path: The file to write.
        mode (str): 'wb' or 'w'.
        **kwargs: Arguments of ``open``; text is UTF-8.

    Raises:
        StorageError: The file cannot be written; the message names ``path`` and what to do.
    """
    temporary = None
    if 'b' not in mode:
        kwargs.setdefault('encoding', 'utf-8')
    try:
        if _is_special(path):
            with open(path, mode, **kwargs) as file:
                yield file
            return
        target = Path(os.path.realpath(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists() and not os.access(target, os.W_OK):  # a replacement would not ask
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        name = os.fsdecode(os.fsencode(target.name)[:150])
        temporary = target.with_name(f'.{name}.{HOST}.{os.getpid()}-{next(_numbers)}.part')
        with open(temporary, mode, **kwargs) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            shutil.copymode(target, temporary)
        os.replace(temporary, target)
        sync_folder(target.parent)
    except OSError as error:
        raise storage_error(path, error) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(path: str | os.PathLike, option: str = '--out') -> Iterator[Path]:
    """Make a folder that appears when the context ends, with all that was written into it.

    After an exception, or if the process is killed, there is no folder ``path``; a killed process leaves
    ``.<name>.<host>.<pid>-<number>.part`` beside it.

    Args:
        path (str): The folder; it must be new or empty.
        option (str): What names it, for errors.

    Yields:
        Path: The folder to write into.

    Raises:
        StorageError: It is a file or not empty, or cannot be made.
    """
    target = Path(path).resolve()
    if target.is_dir() and any(target.iterdir()):
        raise StorageError(f'the folder {os.fspath(path)!r} is not empty: choose another with {option}, or delete it')
    if target.exists() and not target.is_dir():
        raise StorageError(f'{option} {os.fspath(path)!r} is a file: give the name of a folder')
    part = target.with_name(f'.{target.name}.{HOST}.{os.getpid()}-{next(_numbers)}.part')
    try:
        part.mkdir(parents=True)
    except OSError as error:
        raise storage_error(path, error) from None
    try:
        yield part
        os.replace(part, target)
        sync_folder(target.parent)
    except OSError as error:
        raise storage_error(path, error) from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _is_special(path: str | os.PathLike) -> bool:
    """Whether a path is a device, a pipe or a folder."""
    try:
        return not stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        return False


def storage_error(path: str | os.PathLike, error: OSError) -> StorageError:
    """Return the error for a file that cannot be written, with its path and what to do."""
    if isinstance(error, StorageError):
        return error
    return StorageError(f'cannot write {os.fspath(path)!r}: {ADVICE.get(error.errno) or error.strerror or error}')


@contextmanager
def explained(folder: str | os.PathLike) -> Iterator[None]:
    """Inside the context, a full disk is a :class:`StorageError` that says what to do, also if a library finds it."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise storage_error(error.filename or folder, error) from error


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
    """Write a text file; see :func:`atomic_write`. Surrogates, as in names that are not UTF-8, become their bytes."""
    with atomic_write(path, 'w', errors='surrogateescape', newline='') as file:
        file.write(text)


def write_json(path: str | os.PathLike, value, indent: int | None = 2) -> None:
    """Write a JSON file; see :func:`atomic_write`. Characters that are not UTF-8 become escapes, as JSON allows."""
    write_text(path, json_text(value, indent))


def json_text(value, indent: int | None = 2) -> str:
    """Return the text of a JSON file. Characters that are not UTF-8 become escapes."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        text = json.dumps(value, indent=indent)
    return text + '\n'


def write_tensors(path: str | os.PathLike, value) -> None:
    """Write a file of ``torch.save``; see :func:`atomic_write`. It has a checksum per tensor (:func:`check_whole`)."""
    with atomic_write(path) as file:
        try:
            torch.save(value, file)
        except RuntimeError as error:  # torch's error for an unfinished archive
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def check_whole(path: str | os.PathLike) -> None:
    """Compare every part of a file of ``torch.save`` with its CRC-32 in the file.

    The file is a zip archive, so torch writes these checksums, but it does not read them. Files without them (an old
    format, or ``set_crc32_options(False)``) pass.

    Raises:
        StorageError: A part is damaged.
    """
    status = os.stat(path)
    _check_whole(os.path.abspath(path), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=128)
def _check_whole(path: str, size: int, modified: int) -> None:
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            if any(part.CRC for part in archive.infolist()) and (damaged := archive.testzip()):
                raise StorageError(
                    f'{path!r} is damaged: the checksum of its part {damaged!r} is wrong. Copy it again, or use another'
                )
    except (zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        raise StorageError(f'{path!r} is damaged ({error}). Copy it again, or use another') from None


def hash_file(path: str | os.PathLike) -> str:
    """SHA-256 of the content of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        for block in iter(lambda: file.read(1 << 20), b''):
            digest.update(block)
    return digest.hexdigest()


def remove_leftovers(folder: str | os.PathLike) -> None:
    """Delete temporary files of killed processes in a folder and its direct sub-folders: those of this machine if their
    process has ended, and those of other machines after a day."""
    folder = Path(folder)
    for path in [*folder.glob('.*.part'), *folder.glob('*/.*.part')]:
        match = PART.fullmatch(path.name)
        try:
            if match and (
                not is_running(int(match['pid']))
                if match['host'] == HOST
                else time.time() - path.stat().st_mtime > 86400
            ):
                path.unlink()
        except OSError:  # another process was faster, or the file is not ours
            pass


def is_running(pid: int) -> bool:
    """Whether a process of this machine is alive."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # it is another user's
        pass
    return True


@contextmanager
def locked(folder: str | os.PathLike, what: str) -> Iterator[None]:
    """Inside the context only this process works in ``folder``; a second process gets an error that names the first.

    The lock is the operating system's, on the file ``.lock`` in the folder, and ends with the process. On file systems
    without locks (some network mounts) this does nothing. Between machines it works on file systems that share locks,
    as NFS and most cluster file systems do.

    Args:
        folder: The folder; it is made if it is missing.
        what (str): For the error, such as 'a training'.

    Raises:
        StorageError: Another process works in the folder, or the lock cannot be written.
    """
    path = os.path.realpath(Path(folder) / '.lock')
    if fcntl is None or path in _locks:
        yield
        return
    try:
        os.makedirs(folder, exist_ok=True)
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), 'r+', encoding='utf-8', errors='replace')
    except OSError as error:
        raise storage_error(path, error) from error
    with file:
        try:
            # Not flock: data workers that outlive a killed process would keep it.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                owner = file.readline().strip() or 'another process'
                raise StorageError(
                    f'{os.fspath(folder)!r} is in use by {owner}: wait until that has ended, or choose another folder'
                ) from None
        file.truncate(0)
        file.seek(0)
        file.write(
            f'{what} (process {os.getpid()} on {socket.gethostname()}, since {time.strftime("%Y-%m-%d %H:%M:%S")})\n'
        )
        file.flush()
        _locks.add(path)
        try:
            yield
        finally:
            _locks.discard(path)


def slug(name: str) -> str:
    """Turn a name into one of a file or folder: ``'CFMask object/single'`` gives ``'cfmask_object_single'``."""
    return re.sub(r'[^\w.=+-]+', '_', name.lower()).strip('_')


def check_file_name(name: str, where: str) -> str:
    """Check that a name can be the name of a file or folder, and return it.

    Args:
        name (str): Of a method, a data set or a test set.
        where (str): The key or file with this name, for the error.

    Raises:
        ConfigError: The name is empty, ``.`` or ``..``, too long, or has a slash, a backslash or a control character.
    """
    if (
        not isinstance(name, str)
        or name in ('', '.', '..')
        or re.search(r'[/\\\x00-\x1f\x7f]', name)
        or len(os.fsencode(name)) > 200
    ):
        raise ConfigError(
            f'{where}: {name!r} becomes the name of a file or folder, so it must be a plain name without slashes, and '
            'not "." or ".."'
        )
    return name
