"""ImageNet and its shifts: what was published about each set, and the one rule by which its folder is found."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .class_folders import MissingSetError, sub_folders

CORRUPTIONS = {  # by the archive, and the folder in it, that holds them
    'noise': ('gaussian_noise', 'shot_noise', 'impulse_noise'),
    'blur': ('defocus_blur', 'glass_blur', 'motion_blur', 'zoom_blur'),
    'weather': ('snow', 'frost', 'fog', 'brightness'),
    'digital': ('contrast', 'elastic_transform', 'pixelate', 'jpeg_compression'),
}
SEVERITIES = (1, 2, 3, 4, 5)
# Names of the folder of a split; images of the validation set lie there flat, or in class folders.
SPLITS = {'train': ('train', 'ILSVRC2012_img_train'), 'val': ('val', 'ILSVRC2012_img_val', 'validation')}
IMAGENET_FOLDERS = ('imagenet', 'imagenet-1k', 'ILSVRC2012', 'ILSVRC', 'imagenet-object-localization-challenge')


@dataclass(frozen=True)
class PublishedSet:
    """What was published about a set, and how its folder is recognised.

    Attributes:
        title: Its name in print.
        images, num_classes: Published counts, of what is scored.
        source: Where to get it.
        folders: Names its folder goes by; those of the archives as unpacked come first.
        signs: What such a folder holds and a folder of many sets does not: glob patterns below it.
        also: Names that are used for other things too, and so count only together with the signs.
    """

    title: str
    images: int
    num_classes: int
    source: str
    folders: tuple[str, ...]
    signs: tuple[str, ...]
    also: tuple[str, ...] = ()

    @property
    def protocol(self) -> dict:
        """For the metainfo of a dataset."""
        return dict(images=self.images, num_classes=self.num_classes, source=self.source)


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
}


def find_set(name: str, data_root: str | Path, any_name: bool = True) -> Path:
    """The folder of a shift, from one ``data_root`` for all sets or from its own.

    Looked at, in this order:

    1. ``data_root`` itself, unless it has the name of another set;
    2. the folders in it that have a name of the set, and those in them that have one again (an archive unpacked into a
    folder of its
       own, the three variants of ImageNet-V2 in one folder);
    3. the same beside ``data_root``, where that is ImageNet's own folder, with train or val in it.

    The first folder with the signs of the set is taken; where none has them, the first with its name, so that the
    dataset can say what is wrong with it. Names are compared without case and punctuation.

    Args:
        name: Key of :data:`SETS`, but not ImageNet itself, which :func:`find_imagenet` finds.
        data_root: Folder.
        any_name: Whether ``data_root`` itself may have a name that is not the set's.

    Raises:
        MissingSetError: There is none. Names what was looked for, and where to get it.
    """
    wanted, root = SETS[name], _absolute(data_root)
    names = wanted.folders + wanted.also
    beside = [root.parent] if any((root / folder).is_dir() for folders in SPLITS.values() for folder in folders) else []
    candidates = [path for base in (root, *beside) for path in _named(base, names)]
    others = {_plain(folder) for other in SETS.values() if other is not wanted for folder in other.folders}
    others |= {
        _plain(folder) for folders in SPLITS.values() for folder in folders
    }  # ImageNet's own, of the same WordNet ids
    if _plain(root.name) not in others and (any_name or _plain(root.name) in map(_plain, names)):
        candidates.insert(0, root)
    for path in candidates:
        if any(next(path.glob(sign), None) is not None for sign in wanted.signs):
            return path
    for path in candidates:
        if path.is_dir() and _plain(path.name) in map(_plain, wanted.folders):
            return path
    raise _missing(wanted, names, root, [root, *beside])


def find_imagenet(data_root: str | Path, split: str) -> Path:
    """The folder of a split of ImageNet: in ``data_root`` if that is ImageNet's folder, or in a folder of one of its
    names in it, or ``data_root`` itself. Kaggle's ``ILSVRC/Data/CLS-LOC`` is looked into.

    Raises:
        MissingSetError: There is none. Names what was looked for, and where to get it.
    """
    root = _absolute(data_root)
    homes = [root, *_named(root, IMAGENET_FOLDERS)]
    inside = ('', 'Data/CLS-LOC', 'ILSVRC/Data/CLS-LOC')
    for path in (home / part / folder for home in homes for part in inside for folder in SPLITS[split]):
        if path.is_dir():
            return path
    if root.is_dir() and root.name in SPLITS[split]:
        return root
    raise _missing(SETS['imagenet' if split == 'val' else 'imagenet-train'], SPLITS[split], root, homes)


def _missing(wanted: PublishedSet, names: tuple[str, ...], root: Path, places: list[Path]) -> MissingSetError:
    if not root.is_dir():
        return MissingSetError(f'{wanted.title}: there is no folder {root}. Set data_root.')
    return MissingSetError(
        f'{wanted.title} is not there: looked for {" or ".join(names)} in {" and ".join(map(str, places))}. Get it '
        f'from {wanted.source} and unpack it there, or set data_root of the dataset to its folder.'
    )


def _named(base: Path, names: tuple[str, ...]) -> Iterator[Path]:
    """Folders in ``base`` with one of the names, each followed by such folders in itself; in the order of the names."""
    here = {_plain(folder): base / folder for folder in reversed(sub_folders(base))} if base.is_dir() else {}
    for name in map(_plain, names):
        if name in here:
            yield here[name]
            yield from _named(here[name], names)


def _absolute(data_root: str | Path) -> Path:
    return Path(
        os.path.abspath(os.path.expanduser(data_root))
    )  # not resolved: what lies beside a link is meant, not beside its target


def _plain(name: str) -> str:
    return re.sub(r'[^a-z0-9]', '', name.lower())


def objectnet_images(root: Path) -> Path:
    """Where the class folders lie."""
    return root / 'images' if (root / 'images').is_dir() else root


def objectnet_mappings(root: Path) -> Path:
    """Where the mapping files lie: in ``mappings/``, in the set's folder itself, or beside the class folders."""
    places = [root / 'mappings', root, root.parent / 'mappings']
    return next((place for place in places if (place / 'folder_to_objectnet_label.json').is_file()), places[0])


def corruption_folders(
    root: Path, corruptions: Sequence[str], severities: Sequence[int]
) -> dict[tuple[str, int], Path | None]:
    """Folder of each corruption and severity; None where there is none."""
    archive = {name: group for group, names in CORRUPTIONS.items() for name in names}
    places = {}
    for name in corruptions:
        parents = [root / name, root / archive[name] / name]
        for severity in severities:
            places[name, severity] = next(
                (parent / str(severity) for parent in parents if (parent / str(severity)).is_dir()), None
            )
    return places
