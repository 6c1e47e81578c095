"""Benchmarks of backgrounds, textures and shapes: sets whose classes are coarser than ImageNet's, or in versions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from mmpretrain.registry import DATASETS

from ..errors import ConfigError, MissingFileError
from ..messages import near_names, short_list, short_list_with_nearest
from .class_folders import list_class_folders, list_images, sub_folders
from .folder import FolderDataset
from .imagenet_labels import IMAGENET_CLASSES, read_coarse_classes
from .layouts import SETS, find_set
from .published import IN9_IMAGES

OTHER_CLASS = '(none of these classes)'


def check_parts(where: str, parts: Sequence[str] | None, known: Sequence[str]) -> tuple[str, ...]:
    """A selection of the parts of a set; None: all.

    Raises:
        ConfigError: An unknown part, one listed twice, or none.
    """
    if parts is None:
        return tuple(known)
    unknown = [part for part in parts if part not in known]
    if unknown or not parts or len(set(parts)) < len(parts) or isinstance(parts, str):
        raise ConfigError(
            f'{where}={parts!r} must be a list of some of {", ".join(known)}.'
            + (near_names(str(unknown[0]), known) if unknown else '')
        )
    return tuple(parts)


@DATASETS.register_module()
class ImageNet9Dataset(FolderDataset):
    """ImageNet-9, the backgrounds challenge (Xiao et al., "Noise or Signal", ICLR 2021): nine classes in variations.

    Layout: ``<variation>/val/<class folder>/``, as in the release (``bg_challenge/mixed_rand/val/00_dog/``). As
    published, the decision is between all 1000 classes of the head, and an answer outside of the nine is wrong: it is
    the tenth class of the metainfo. Items carry ``group`` (int), their variation.

    Args:
        data_root (str): Folder of the set, or a common folder of all sets (:func:`mmcfmask.datasets.layouts.find_set`).
        variations (Sequence[str], optional): Some of ``VARIATIONS``. Defaults to all.
        **kwargs: Arguments of :class:`FolderDataset` except ``split_dir``, ``folders`` and ``classes``.

    Raises:
        MissingFileError: A variation does not exist.
        ConfigError: An unknown variation; unknown, missing or empty class folders.
    """

    VARIATIONS = (
        'original', 'mixed_same', 'mixed_rand', 'mixed_next', 'only_fg', 'no_fg', 'only_bg_b', 'only_bg_t',
    )  # fmt: skip
    GROUPS = read_coarse_classes('imagenet9')

    def __init__(self, data_root: str, variations: Sequence[str] | None = None, **kwargs) -> None:
        self.variations = check_parts('ImageNet9Dataset: variations', variations, self.VARIATIONS)
        known = {index for group in self.GROUPS.values() for index in group}
        rest = tuple(index for index in range(1000) if index not in known)
        protocol = dict(SETS['imagenet-9'].protocol, images=IN9_IMAGES * len(self.variations), num_classes=None)
        metainfo = dict(label_groups=(*self.GROUPS.values(), rest), group_names=self.variations, protocol=protocol)
        super().__init__(str(find_set('imagenet-9', data_root)), folders=list(self.GROUPS), metainfo=metainfo, **kwargs)

    def list_items(self, root: Path) -> list[dict]:
        """The items of every variation, in the order of the argument."""
        places = {
            name: next((p for p in (root / name / 'val', root / name) if p.is_dir()), None) for name in self.variations
        }
        missing = [name for name, place in places.items() if place is None]
        if missing:
            raise MissingFileError(
                f'{root}: {len(missing)} of {len(places)} variations are missing: {short_list(missing)}. Get them from '
                f'{SETS["imagenet-9"].source}, or select existing ones with variations=[…].'
            )
        self._metainfo['classes'] = tuple(folder.partition('_')[2] for folder in self.GROUPS)
        items = []
        for group, place in enumerate(places.values()):
            items += [dict(item, group=group) for item in super().list_items(place)]
        self._metainfo['classes'] += (OTHER_CLASS,)
        return items


@DATASETS.register_module()
class CounterAnimalDataset(FolderDataset):
    """CounterAnimal (Wang et al., NeurIPS 2024): animals of 45 ImageNet classes on common and on uncommon backgrounds.

    Layout: ``LAION-final/<index of ImageNet's class> <name>/{common,counter}-<background>/``. As published ("1 vs.
    1000"), the decision is between all 1000 classes. Items carry ``group`` (int): 0 common, 1 counter.

    Args:
        data_root (str): Folder of the set, with or without ``LAION-final``, or a common folder of all sets.
        groups (Sequence[str], optional): 'common', 'counter' or both, the default.
        **kwargs: Arguments of :class:`FolderDataset` except ``split_dir``, ``folders`` and ``classes``.

    Raises:
        MissingFileError: There are no class folders.
        ConfigError: Folders whose names do not begin with an index of ImageNet, or with other folders in them.
    """

    GROUPS = ('common', 'counter')
    METAINFO = dict(classes=IMAGENET_CLASSES, label_groups=None)

    def __init__(self, data_root: str, groups: Sequence[str] | None = None, **kwargs) -> None:
        self.groups = check_parts('CounterAnimalDataset: groups', groups, self.GROUPS)
        root = find_set('counteranimal', data_root)
        root = root / 'LAION-final' if (root / 'LAION-final').is_dir() else root
        protocol = dict(
            SETS['counteranimal'].protocol,
            images=SETS['counteranimal'].images if len(self.groups) == 2 else None,
            num_classes=None,
        )
        super().__init__(str(root), metainfo=dict(group_names=self.groups, protocol=protocol), **kwargs)

    def class_images(self, root: Path) -> dict[str, list[str]]:
        """Names of images by class folder, in the order of the indices."""
        folders = list_class_folders(root)
        wrong = [name for name in folders if not re.match(r'\d{1,3}(\s|$)', name)]
        if wrong:
            raise ConfigError(
                f'{root}: {short_list(wrong)} do not begin with the index of an ImageNet class, as in "9 ostrich".'
            )
        images = {}
        for folder in sorted(folders, key=lambda name: int(name.split()[0])):
            kinds = sub_folders(root / folder)
            unknown = [kind for kind in kinds if kind.partition('-')[0] not in self.GROUPS]
            if unknown:
                raise ConfigError(f'{root / folder}: {short_list(unknown)} do not begin with common- or counter-.')
            wanted = [kind for kind in kinds if kind.partition('-')[0] in self.groups]
            images[folder] = [name for kind in wanted for name in list_images(root, f'{folder}/{kind}', self.left_out)]
        return images

    def list_items(self, root: Path) -> list[dict]:
        """All items, ordered by class and background."""
        items = super().list_items(root)
        for item in items:
            folder, kind = item['img_path'][len(f'{root}/') :].split('/')[:2]
            item.update(gt_label=int(folder.split()[0]), group=self.groups.index(kind.partition('-')[0]))
        return items


@DATASETS.register_module()
class ImageNetDDataset(FolderDataset):
    """ImageNet-D (Zhang et al., CVPR 2024): generated images of 113 classes with unusual backgrounds, textures and
    materials.

    Layout: ``{background,texture,material}/<class folder>/``; not every part has all classes. Each class means one to
    three of ImageNet's. As published for ImageNet classifiers, the decision is between all 1000 classes, and any of
    them is right (for vision-language models the authors decide between the 113 names). Items carry ``group`` (int),
    their part.

    Args:
        data_root (str): Folder of the set, or a common folder of all sets.
        parts (Sequence[str], optional): Some of ``PARTS``. Defaults to all.
        **kwargs: Arguments of :class:`FolderDataset` except ``split_dir``, ``folders`` and ``classes``.

    Raises:
        MissingFileError: A part does not exist.
        ConfigError: An unknown part; unknown or empty class folders.
    """

    PARTS = ('background', 'texture', 'material')
    GROUPS = read_coarse_classes('imagenet_d')
    METAINFO = dict(classes=IMAGENET_CLASSES, label_groups=None)

    def __init__(self, data_root: str, parts: Sequence[str] | None = None, **kwargs) -> None:
        self.parts = check_parts('ImageNetDDataset: parts', parts, self.PARTS)
        published = SETS['imagenet-d']
        protocol = dict(published.protocol, images=published.images if len(self.parts) == 3 else None, num_classes=None)
        super().__init__(
            str(find_set('imagenet-d', data_root)),
            metainfo=dict(group_names=self.parts, protocol=protocol),
            **kwargs,
        )

    def class_images(self, root: Path) -> dict[str, list[str]]:
        """Names of images by class folder, of the classes that a part has."""
        folders = list_class_folders(root)
        unknown = [folder for folder in folders if folder not in self.GROUPS]
        if unknown:
            raise ConfigError(
                f'{root}: {len(unknown)} folders are not classes of ImageNet-D: '
                f'{short_list_with_nearest(unknown, list(self.GROUPS))}.'
            )
        return {folder: list_images(root, folder, self.left_out) for folder in folders}

    def list_items(self, root: Path) -> list[dict]:
        """The items of every part, with all their right classes."""
        missing = [part for part in self.parts if not (root / part).is_dir()]
        if missing:
            raise MissingFileError(
                f'{root}: {short_list(missing)} of ImageNet-D are missing. Get them from {SETS["imagenet-d"].source}, '
                'or select existing ones with parts=[…].'
            )
        items = []
        for group, part in enumerate(self.parts):
            for item in super().list_items(root / part):
                folder = item['img_path'][len(f'{root}/{part}/') :].split('/')[0]
                items.append(dict(item, gt_label=list(self.GROUPS[folder]), group=group))
        return items


@DATASETS.register_module()
class GeirhosDataset(FolderDataset):
    """Cue conflicts, silhouettes and edges (Geirhos et al., ICLR 2019): 16 classes, each of which means one to 109 of
    ImageNet's, in ``<class>/``.

    Evaluate with :class:`mmcfmask.evaluation.CoarseAccuracy`, or :class:`mmcfmask.evaluation.ShapeBias` for cue
    conflicts: their items carry ``texture`` (int), the class of the texture by the file name. ``cat7-airplane3.png``
    has the shape of a cat, and lies in its folder.

    Args:
        data_root (str): Folder of the set, or a common folder of all sets.
        stimuli (str): 'cue-conflict', 'silhouettes' or 'edges'. Defaults to 'cue-conflict'.
        **kwargs: Arguments of :class:`FolderDataset` except ``split_dir``, ``folders`` and ``classes``.

    Raises:
        ConfigError: Unknown stimuli; unknown, missing or empty class folders; a file name without two of the classes,
            or whose shape is not that of its folder.
    """

    STIMULI = ('cue-conflict', 'silhouettes', 'edges')
    GROUPS = read_coarse_classes('geirhos16')
    METAINFO = dict(classes=tuple(GROUPS), label_groups=tuple(GROUPS.values()))

    def __init__(self, data_root: str, stimuli: str = 'cue-conflict', **kwargs) -> None:
        if stimuli not in self.STIMULI:
            raise ConfigError(
                f'GeirhosDataset: unknown stimuli={stimuli!r}, choose one of {", ".join(self.STIMULI)}.'
                f'{near_names(str(stimuli), self.STIMULI)}'
            )
        self.stimuli = stimuli
        super().__init__(
            str(find_set(stimuli, data_root)),
            folders=list(self.GROUPS),
            metainfo=dict(protocol=SETS[stimuli].protocol),
            **kwargs,
        )

    def list_items(self, root: Path) -> list[dict]:
        """All items, ordered by class and name."""
        items = super().list_items(root)
        for item in items if self.stimuli == 'cue-conflict' else ():
            shape, texture = read_cues(item['img_path'], self.METAINFO['classes'])
            if shape != item['gt_label']:
                raise ConfigError(
                    f'{item["img_path"]}: by its name its shape is {self.METAINFO["classes"][shape]}, which is not its '
                    'folder.'
                )
            item['texture'] = texture
        return items


def read_cues(path: str, classes: Sequence[str]) -> tuple[int, int]:
    """Classes of shape and texture of a cue conflict, by its file name: ``cat7-airplane3.png``.

    Raises:
        ConfigError: Another name.
    """
    match = re.fullmatch(r'(?:.*_)?([a-z]+)\d*-([a-z]+)\d*', Path(path).stem)
    if match is None or not set(match.groups()) <= set(classes):
        raise ConfigError(f'{path}: the name must be that of a cue conflict, such as cat7-airplane3.png.')
    return classes.index(match[1]), classes.index(match[2])
