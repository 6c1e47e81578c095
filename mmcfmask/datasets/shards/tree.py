"""Shards in the place of class folders: the same classes, names and labels, wherever the images lie."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ...errors import ConfigError, MissingFileError
from ...messages import short_list, short_list_with_nearest
from ..class_folders import list_class_folders, list_images, sub_folders
from ..images import is_hidden
from ..names import composed, in_order
from .index import read_index
from .samples import join_place

SUFFIXES = ('.tar', '.parquet', '.arrow')
SPLIT = re.compile(r'(train|val|validation|test)(?=[-_.])')


class Folders:
    """Class folders on disk.

    Args:
        root: The folder that holds them.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def folders(self) -> list[str]:
        """See :func:`mmcfmask.datasets.class_folders.list_class_folders`."""
        return list_class_folders(self.root)

    def images(self, folder: str, left_out: Counter | None = None) -> list[str]:
        """Names relative to the root, sorted; see :func:`mmcfmask.datasets.class_folders.list_images`."""
        return list_images(self.root, folder, left_out)

    def path(self, name: str) -> str:
        """Where an image is read."""
        return f'{self.root}/{name}'


class Shards:
    """Shards, seen as class folders.

    The classes are the labels of the samples (``label_field``) or, where these say the same or there are none, the
    first folders in their keys, or WordNet ids that begin their keys (``n01440764_10026``) or name the shards. An image
    has its key as its name; if several have the same key, the name says which shard and place is meant.

    Args:
        files: The shards.
        label_field: As of :func:`mmcfmask.datasets.shards.index.read_index`.
        expected: The class folders in the order of the labels, where they are known. Class indices then count in them
            or, for a part of ImageNet's classes, in ImageNet's 1000.

    Raises:
        ConfigError: There are no images, or images without a label or with an unknown one; the message names the shard
            and the key.
    """

    def __init__(
        self, files: Sequence[Path], label_field: str | None = None, expected: Sequence[str] | None = None
    ) -> None:
        self.files = list(files)
        self.index = read_index(files, label_field)
        if not self.index.samples:
            raise ConfigError(f'{self.where} hold no images: look into them, and name the right files in split_dir')
        names = self.index.class_names or []
        given = [sample.label for sample in self.index.samples]
        own = self._own_classes()
        self._order = None  # of the classes, where the shards say it
        if label_field is None and keys_say_more(given, own, names, expected):
            classes = own
            known: dict[str, str | None] = {name: name for name in set(own)}
        else:
            classes = given
            known = name_labels(set(given), names, expected)
            self._order = list(map(composed, names)) if expected is None and set(known.values()) <= set(names) else None
        self._check(classes, known, expected)
        self._rows: dict[str, int] = {}
        self._images: dict[str, list[str]] = {}
        for row, (name, label) in enumerate(zip(self._unique_names(), classes)):
            self._rows[name] = row
            self._images.setdefault(composed(known[label] or ''), []).append(name)

    @property
    def where(self) -> str:
        """The shards, for messages."""
        return f'{self.files[0].parent}: the shards {short_list([file.name for file in self.files], 3)}'

    def folders(self) -> list[str]:
        """Names of the classes: of all that the shards name, in their order, or of those that have images, sorted."""
        return self._order or in_order(self._images)

    def images(self, folder: str, left_out: Counter | None = None) -> list[str]:
        """Names of the images of a class, sorted."""
        return sorted(self._images.get(folder, ()))

    def path(self, name: str) -> str:
        """Where an image is read; see :func:`mmcfmask.datasets.shards.samples.join_place`."""
        row = self._rows[name]
        return join_place(os.path.abspath(self.files[self.index.files[row]]), self.index.samples[row])

    def _own_classes(self) -> list[str]:
        """The class that the key of each image or the name of its shard says; empty if neither does.

        A folder in the keys is a class if it is the first one that not all keys have in common.
        """
        folders = [sample.name.split('/')[:-1] for sample in self.index.samples]
        common = len(os.path.commonprefix(folders))
        if all(len(parts) == common for parts in folders):
            common -= 1  # all lie in one folder
        stems = [file.stem for file in self.files]
        wnids = [
            re.match(r'n\d{8}(?=_)', sample.name.rpartition('/')[2]) or re.fullmatch(r'n\d{8}', stems[number])
            for sample, number in zip(self.index.samples, self.index.files.tolist())
        ]
        return [
            composed(parts[common]) if 0 <= common < len(parts) else wnid[0] if wnid else ''
            for parts, wnid in zip(folders, wnids)
        ]

    def _unique_names(self) -> list[str]:
        names = [sample.name for sample in self.index.samples]
        count = Counter(names)
        if len(count) == len(names):
            return names
        top = os.path.commonpath([os.path.abspath(file.parent) for file in self.files])
        shards = [os.path.splitext(os.path.relpath(file, top))[0] for file in self.files]
        return [
            f'{shards[number]}/{sample.first}+{sample.second}/{name}' if count[name] > 1 else name
            for name, number, sample in zip(names, self.index.files.tolist(), self.index.samples)
        ]

    def _check(self, classes: Sequence[str], known: dict[str, str | None], expected: Sequence[str] | None) -> None:
        """Raise a ConfigError for a label that is empty, negative or not expected."""
        expected = None if expected is None else list(map(composed, expected))
        wrong = {
            label
            for label, name in known.items()
            if not name or re.fullmatch(r'-\d+', name) or expected is not None and composed(name) not in expected
        }
        if not wrong:
            return
        row = next(row for row, label in enumerate(classes) if label in wrong)
        where = f'{self.files[self.index.files[row]]}: {self.index.samples[row].name}'
        if not classes[row]:
            raise ConfigError(
                f'{where} has no label: a shard needs a member .cls or .json with a label for each image, a column of '
                'labels, or the class as the folder in the keys'
            )
        raise ConfigError(
            f'{where} has the label {classes[row]!r}, which is not one of the {len(expected or known)} classes; '
            f'unknown labels: {short_list_with_nearest(sorted(wrong), expected or [])}'
        )


