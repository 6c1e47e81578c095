"""Images in tables: Parquet files of the Hugging Face hub, and the Arrow files that its ``datasets`` saves."""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from ...errors import ConfigError, MissingPackageError, StorageError
from ...messages import short_list
from .samples import LABELS, Sample, plain_label

if TYPE_CHECKING:
    import pyarrow as pa

KEPT = 256 << 20  # bytes of row groups that a process keeps; 100 photos, as in most files, take 11 MB


def read_table(path: Path, field: str | None = None) -> tuple[list[Sample], list[str] | None]:
    """List the images of a table with their labels, in the order of the file, without reading the images.

    Args:
        path: A ``.parquet`` or ``.arrow`` file. One column holds the images: structs of ``bytes`` and ``path``, or
            bytes.
        field: The column of the labels. None: the first of :data:`mmcfmask.datasets.shards.samples.LABELS`, or the
            only column with class names; none is no error.

    Returns:
        tuple: The samples, and the names of the classes by index where the file has them.

    Raises:
        MissingPackageError: pyarrow is not installed.
        StorageError: The file cannot be read.
        ConfigError: It has no column of images or several, or lacks the column of labels.
    """
    try:
        import pyarrow as pa
        from pyarrow import compute
    except ImportError:
        raise MissingPackageError(f"{path} needs the package pyarrow: pip install 'mmcfmask[parquet]'") from None
    try:
        file = open_table(path)
        schema = file.schema if isinstance(file, pa.Table) else file.schema_arrow
        image, label = find_columns(schema, path, field)
        has_names = (
            pa.types.is_struct(schema.field(image).type) and schema.field(image).type.get_field_index('path') >= 0
        )
        if isinstance(file, pa.Table):
            table, groups = file, [len(chunk) for chunk in file.column(image).chunks]
        else:
            columns = [*([f'{image}.path'] if has_names else []), *([label] if label else [])]
            table = file.read(columns=columns, use_threads=False)
            groups = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        names = compute.struct_field(table.column(image), 'path').to_pylist() if has_names else [None] * sum(groups)
        labels = table.column(label).to_pylist() if label else [None] * sum(groups)
    except (pa.ArrowException, OSError) as error:
        raise StorageError(f'{path} cannot be read as a table ({error}): copy it again') from None
    places = [(group, row) for group, count in enumerate(groups) for row in range(count)]
    samples = [
        Sample(
            '/'.join(name.split('/')[-2:]) if name else f'{path.stem}-{number}',
            '' if value is None else plain_label(value),
            *place,
        )
        for number, (place, name, value) in enumerate(zip(places, names, labels))
    ]
    return samples, class_names(schema).get(label or '')


def find_columns(schema: pa.Schema, path: str | Path, field: str | None = None) -> tuple[str, str | None]:
    """Names of the column of images and of the column of labels; None if there are no labels."""
    import pyarrow as pa

    structs = [column.name for column in schema if pa.types.is_struct(column.type) and _has_bytes(column.type)]
    binary = [
        column.name for column in schema if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)
    ]
    images = structs or binary
    if len(images) != 1:
        raise ConfigError(
            f'{path}: {short_list(images) or "none"} of the columns {short_list(schema.names)} may hold the images: '
            'there must be one of structs of bytes and path, or of bytes'
        )
    if field is not None and field not in schema.names:
        raise ConfigError(f'{path} has no column label_field={field!r}: it has {short_list(schema.names)}')
    named = list(class_names(schema))
    found = [name for name in LABELS if name in schema.names] or (named if len(named) == 1 else [])
    return images[0], field or next(iter(found), None)


def _has_bytes(kind: Any) -> bool:
    return kind.get_field_index('bytes') >= 0


def class_names(schema: pa.Schema) -> dict[str, list[str]]:
    """Names of the classes of every column that Hugging Face ``datasets`` marks as a ``ClassLabel``."""
    about = json.loads((schema.metadata or {}).get(b'huggingface', b'{}'))
    features = (about.get('info') or {}).get('features') or {}
    return {
        name: [str(text) for text in feature['names']]
        for name, feature in features.items()
        if isinstance(feature, dict)
        and name in schema.names
        and feature.get('names')
        and len(set(feature['names'])) == len(feature['names'])
    }


def open_table(path: str | Path) -> Any:
    """A ``ParquetFile``, or the memory-mapped table of an Arrow file or stream."""
    import pyarrow as pa
    from pyarrow import parquet

    if not str(path).lower().endswith('.arrow'):
        return parquet.ParquetFile(path)
    source = pa.memory_map(os.fspath(path))
    is_file = source.read(6) == b'ARROW1'
    source.seek(0)
    return (pa.ipc.open_file if is_file else pa.ipc.open_stream)(source).read_all()


def read_cell(path: str, group: int, row: int) -> bytes:
    """The bytes of an image. The file, and the row groups that were read last, are kept."""
    value = _kept.images(path, group)[row]
    content = value.as_py()
    content = content['bytes'] if isinstance(content, dict) else content
    if content is None:
        raise StorageError('the table holds the path of the image only: save it with the images inside')
    return content


class _Kept:
    """The row groups that were read last, up to :data:`KEPT` bytes, of one process: a fork begins with none."""

    def __init__(self) -> None:
        self.pid = 0

    def images(self, path: str, group: int) -> Any:
        if self.pid != os.getpid():
            self.groups: OrderedDict[tuple[str, int], Any] = OrderedDict()
            self.lock = Lock()
            self.pid = os.getpid()
        with self.lock:
            if (path, group) not in self.groups:
                self.groups[path, group] = _read_group(path, group, self.pid)
                while len(self.groups) > 1 and sum(kept.nbytes for kept in self.groups.values()) > KEPT:
                    self.groups.popitem(last=False)
            self.groups.move_to_end((path, group))
            return self.groups[path, group]


_kept = _Kept()


def _read_group(path: str, group: int, pid: int) -> Any:
    """The images of a row group, or of a record batch, which stays on the disk."""
    file, image = _opened(path, pid)
    if path.lower().endswith('.arrow'):
        return file.column(image).chunk(group)
    column = f'{image}.bytes' if _is_struct(file.schema_arrow.field(image).type) else image
    return file.read_row_group(group, columns=[column], use_threads=False).column(0).combine_chunks()


def _is_struct(kind: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_struct(kind)


@lru_cache(maxsize=64)
def _opened(path: str, pid: int) -> tuple[Any, str]:
    table = open_table(path)
    return table, find_columns(getattr(table, 'schema_arrow', None) or table.schema, path)[0]
