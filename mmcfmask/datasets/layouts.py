"""ImageNet and its shifts, Waterbirds and other benchmarks: what was published, and how a folder is found."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from ..errors import ConfigError
from .class_folders import MissingSetError, sub_folders
from .published import BENCHMARKS, PublishedSet
from .shards import SUFFIXES, find_shards

CORRUPTIONS = {  # by archive, which is also the folder in it
    'noise': ('gaussian_noise', 'shot_noise', 'impulse_noise'),
    'blur': ('defocus_blur', 'glass_blur', 'motion_blur', 'zoom_blur'),
    'weather': ('snow', 'frost', 'fog', 'brightness'),
    'digital': ('contrast', 'elastic_transform', 'pixelate', 'jpeg_compression'),
}
SEVERITIES = (1, 2, 3, 4, 5)
# Folder names of a split. Validation images lie in them flat or in class folders.
SPLITS = {'train': ('train', 'ILSVRC2012_img_train'), 'val': ('val', 'ILSVRC2012_img_val', 'validation')}
WATERBIRDS_GROUPS = {  # images of land birds on land and on water, water birds on land and on water
    'train': (3498, 184, 56, 1057),
    'val': (467, 466, 133, 133),
    'test': (2255, 2255, 642, 642),
}
IMAGENET_FOLDERS = ('imagenet', 'imagenet-1k', 'ILSVRC2012', 'ILSVRC', 'imagenet-object-localization-challenge')


_IMAGENET = 'https://image-net.org/download.php'
_V2 = 'https://huggingface.co/datasets/vaishaal/ImageNetV2'
WNIDS = ('n????????',)
_NUMBERS = ('[0-9]', '[0-9][0-9]', '[0-9][0-9][0-9]')

SETS = {
    'imagenet': PublishedSet('ImageNet (val)', 50_000, 1000, _IMAGENET, IMAGENET_FOLDERS, SPLITS['val']),
    'imagenet-train': PublishedSet('ImageNet (train)', 1_281_167, 1000, _IMAGENET, IMAGENET_FOLDERS, SPLITS['train']),
    'imagenet-v2': PublishedSet(
        'ImageNet-V2 (matched-frequency)',
        10_000,
        1000,
        _V2,
        ('imagenetv2-matched-frequency-format-val', 'imagenetv2-matched-frequency'),
        _NUMBERS,
        also=('imagenet-v2',),
    ),
    'imagenet-v2-threshold-0.7': PublishedSet(
        'ImageNet-V2 (threshold-0.7)',
        10_000,
        1000,
        _V2,
        ('imagenetv2-threshold0.7-format-val', 'imagenetv2-threshold-0.7'),
        _NUMBERS,
        also=('imagenet-v2',),
    ),
    'imagenet-v2-top-images': PublishedSet(
        'ImageNet-V2 (top-images)',
        10_000,
        1000,
        _V2,
        ('imagenetv2-top-images-format-val', 'imagenetv2-top-images'),
        _NUMBERS,
        also=('imagenet-v2',),
    ),
    'imagenet-r': PublishedSet(
        'ImageNet-R', 30_000, 200, 'https://people.eecs.berkeley.edu/~hendrycks/imagenet-r.tar', ('imagenet-r',), WNIDS
    ),
    'imagenet-a': PublishedSet(
        'ImageNet-A', 7_500, 200, 'https://people.eecs.berkeley.edu/~hendrycks/imagenet-a.tar', ('imagenet-a',), WNIDS
    ),
    'imagenet-sketch': PublishedSet(
        'ImageNet-Sketch',
        50_889,
        1000,
        'https://github.com/HaohanWang/ImageNet-Sketch',
        ('imagenet-sketch',),
        WNIDS,
        also=('sketch',),
    ),
    'objectnet': PublishedSet(
        'ObjectNet',
        18_574,
        113,
        'https://objectnet.dev',
        ('objectnet-1.0', 'objectnet', 'objectnet-1.0-beta'),
        ('mappings/*.json', 'folder_to_objectnet_label.json', 'images/alarm_clock', 'alarm_clock'),
    ),
    'imagenet-c': PublishedSet(
        'ImageNet-C',
        75 * 50_000,
        1000,
        'https://zenodo.org/records/2235448',
        ('imagenet-c',),
        tuple(
            f'{parent}{name}' for group, names in CORRUPTIONS.items() for name in names for parent in ('', f'{group}/')
        ),
    ),
    'waterbirds': PublishedSet(
        'Waterbirds',
        sum(map(sum, WATERBIRDS_GROUPS.values())),
        2,
        'https://github.com/kohpangwei/group_DRO#waterbirds',
        ('waterbird_complete95_forest2water2', 'waterbirds', 'waterbirds_v1.0'),
        ('[0-2][0-9][0-9].[A-Z]*_[A-Z]*',),  # species of CUB-200
    ),
    **BENCHMARKS,
}


def find_set(name: str, data_root: str | Path, any_name: bool = True) -> Path:
    """The folder of a shift: in a common ``data_root`` of all sets, or ``data_root`` itself.

    Looks, in this order, at

    1. ``data_root`` itself, unless it has the name of another set;
    2. the folders in it that have a name of the set, and folders in them that have one again (an archive unpacked into
       its own folder, the three variants of ImageNet-V2 in one folder);
    3. the same beside ``data_root``, if that is ImageNet's own folder, with train or val in it.

    Returns the first folder with the signs of the set. If none has them, returns the first one with its name, so that
    the dataset can say what is wrong with it, or the first one with shards. Names are compared without case and
    punctuation. ``data_root`` may also be a pattern of shards, which is returned as it is.

    Args:
        name: Key of :data:`SETS`, except ImageNet itself, which :func:`find_imagenet` finds.
        data_root: Folder.
        any_name: Whether ``data_root`` itself may have any name.

    Raises:
        MissingSetError: The set is not found. The message says what was looked for and where to get it.
    """
    wanted, root = SETS[name], _absolute(data_root)
    names = wanted.folders + wanted.also
    beside = [root.parent] if any((root / folder).is_dir() for folders in SPLITS.values() for folder in folders) else []
    candidates = [path for base in (root, *beside) for path in _named(base, names)]
    others = {_plain(folder) for other in SETS.values() if other is not wanted for folder in other.folders}
    # ImageNet's own folders, which hold the same WordNet ids.
    others |= {_plain(folder) for folders in SPLITS.values() for folder in folders}
    if _plain(root.name) not in others and (any_name or _plain(root.name) in map(_plain, names)):
        candidates.insert(0, root)
    for path in candidates:
        if any(next(path.glob(sign), None) is not None for sign in wanted.signs):
            return path
    for path in candidates:
        if path.is_dir() and _plain(path.name) in map(_plain, wanted.folders):
            return path
    for path in candidates:
        if holds_shards(path):
            return path
    raise _missing(wanted, names, root, [root, *beside])


def holds_shards(path: Path) -> bool:
    """Whether a folder holds the shards of one data set, and not the archives in which published sets come."""
    archives = {_plain(name) for other in SETS.values() for name in other.folders + other.also}
    archives |= {_plain(name) for names in SPLITS.values() for name in names}
    with suppress(ConfigError):  # of several splits
        return any(_plain(shard.stem) not in archives for shard in find_shards(path))
    return False


def find_imagenet(data_root: str | Path, split: str) -> Path:
    """The folder of a split of ImageNet: in ``data_root``, in a folder in it that has a name of ImageNet (Kaggle's
    ``ILSVRC/Data/CLS-LOC`` included), or ``data_root`` itself. Without such a folder, a pattern of the shards in these
    places, or in ``data`` there, whose names say the split: ``data/train-*.parquet``.

    Raises:
        MissingSetError: The split is not found. The message says what was looked for and where to get it.
    """
    root = _absolute(data_root)
    homes = [root, *_named(root, IMAGENET_FOLDERS)]
    inside = ('', 'Data/CLS-LOC', 'ILSVRC/Data/CLS-LOC')
    for path in (home / part / folder for home in homes for part in inside for folder in SPLITS[split]):
        if path.is_dir():
            return path
    if root.is_dir() and root.name in SPLITS[split]:
        return root
    for pattern in (
        home / part / f'*{split}*{suffix}' for home in homes for part in ('', 'data') for suffix in SUFFIXES
    ):
        shards = find_shards(pattern)
        if shards and not any(_plain(shard.stem) in map(_plain, SPLITS[split]) for shard in shards):
            return pattern
    raise _missing(SETS['imagenet' if split == 'val' else 'imagenet-train'], SPLITS[split], root, homes)


def _missing(wanted: PublishedSet, names: tuple[str, ...], root: Path, places: list[Path]) -> MissingSetError:
    if not root.is_dir():
        return MissingSetError(f'{wanted.title}: the folder {root} does not exist. Set data_root.')
    return MissingSetError(
        f'{wanted.title} was not found: looked for {" or ".join(names)} in {" and ".join(map(str, places))}. Get it '
        f'from {wanted.source} and unpack it there, or set data_root of the dataset to its folder.'
    )


def _named(base: Path, names: tuple[str, ...]) -> Iterator[Path]:
    """Folders in ``base`` with one of the names, in the order of the names, each followed by such folders in it."""
    here = {_plain(folder): base / folder for folder in reversed(sub_folders(base))} if base.is_dir() else {}
    for name in map(_plain, names):
        if name in here:
            yield here[name]
            yield from _named(here[name], names)


def _absolute(data_root: str | Path) -> Path:
    # Links are not resolved: the other sets lie beside the link, not beside its target.
    return Path(os.path.abspath(os.path.expanduser(data_root)))


def _plain(name: str) -> str:
    return re.sub(r'[^a-z0-9]', '', name.lower())


def objectnet_images(root: Path) -> Path:
    """The folder of ObjectNet's class folders."""
    return root / 'images' if (root / 'images').is_dir() else root


def objectnet_mappings(root: Path) -> Path:
    """The folder of ObjectNet's mapping files: ``mappings/``, the set's folder itself, or beside the class folders."""
    places = [root / 'mappings', root, root.parent / 'mappings']
    return next((place for place in places if (place / 'folder_to_objectnet_label.json').is_file()), places[0])


def corruption_folders(
    root: Path, corruptions: Sequence[str], severities: Sequence[int]
) -> dict[tuple[str, int], Path | None]:
    """Folder of each corruption and severity; None if it does not exist."""
    archive = {name: group for group, names in CORRUPTIONS.items() for name in names}
    places = {}
    for name in corruptions:
        parents = [root / name, root / archive[name] / name]
        for severity in severities:
            places[name, severity] = next(
                (parent / str(severity) for parent in parents if (parent / str(severity)).is_dir()), None
            )
    return places