def keys_say_more(
    labels: Sequence[str], own: Sequence[str], names: Sequence[str], expected: Sequence[str] | None
) -> bool:
    """Whether the classes in the keys count, and not the labels: there are no labels, or each stands for one class of
    the keys and has no other name.

    Args:
        labels: Of the samples.
        own: Classes in their keys.
        names: Of the class indices.
        expected: As of :class:`Shards`.
    """
    if not any(labels):
        return True
    pairs = set(zip(labels, own))
    one_to_one = len(pairs) == len({label for label, _ in pairs}) == len({name for _, name in pairs})
    return one_to_one and all(own) and (not names if expected is None else {name for _, name in pairs} <= set(expected))


def name_labels(
    labels: set[str], names: Sequence[str] = (), expected: Sequence[str] | None = None
) -> dict[str, str | None]:
    """The class folder of every label; None if it has none.

    Args:
        labels: As in the shards.
        names: Of the class indices; none if the shards do not name them.
        expected: As of :class:`Shards`.
    """
    numbers = {label: int(label) for label in labels if label.isdecimal()}
    if expected is None:
        order = names
    elif labels <= set(expected) or not numbers:
        order = ()
    elif names and set(names) <= set(expected):
        order = names
    else:
        count = len(names) or max(numbers.values()) + 1
        is_part = count > len(expected) and set(expected) <= set(imagenet_wnids())
        order = imagenet_wnids() if is_part else expected
    if not order:
        return {label: label for label in labels}
    return {label: order[numbers[label]] if numbers.get(label, len(order)) < len(order) else None for label in labels}


def imagenet_wnids() -> tuple[str, ...]:
    """WordNet ids of ImageNet's classes, in the order of the labels."""
    from ..imagenet_labels import IMAGENET_WNIDS  # it imports this module

    return IMAGENET_WNIDS


def find_shards(root: str | os.PathLike) -> list[Path]:
    """The shards of a data set; none if it lies in class folders or does not exist.

    Args:
        root: A folder that holds shards and no other folders, or only one folder, which holds them; one shard; or a
            pattern such as ``data/train-*.parquet``.

    Raises:
        ConfigError: The folder holds shards of several splits.
    """
    root = Path(root)
    if not root.is_dir():
        return [Path(path) for path in sorted(glob.glob(str(root))) if path.lower().endswith(SUFFIXES)]
    files, folders = _shards_in(root), sub_folders(root)
    if not files and len(folders) == 1:
        files = _shards_in(root / folders[0])
    elif folders:
        return []
    splits = {match[1] for file in files if (match := SPLIT.search(file.name))}
    if len(splits) > 1:
        raise ConfigError(
            f'{files[0].parent} holds shards of {", ".join(sorted(splits))}: name those of one, e.g. '
            f'split_dir="{os.path.relpath(files[0].parent, root)}/{min(splits)}-*{files[0].suffix}"'
        )
    return files


def _shards_in(folder: Path) -> list[Path]:
    return sorted(
        path for path in folder.iterdir() if path.name.lower().endswith(SUFFIXES) and not is_hidden(path.name)
    )


def open_tree(root: Path, label_field: str | None = None, expected: Sequence[str] | None = None) -> Folders | Shards:
    """The classes of a data set and their images, in class folders or in shards; arguments as of :class:`Shards`."""
    files = find_shards(root)
    if files:
        return Shards(files, label_field, expected)
    if glob.has_magic(str(root)) and not root.exists():
        raise MissingFileError(f'no file matches {root}: set data_root and split_dir of the dataset')
    return Folders(root)
