"""What shards hold, and how one image in a shard is named."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

# Members of a sample, keys of its JSON or columns that hold the label.
LABELS = ('cls', 'label', 'labels', 'wnid', 'synset', 'class', 'target')
PLACE = re.compile(r'(tar|parquet|arrow)://(.+?)#(\d+)\+(\d+)#(.*)', re.DOTALL)


class Sample(NamedTuple):
    """An image in a shard.

    Attributes:
        name: Its key, with an extension if it has one.
        label: A class index or name as text; empty if it is unknown.
        first, second: Offset and size in a tar file; row group and row in it in a table.
    """

    name: str
    label: str
    first: int
    second: int


def plain_label(value: Any) -> str:
    """A label as text, with class indices in one form: ``'007\\n'``, 7 and 7.0 are ``'7'``."""
    text = str(int(value) if isinstance(value, (bool, float)) and value == int(value) else value).strip()
    return str(int(text)) if re.fullmatch(r'-?\d+', text) else text


def join_place(file: str, sample: Sample) -> str:
    """The path of an image in a shard, which :func:`mmcfmask.datasets.images.open_image` reads: ``tar:///data/0.tar#
    offset+size#key``."""
    kind = file.rpartition('.')[2].lower()
    return f'{kind}://{file}#{sample.first}+{sample.second}#{sample.name.replace("://", ":/")}'


def split_place(path: str) -> tuple[str, str, Sample] | None:
    """Kind, file and sample of a path of :func:`join_place`; None for any other path."""
    match = PLACE.fullmatch(path)
    return match and (match[1], match[2], Sample(match[5], '', int(match[3]), int(match[4])))


def file_of(path: str) -> str:
    """The file on disk that holds an image: the path itself, or the shard."""
    place = split_place(path) if '://' in path else None
    return place[1] if place else path
