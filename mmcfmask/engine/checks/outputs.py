"""Check that results can be written."""

from __future__ import annotations

import os
from pathlib import Path

from ...errors import StorageError
from ...files import FULL, HOST, remove_leftovers


def check_work_dir(work_dir: str, what: str = 'work dir', option: str = '--work-dir') -> None:
    """Raise a StorageError if ``work_dir`` is not writable; delete temporary files of killed runs in it."""
    try:
        os.makedirs(work_dir, exist_ok=True)
        probe = Path(work_dir) / f'.writable.{HOST}.{os.getpid()}-0.part'  # remove_leftovers finds this name
        probe.write_bytes(bytes(4096))  # an empty file fits on a full disk
        probe.unlink()
    except OSError as error:
        reason = 'the disk is full' if error.errno in FULL else error.strerror
        raise StorageError(
            f'cannot write to the {what} {work_dir!r} ({reason}): choose another with {option}'
        ) from None
    remove_leftovers(work_dir)


def check_out(path: str, option: str = '--out') -> None:
    """Raise a StorageError if no file can be written to ``path``."""
    if os.path.isdir(path):
        raise StorageError(f'{option} {path!r} is a folder: give the name of a file')
    check_work_dir(os.path.dirname(path) or '.', 'folder', option)
