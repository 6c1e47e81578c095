"""Your own distribution shift: folders of images, matched by name with the classes of the head."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Union

from mmpretrain.registry import DATASETS

from ..errors import ConfigError, MissingFileError
from ..messages import short_list, short_list_with_nearest
from .folder import FolderDataset
from .imagenet_labels import IMAGENET_CLASSES, IMAGENET_WNIDS
from .names import class_names, composed, plain_name, read_names, read_text

Class = Union[str, int]


@DATASETS.register_module()
class FolderShiftDataset(FolderDataset):
    """Any folders of images as a test set for a head with given classes. The folders need not cover all classes.

    Folder names are matched with class names: exactly, or else ignoring case, underscores, hyphens and other
    punctuation; for ImageNet's classes WordNet ids match too. A map covers what does not match by name. Several folders
    may mean one class; in a map, one folder may mean several classes, and any of them counts as correct.

    Args:
        data_root (str): Folder of the set.
        head_classes (str | Sequence[str]): Names of the head's classes in its order, a text file with one per line, or
            'imagenet'.
        split_dir (str): Sub-folder that holds the class folders. Defaults to ''.
        folder_map (dict | str, optional): Classes of folders: a dict, a ``.json`` file with one, or a text file of
            lines ``<folder> <class>`` (separated by a tab or the first space). A class is a name, an index into
            ``head_classes``, or a list of these; None ignores the folder. 'index': the folder name is the index.
            Defaults to None.
        **kwargs: Arguments of :class:`FolderDataset` except ``folders`` and ``classes``.

    Raises:
        MissingSetError: The folder does not exist.
        ConfigError: A folder matches no class or several; the map names unknown classes.

    Examples:
        >>> toys = FolderShiftDataset('data/toys', head_classes='imagenet', folder_map={'plushies': 'teddy bear'})
    """

    def __init__(
        self,
        data_root: str,
        head_classes: str | Sequence[str],
        split_dir: str = '',
        folder_map: Mapping[str, Class | Sequence[Class] | None] | str | None = None,
        **kwargs,
    ) -> None:
        self.head_classes = head_class_names(head_classes)
        self.wnids = IMAGENET_WNIDS if self.head_classes == IMAGENET_CLASSES else ()
        self.folder_map = folder_map if folder_map is None or folder_map == 'index' else read_folder_map(folder_map)
        super().__init__(data_root, split_dir, **kwargs)

    def class_images(self, root: Path) -> dict[str, list[str]]:
        """Names of images by class, in the order of the head. Sets the metainfo."""
        tree = self.tree(root)
        groups = match_folders(tree.folders(), self.head_classes, self.folder_map, self.wnids, str(root))
        members = defaultdict(list)  # folders of each group
        for folder, group in groups.items():
            if group:
                members[group].append(folder)
        if not members:
            raise ConfigError(f'{root}: folder_map ignores all {len(groups)} folders.')
        order = sorted(members)
        indices = [index for group in order for index in group]
        shared = {index for index in indices if indices.count(index) > 1}
        if shared:
            raise ConfigError(
                f'{root}: folder_map gives {short_list(self.head_classes[index] for index in sorted(shared))} to '
                'several classes of the set: all its folders need the same list of classes.'
            )
        self._metainfo['classes'] = tuple(' / '.join(self.head_classes[index] for index in group) for group in order)
        whole = order == [(index,) for index in range(len(self.head_classes))]
        self._metainfo['label_groups'] = None if whole else tuple(order)
        return {
            members[group][0]: sorted(name for folder in members[group] for name in tree.images(folder, self.left_out))
            for group in order
        }


def match_folders(
    folders: Sequence[str],
    head_classes: Sequence[str],
    folder_map: Mapping[str, Class | Sequence[Class] | None] | str | None = None,
    wnids: Sequence[str] = (),
    where: str = 'the set',
) -> dict[str, tuple[int, ...]]:
    """Indices of the classes that each folder means, in ascending order; empty if the map ignores the folder.

    Args:
        folders: Names of folders.
        head_classes: Names of classes.
        folder_map: As in :class:`FolderShiftDataset`, but not a file.
        wnids: Other names of the same classes, matched exactly.
        where: Begins error messages.

    Raises:
        ConfigError: A folder without a class, or one that may mean several.
    """
    exact, named = {wnid: index for index, wnid in enumerate(wnids)}, defaultdict(list)
    for index, name in enumerate(map(composed, head_classes)):
        named[plain_name(name)].append(index)
        if head_classes.count(name) == 1:
            exact[name] = index
    by_index = folder_map == 'index'
    folder_map = (
        {} if folder_map is None or by_index else {composed(folder): value for folder, value in folder_map.items()}
    )
    matched, unknown, ambiguous = {}, [], []
    for folder in folders:
        name = composed(folder)
        if by_index:
            found = [int(folder)] if folder.isdecimal() and int(folder) < len(head_classes) else []
        elif name in folder_map:
            value = folder_map[name]
            if value is None:
                matched[folder] = ()
                continue
            found = [class_index(item, folder, head_classes, exact, named) for item in _as_list(value)]
        elif name in exact:
            found = [exact[name]]
        else:
            found = named.get(plain_name(folder), [])
            if len(found) > 1:
                ambiguous.append(f'{folder} (classes {", ".join(map(str, found))})')
                continue
        if found:
            matched[folder] = tuple(sorted(set(found)))
        else:
            unknown.append(folder)
    problems = []
    if unknown and by_index:
        problems.append(f'{len(unknown)} folders are not indices below {len(head_classes)}: {short_list(unknown)}')
    elif unknown:
        problems.append(
            f'{len(unknown)} folders match no class of the head: '
            f'{short_list_with_nearest(unknown, [*head_classes, *wnids])}; '
            'rename them, or give their classes in folder_map (None to ignore a folder)'
        )
    if ambiguous:
        problems.append(
            f'{len(ambiguous)} folders match several classes of the same name: {short_list(ambiguous)}; give the index '
            'in folder_map'
        )
    if problems:
        raise ConfigError(f'{where}: {"; ".join(problems)}.')
    return matched


def class_index(
    value: Class, folder: str, head_classes: Sequence[str], exact: Mapping[str, int], named: Mapping[str, list]
) -> int:
    """Index of a class that a map names.

    Raises:
        ConfigError: The head has no such class, or several.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        if 0 <= value < len(head_classes):
            return value
        raise ConfigError(f'folder_map: {folder!r} is class {value}, but the head has {len(head_classes)}.')
    if composed(str(value)) in exact:
        return exact[composed(str(value))]
    found = named.get(plain_name(str(value)), [])
    if len(found) == 1:
        return found[0]
    if found:
        raise ConfigError(
            f'folder_map: {folder!r} is {value!r}, the name of the classes {", ".join(map(str, found))}: give the '
            'index.'
        )
    raise ConfigError(
        f'folder_map: {folder!r} is {short_list_with_nearest([str(value)], head_classes)}, which is not a class of the '
        'head.'
    )


