"""Class folders on disk: list them, and check that they are the expected ones."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from mmengine.logging import print_log

from ..errors import ConfigError, MissingFileError
from ..messages import short_list, short_list_with_nearest
from .images import find_images, is_folder, lies_in, list_folder
from .names import composed, in_order


class MissingSetError(MissingFileError):
    """The folder of a data set does not exist. The message says what was looked for and, for a published set, where to
    get it."""


# Names of parts of a data set. They are not classes.
SPLIT_NAMES = re.compile(
    '(ilsvrc)?(data|images|img)?'
    '(train|training|val|valid|validation|validate|test|testing|dev|eval|evaluation|heldout|holdout)'
    '(set|split|data|images|imgs)?'
)


def check_are_classes(folders: Sequence[str], root: Path) -> None:
    """Raise a ConfigError if the folders are parts of a data set (train, val): ``root`` is one level too high."""
    splits = [folder for folder in folders if SPLIT_NAMES.fullmatch(re.sub(r'[\W\d_]', '', folder.lower()))]
    if splits and (len(splits) > 1 or len(folders) == 1):
        raise ConfigError(
            f'{root}: the folders {short_list(splits)} are parts of a data set, not classes: set split_dir to one of '
            f'them, e.g. split_dir={splits[0]!r}. If they really are classes, list all folders with folders=[…].'
        )


def warn_of_deeper_classes(images: dict[str, list[str]], root: Path) -> None:
    """Log a warning if all folders hold the same sub-folders and no images: perhaps the sub-folders are the classes."""
    inner = None
    for names in images.values():
        below = {name.split('/')[1] for name in names if name.count('/') > 1}
        inner = below if inner is None else inner & below
        if len(inner) < 2 or any(name.count('/') == 1 for name in names):
            return
    if len(images) > 1:
        print_log(
            f'{root}: takes the folders {short_list(images)} as classes, but they hold no images themselves, and '
            f'all of them hold the sub-folders {short_list(sorted(inner))}. If the sub-folders are the classes, set '
            'split_dir to one of the folders.',
            'current',
            level=logging.WARNING,
        )


def list_class_folders(root: Path) -> list[str]:
    """Names of the folders in ``root``, sorted by :func:`in_order`, without hidden ones.

    Raises:
        MissingSetError: ``root`` does not exist.
        MissingFileError: ``root`` has no folders.
        ConfigError: Two folders have the same name in two Unicode forms, or one is a link to another.
    """
    if not root.is_dir():
        raise MissingSetError(
            f'The folder {root.absolute()} does not exist: set data_root (and split_dir or domain) of the dataset.'
        )
    folders = sub_folders(root)
    if not folders:
        files = os.listdir(root)
        raise MissingFileError(
            f'{root.absolute()} has no class folders, but {len(files)} files: images must lie in one folder per class, '
            'or in shards. Set data_root and split_dir to the folder that holds the class folders.'
        )
    names = list(map(composed, folders))
    twice = (
        [folder for folder, name in zip(folders, names) if names.count(name) > 1]
        if len(set(names)) < len(names)
        else []
    )
    if twice:
        raise ConfigError(
            f'{root}: the folders {short_list(map(ascii, twice))} have the same name in two Unicode forms (NFC and '
            'NFD): put their images into one.'
        )
    check_links(root, folders)
    return in_order(folders)


def check_links(root: Path, folders: Sequence[str]) -> None:
    """Raise a ConfigError if a class folder is a link to or into another one: its images would have two classes."""
    links = [folder for folder in folders if (root / folder).is_symlink()]
    real = os.path.realpath(root)
    for link in links:
        target = os.path.realpath(root / link)
        if lies_in(target, real):
            raise ConfigError(
                f'{root}: the folder {link} is a link to {os.path.relpath(target, real)} in the same data set, so its '
                'images would have two classes: delete the link'
            )


def sub_folders(root: Path) -> list[str]:
    """Sorted names of the folders in ``root``, without hidden ones and links to a folder that contains ``root``."""
    real = os.path.realpath(root)
    return [
        entry.name
        for entry in list_folder(root)
        if is_folder(entry) and not (entry.is_symlink() and lies_in(real, os.path.realpath(entry.path)))
    ]


def check_folders(expected: Sequence[str], present: Sequence[str], root: Path, other: Sequence[str] = ()) -> None:
    """Raise a ConfigError unless the class folders are exactly the expected ones; ``other`` folders may exist too."""
    problems = find_folder_problems(expected, present, other)
    if problems:
        raise ConfigError(f'{root}: {"; ".join(problems)}.')


def find_folder_problems(expected: Sequence[str], present: Sequence[str], other: Sequence[str] = ()) -> list[str]:
    """Describe what is wrong with the ``present`` class folders: missing and unknown ones."""
    problems, here = [], set(map(composed, present))
    missing = [folder for folder in expected if composed(folder) not in here]
    if missing:
        problems.append(f'{len(missing)} of {len(expected)} class folders are missing: {short_list(missing)}')
    known = set(map(composed, [*expected, *other]))
    unknown = [folder for folder in present if composed(folder) not in known]
    if unknown:
        problems.append(
            f'{len(unknown)} folders are not known classes: {short_list_with_nearest(unknown, [*expected, *other])}'
        )
    return problems


def list_images(root: Path, folder: str, left_out: Counter | None = None) -> list[str]:
    """Sorted names of all images under ``root/folder``, relative to ``root``; see
    :func:`mmcfmask.datasets.images.find_images`."""
    return [f'{folder}/{name}' for name in find_images(root / folder, root, left_out)]
