"""Class folders that hold the same files as another."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..files import hash_file
from ..messages import short_list


def duplicate_folders(root: Path, images: Mapping[str, Sequence[str]]) -> list[tuple[str, ...]]:
    """Groups of folders that hold the same files: equal names and, in three files, equal contents.

    Args:
        root: Folder of the folders.
        images: Names relative to ``root`` by folder.
    """

    def fingerprints(folders, key):
        groups = defaultdict(list)
        for folder in folders:
            groups[key(folder)].append(folder)
        return [group for group in groups.values() if len(group) > 1]

    def probe(folder):
        names = images[folder]
        return [root / names[index] for index in sorted({0, len(names) // 2, len(names) - 1})]

    found = fingerprints(
        (folder for folder in images if images[folder]), lambda folder: tuple(map(os.path.basename, images[folder]))
    )
    for key in (
        lambda folder: tuple(path.stat().st_size for path in probe(folder)),
        lambda folder: tuple(map(hash_file, probe(folder))),
    ):
        found = [group for groups in found for group in fingerprints(groups, key)]
    return sorted(map(tuple, found))


def equal_words(groups: Sequence[Sequence[str]]) -> str:
    return short_list([' = '.join(group[:5]) + (' = ...' if len(group) > 5 else '') for group in groups])