def read_folder_map(folder_map: Mapping | str | Path) -> dict:
    """Read a map from a dict, a ``.json`` file or a text file.

    Raises:
        MissingFileError: The file does not exist.
        ConfigError: The file is not a map; the message names the line.
    """
    if isinstance(folder_map, Mapping):
        return dict(folder_map)
    path = Path(folder_map).expanduser()
    if not path.is_file():
        raise MissingFileError(f"folder_map={str(folder_map)!r} is not a dict, 'index' or an existing file.")
    text = read_text(path)
    if path.suffix == '.json':
        try:
            loaded = json.loads(text)
        except json.JSONDecodeError as error:
            raise ConfigError(f'{path} is not valid JSON ({error}).') from None
        if not isinstance(loaded, dict):
            raise ConfigError(f'{path} must hold a JSON object: folder to class.')
        return loaded
    loaded = {}
    for number, line in enumerate(text.split('\n'), start=1):
        if not line.strip() or line.startswith('#'):
            continue
        folder, _, name = line.strip().partition('\t' if '\t' in line else ' ')
        if not name.strip():
            raise ConfigError(f'{path}, line {number}: {line!r} is not of the form <folder> <class>.')
        loaded[folder.strip()] = int(name) if name.strip().isdigit() else name.strip()
    return loaded


def head_class_names(head_classes: str | Sequence[str]) -> tuple[str, ...]:
    """Names of the head's classes: 'imagenet', a text file with one per line, or the names themselves."""
    if isinstance(head_classes, str) and head_classes == 'imagenet':
        return IMAGENET_CLASSES
    if isinstance(head_classes, str):
        if not Path(head_classes).expanduser().is_file():
            raise MissingFileError(f"head_classes={head_classes!r} is not 'imagenet', a list or an existing file.")
        return tuple(read_names(head_classes))
    if not head_classes:
        raise ConfigError('head_classes is empty.')
    return tuple(class_names(head_classes, 'head_classes'))


def _as_list(value) -> list:
    return [value] if isinstance(value, (str, int)) else list(value)
