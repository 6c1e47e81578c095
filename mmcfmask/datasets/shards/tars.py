"""Images in tar files: WebDataset's shards, and archives of class folders."""

from __future__ import annotations

import json
import os
import re
import tarfile
from functools import lru_cache
from pathlib import Path
from typing import IO, NamedTuple

from ...errors import ConfigError, StorageError
from ...messages import short_list
from ..images import EXTENSIONS, is_hidden
from .samples import LABELS, Sample, plain_label


def read_tar(path: Path, field: str | None = None) -> list[Sample]:
    """List the images of a tar file with their labels, in the order of the file. Reads headers and labels only.

    Members whose names differ only behind the first dot are one sample, as in WebDataset: ``cat/7.jpg``, ``cat/7.cls``.

    Args:
        path: The file, not compressed.
        field: The label: a member (``cls``) or a key of the member ``json``. None: the first of
            :data:`mmcfmask.datasets.shards.samples.LABELS` that a sample has; none is no error.

    Raises:
        StorageError: The file is no tar file, is cut off, or is compressed.
        ConfigError: A sample lacks the field, or has several images.
    """
    groups: dict[str, dict[str, _Member]] = {}
    try:
        size = os.path.getsize(path)
        with tarfile.open(path, 'r:') as archive:
            for header in archive:
                archive.members = []  # it would keep them all
                name = header.name.removeprefix('./')
                if not header.isreg() or any(map(is_hidden, name.split('/'))):
                    continue
                if header.offset_data + header.size > size:
                    raise StorageError(f'{path} is cut off within {name}: copy it again')
                key, extension = split_name(name)
                groups.setdefault(key, {})[extension] = _Member(name, header.offset_data, header.size)
    except (tarfile.TarError, EOFError) as error:
        raise StorageError(
            f'{path} is not a whole, uncompressed tar file ({error}): unpack it if it is compressed, or copy it again'
        ) from None
    with open(path, 'rb') as file:
        return [sample for key, members in groups.items() for sample in _samples(path, file, key, members, field)]


class _Member(NamedTuple):
    name: str
    offset: int
    size: int


def split_name(name: str) -> tuple[str, str]:
    """Key and extension of a member, as WebDataset splits its name: at the first dot behind the last slash."""
    folder, slash, base = name.rpartition('/')
    stem, _, extension = base.partition('.')
    return folder + slash + stem, extension


def _samples(path: Path, file: IO[bytes], key: str, members: dict[str, _Member], field: str | None) -> list[Sample]:
    images = [member for extension, member in members.items() if f'.{extension}'.lower().endswith(EXTENSIONS)]
    if len(images) > 1 and len(members) > len(images):  # without others these are files whose names have several dots
        raise ConfigError(
            f'{path}: the sample {key} has the images {short_list(Path(image.name).name for image in images)}, but '
            'one is needed: put them into samples of their own'
        )
    label = _label(path, file, key, members, field) if images else ''
    return [Sample(image.name, label, image.offset, image.size) for image in images]


def _label(path: Path, file: IO[bytes], key: str, members: dict[str, _Member], field: str | None) -> str:
    """The label of a sample; empty if it has none."""

    def content(member: _Member) -> str:
        return os.pread(file.fileno(), member.size, member.offset).decode(errors='replace')

    fields = LABELS if field is None else (field,)
    for name in fields:
        if name in members:
            return plain_label(content(members[name]))
    if 'json' in members:
        try:
            values = json.loads(content(members['json']))
        except ValueError as error:
            raise ConfigError(f'{path}: {key}.json is not valid JSON ({error})') from None
        for name in fields if isinstance(values, dict) else ():
            if values.get(name) is not None:
                return plain_label(values[name])
    if field is not None:
        raise ConfigError(
            f'{path}: the sample {key} has no label_field={field!r}: it has {short_list(members)}; give a member or a '
            'key of the member json'
        )
    return ''


def read_member(path: str, offset: int, size: int) -> bytes:
    """Bytes of a tar file. The file is kept open."""
    file = _open(path)  # kept by name: another thread may replace it in the cache, and would close it
    content = os.pread(file.fileno(), size, offset)
    if len(content) < size:
        raise StorageError('the tar file is shorter than its index says: it has changed')
    return content


@lru_cache(maxsize=256)
def _open(path: str) -> IO[bytes]:
    return open(path, 'rb', buffering=0)


def tar_name(name: str) -> str:
    """The name of a file as a member of a shard. WebDataset takes what is behind the first dot for the extension, so
    other dots become ``%2E``."""
    folder, slash, base = name.rpartition('/')
    stem, dot, extension = base.rpartition('.')
    return folder + slash + stem.replace('%', '%25').replace('.', '%2E') + dot + extension


def file_name(name: str) -> str:
    """Undo :func:`tar_name`."""
    return re.sub('%2[E5]', lambda match: chr(int(match[0][1:], 16)), name)
