"""Class folders on the disk: list them, and check that they are what is expected."""

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
    """The folder of a data set is not there; the message says what was looked for, and where to get it if it is a
    published set."""


# Names of the parts of a data set, which are no classes.
SPLIT_NAMES = re.compile(
    '(ilsvrc)?(data|images|img)?'
    '(train|training|val|valid|validation|validate|test|testing|dev|eval|evaluation|heldout|holdout)'
    '(set|split|data|images|imgs)?'
)


def check_are_classes(folders: Sequence[str], root: Path) -> None:
    """Raise a ConfigError for folders that are the parts of a data set: ``root`` is one level too high then."""
    splits = [folder for folder in folders if SPLIT_NAMES.fullmatch(re.sub(r'[\W\d_]', '', folder.lower()))]
    if splits and (len(splits) > 1 or len(folders) == 1):
        raise ConfigError(
            f'{root}: the folders {short_list(splits)} are parts of a data set, not classes: set split_dir to one of them, '
            f'e.g. split_dir={splits[0]!r}. If they really are classes, name all folders with folders=[…].'
        )


def warn_of_deeper_classes(images: dict[str, list[str]], root: Path) -> None:
    """Log a warning where all folders hold the same folders and no images of their own: perhaps those are the classes."""
    inner = None
    for names in images.values():
        below = {name.split('/')[1] for name in names if name.count('/') > 1}
        inner = below if inner is None else inner & below
        if len(inner) < 2 or any(name.count('/') == 1 for name in names):
            return
    if len(images) > 1:
        print_log(
            f'{root}: the folders {short_list(list(images))} are taken for the classes, but hold no images themselves, and '
            f'all of them the folders {short_list(sorted(inner))}. If those are the classes, set split_dir to one of the '
            'former.',
            'current',
            level=logging.WARNING,
        )


def list_class_folders(root: Path) -> list[str]:
    """Names of the folders in ``root``, sorted by :func:`in_order`; hidden ones are left out.

    Raises:
        MissingSetError: There is no such folder.
        MissingFileError: It has no folders.
        ConfigError: Two folders have the same name, in two forms of Unicode, or are the same by a link.
    """
    if not root.is_dir():
        raise MissingSetError(
            f'There is no folder {root.absolute()}: set data_root (and split_dir, or domain) of the dataset.'
        )
    folders = sub_folders(root)
    if not folders:
        files = os.listdir(root)
        tars = any(file.endswith('.tar') for file in files)
        raise MissingFileError(
            f'{root.absolute()} has no class folders, but {len(files)} files: '
            + (
                'unpack each of its archives into a folder of the same name.'
                if tars
                else 'images must lie in one folder per class. Set data_root and split_dir to the folder that holds '
                'the class folders.'
            )
        )
    names = list(map(composed, folders))
    twice = (
        [folder for folder, name in zip(folders, names) if names.count(name) > 1]
        if len(set(names)) < len(names)
        else []
    )
    if twice:
        raise ConfigError(
            f'{root}: the folders {short_list(list(map(ascii, twice)))} have the same name in two Unicode forms (NFC and '
            'NFD): put their images into one.'
        )
    check_links(root, folders)
    return in_order(folders)


def check_links(root: Path, folders: Sequence[str]) -> None:
    """Raise a ConfigError where a class folder is a link to another one, or into one: its images would be of two
    classes."""
    links = [folder for folder in folders if (root / folder).is_symlink()]
    real = os.path.realpath(root)
    for link in links:
        target = os.path.realpath(root / link)
        if lies_in(target, real):
            raise ConfigError(
                f'{root}: the folder {link} is a link to {os.path.relpath(target, real)} in the same data set, whose '
                'images would be of two classes: delete the link'
            )


def sub_folders(root: Path) -> list[str]:
    """Names of the folders in ``root``, sorted; hidden ones are left out, and links to a folder that ``root`` lies in."""
    real = os.path.realpath(root)
    return [
        entry.name
        for entry in list_folder(root)
        if is_folder(entry) and not (entry.is_symlink() and lies_in(real, os.path.realpath(entry.path)))
    ]


def check_folders(expected: Sequence[str], present: Sequence[str], root: Path, other: Sequence[str] = ()) -> None:
    """Raise a ValueError where the class folders are not exactly those expected, and perhaps ``other`` known ones."""
    problems = folder_problems(expected, present, other)
    if problems:
        raise ConfigError(f'{root}: {"; ".join(problems)}.')


def folder_problems(expected: Sequence[str], present: Sequence[str], other: Sequence[str] = ()) -> list[str]:
    """What is wrong with the class folders that are ``present``, in words."""
    problems, here = [], set(map(composed, present))
    missing = [folder for folder in expected if composed(folder) not in here]
    if missing:
        problems.append(f'{len(missing)} of {len(expected)} class folders are missing: {short_list(missing)}')
    known = set(map(composed, [*expected, *other]))
    unknown = [folder for folder in present if composed(folder) not in known]
    if unknown:
        problems.append(
            f'{len(unknown)} folders are no known classes: {short_list_with_nearest(unknown, [*expected, *other])}'
        )
    return problems


def list_images(root: Path, folder: str, left_out: Counter | None = None) -> list[str]:
    """Names of all images under ``root/folder``, relative to ``root``, sorted; see
    :func:`mmcfmask.datasets.images.find_images`."""
    return [f'{folder}/{name}' for name in find_images(root / folder, root, left_out)]
