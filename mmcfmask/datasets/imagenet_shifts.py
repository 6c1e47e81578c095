"""ImageNet and its distribution shifts, each with the labels and the classes of its published protocol."""

from __future__ import annotations

import csv
import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import mat4py
import open_clip
from mmengine.dist import is_main_process
from mmpretrain.registry import DATASETS
from rich.progress import track
from timm.data import ImageNetInfo

from ..errors import ConfigError, MissingFileError
from .folder import FolderDataset, some, some_with_nearest, sub_folders
from .images import is_image_name
from .layouts import CORRUPTIONS, SETS, SEVERITIES, SPLITS, find_imagenet, find_set
from .names import read_text

# In label order, which is the order of the ids. OpenAI's names, in which 'missile' and 'sunglasses' stand twice.
IMAGENET_WNIDS = tuple(ImageNetInfo().label_names())
IMAGENET_CLASSES = tuple(open_clip.IMAGENET_CLASSNAMES)

GROUND_TRUTHS = (
    'ILSVRC2012_validation_ground_truth.txt',
    'LOC_val_solution.csv',
    'imagenet_2012_validation_synset_labels.txt',
    'meta/val.txt',
)
MAPPINGS = (
    'folder_to_objectnet_label.json',
    'objectnet_to_imagenet_1k.json',
    'pytorch_to_imagenet_2012_id.json',
    'imagenet_to_label_2012_v2',
)


def read_class_map(name: str) -> tuple[str, ...]:
    """WordNet ids of ``class_maps/<name>.txt``, in label order."""
    lines = (Path(__file__).parent / 'class_maps' / f'{name}.txt').read_text(encoding='utf-8').splitlines()
    return tuple(line.split()[0] for line in lines if not line.startswith('#'))


def subset_metainfo(name: str, wnids: Sequence[str]) -> dict:
    """Class names, groups of logits and protocol of a published set that has some of ImageNet's classes."""
    indices = [IMAGENET_WNIDS.index(wnid) for wnid in wnids]
    return dict(
        classes=tuple(IMAGENET_CLASSES[index] for index in indices),
        label_groups=tuple((index,) for index in indices),
        protocol=SETS[name].protocol,
    )


@DATASETS.register_module()
class ImageNetDataset(FolderDataset):
    """ImageNet-1k: 1000 folders named by WordNet id, labels in the usual order, class names those of OpenAI's CLIP.

    The validation images may also lie flat, as in their archive. Their labels are then read from a file found in or
    beside the folder (see :func:`find_ground_truth`).

    Args:
        data_root (str): Folder of ImageNet, or one that holds it (see :func:`mmcfmask.datasets.layouts.find_imagenet`).
        split_dir (str): 'train' or 'val'; any other name is that of a sub-folder with the 1000 class folders. Defaults
            to '': ``data_root`` itself holds them.
        ground_truth (str, optional): File with the labels of flat validation images. Defaults to the one that is found.
        **kwargs: Those of :class:`FolderDataset` but ``folders``: ``holdout``, ``per_class``, ``pipeline``, ...

    Raises:
        MissingSetError: The folder is not there.
        FileNotFoundError: Flat images, and no ground truth.
        ValueError: Unknown, missing or empty class folders, or a ground truth that does not fit.
    """

    METAINFO = dict(classes=IMAGENET_CLASSES, label_groups=None, folders=IMAGENET_WNIDS)

    def __init__(self, data_root: str, split_dir: str = '', ground_truth: str | None = None, **kwargs) -> None:
        self.ground_truth = ground_truth
        if split_dir in SPLITS:
            data_root, name = (
                find_imagenet(data_root, split_dir),
                'imagenet' if split_dir == 'val' else 'imagenet-train',
            )
            kwargs['metainfo'] = dict(protocol=SETS[name].protocol)
            split_dir = ''
        super().__init__(str(data_root), split_dir, folders=IMAGENET_WNIDS, **kwargs)

    def class_images(self, root: Path) -> dict[str, list[str]]:
        """As :class:`FolderDataset`, or sorted into classes by the ground truth."""
        names = flat_images(root)
        return flat_val_images(root, names, self.ground_truth) if names else super().class_images(root)


@DATASETS.register_module()
class ImageNetV2Dataset(FolderDataset):
    """ImageNet-V2 (Recht et al., ICML 2019): 10 images of each class in folders "0" to "999", which are the labels.

    Args:
        data_root (str): Its folder, or one for all sets (see :func:`mmcfmask.datasets.layouts.find_set`).
        variant (str): 'matched-frequency', the one that is reported, 'threshold-0.7' or 'top-images'. Defaults to
            'matched-frequency'.
        **kwargs: Those of :class:`FolderDataset` but ``split_dir`` and ``folders``.
    """

    VARIANTS = {
        'matched-frequency': 'imagenet-v2',
        'threshold-0.7': 'imagenet-v2-threshold-0.7',
        'top-images': 'imagenet-v2-top-images',
    }
    METAINFO = dict(classes=IMAGENET_CLASSES, label_groups=None, protocol=SETS['imagenet-v2'].protocol)

    def __init__(self, data_root: str, variant: str = 'matched-frequency', **kwargs) -> None:
        if variant not in self.VARIANTS:
            raise ConfigError(
                f'ImageNetV2Dataset: unknown variant {variant!r}, choose one of {", ".join(self.VARIANTS)}.'
            )
        if variant != 'matched-frequency':
            kwargs['metainfo'] = dict(
                notes=[f'the variant {variant}, not matched-frequency, which is the one reported']
            )
        # By number: sorted as strings, "10" would come before "2".
        super().__init__(
            str(find_set(self.VARIANTS[variant], data_root)), folders=[str(label) for label in range(1000)], **kwargs
        )


@DATASETS.register_module()
class ImageNetRDataset(FolderDataset):
    """ImageNet-R (Hendrycks et al., ICCV 2021): renditions of 200 of ImageNet's classes.

    Args:
        data_root (str): Its folder, or one for all sets (see :func:`mmcfmask.datasets.layouts.find_set`).
        **kwargs: Those of :class:`FolderDataset` but ``split_dir`` and ``folders``.
    """

    WNIDS = read_class_map('imagenet_r')
    METAINFO = subset_metainfo('imagenet-r', WNIDS)

    def __init__(self, data_root: str, **kwargs) -> None:
        super().__init__(str(find_set('imagenet-r', data_root)), folders=self.WNIDS, **kwargs)


@DATASETS.register_module()
class ImageNetADataset(FolderDataset):
    """ImageNet-A (Hendrycks et al., CVPR 2021): natural adversarial examples of 200 of ImageNet's classes.

    Args:
        data_root (str): Its folder, or one for all sets (see :func:`mmcfmask.datasets.layouts.find_set`).
        **kwargs: Those of :class:`FolderDataset` but ``split_dir`` and ``folders``.
    """

    WNIDS = read_class_map('imagenet_a')
    METAINFO = subset_metainfo('imagenet-a', WNIDS)

    def __init__(self, data_root: str, **kwargs) -> None:
        super().__init__(str(find_set('imagenet-a', data_root)), folders=self.WNIDS, **kwargs)


@DATASETS.register_module()
class ImageNetSketchDataset(FolderDataset):
    """ImageNet-Sketch (Wang et al., NeurIPS 2019): black-and-white sketches of all classes.

    Args:
        data_root (str): Its folder, or one for all sets (see :func:`mmcfmask.datasets.layouts.find_set`).
        **kwargs: Those of :class:`FolderDataset` but ``split_dir`` and ``folders``.
    """

    METAINFO = dict(
        classes=IMAGENET_CLASSES, label_groups=None, folders=IMAGENET_WNIDS, protocol=SETS['imagenet-sketch'].protocol
    )

    def __init__(self, data_root: str, **kwargs) -> None:
        super().__init__(str(find_set('imagenet-sketch', data_root)), folders=IMAGENET_WNIDS, **kwargs)


@DATASETS.register_module()
class ObjectNetDataset(FolderDataset):
    """ObjectNet (Barbu et al., NeurIPS 2019): those of its 313 classes, 113 of them, that overlap with ImageNet's.

    Which do, and with what, is read from the set's own mapping files. Several of ImageNet's classes may mean one of
    ObjectNet's. The images have a red border: :class:`CropBorder` must come before the resize in the pipeline.

    Args:
        data_root (str): Its folder (with ``images/`` and ``mappings/``), or one for all sets (see
            :func:`mmcfmask.datasets.layouts.find_set`).
        mappings (str, optional): Folder of the mapping files. Defaults to ``mappings/``, or the set's folder itself.
        **kwargs: Those of :class:`FolderDataset` but ``split_dir``, ``folders`` and ``classes``.

    Raises:
        FileNotFoundError: A mapping file is not there; named, with where it comes from.
        ValueError: Mapping files that do not fit together; unknown, missing or empty class folders.
    """

    def __init__(self, data_root: str, mappings: str | None = None, **kwargs) -> None:
        root = find_set('objectnet', data_root)
        mapping = read_objectnet_mapping(objectnet_mappings(root) if mappings is None else Path(mappings).expanduser())
        folders = sorted(folder for folder, group in mapping.groups.items() if group)
        super().__init__(
            str(objectnet_images(root)),
            folders=folders,
            other_folders=[folder for folder, group in mapping.groups.items() if not group],
            classes=[mapping.labels[folder] for folder in folders],
            metainfo=dict(
                label_groups=tuple(mapping.groups[folder] for folder in folders), protocol=SETS['objectnet'].protocol
            ),
            **kwargs,
        )


@DATASETS.register_module()
class ImageNetCDataset(FolderDataset):
    """ImageNet-C (Hendrycks & Dietterich, ICLR 2019): the validation images under 15 corruptions of 5 severities each.

    Class folders lie in ``<corruption>/<severity>/``, or in ``<archive>/<corruption>/<severity>/`` with the archives
    noise, blur, weather and digital. Items also have ``corruption`` (str) and ``severity`` (int);
    ``PackInputs(meta_keys=…)`` passes them on. The list of all 3.75 million images takes a minute to make, 3.3 GB
    meanwhile and 0.6 GB after, in every process.

    Args:
        data_root (str): Its folder, or one for all sets (see :func:`mmcfmask.datasets.layouts.find_set`).
        corruptions (Sequence[str], optional): Some of the 15. Defaults to all.
        severities (Sequence[int]): Some of 1 to 5. Defaults to all.
        **kwargs: Those of :class:`FolderDataset` but ``split_dir`` and ``folders``; ``per_class`` and ``holdout``
            choose the same images under every corruption.
    """

    CORRUPTIONS = tuple(name for names in CORRUPTIONS.values() for name in names)
    METAINFO = dict(classes=IMAGENET_CLASSES, label_groups=None)

    def __init__(
        self, data_root: str, corruptions: Sequence[str] | None = None, severities: Sequence[int] = SEVERITIES, **kwargs
    ) -> None:
        self.corruptions = self.CORRUPTIONS if corruptions is None else tuple(corruptions)
        self.severities = tuple(severities)
        unknown = [name for name in self.corruptions if name not in self.CORRUPTIONS]
        if unknown or not self.corruptions:
            raise ConfigError(
                f'ImageNetCDataset: corruptions={corruptions!r}: '
                f'{some_with_nearest(unknown, self.CORRUPTIONS) or "none"}; '
                f'choose from {", ".join(self.CORRUPTIONS)}.'
            )
        if not self.severities or set(self.severities) - set(SEVERITIES):
            raise ConfigError(f'ImageNetCDataset: severities={severities!r} must be some of 1, 2, 3, 4, 5.')
        protocol = dict(SETS['imagenet-c'].protocol, images=50_000 * len(self.corruptions) * len(self.severities))
        super().__init__(
            str(find_set('imagenet-c', data_root)), folders=IMAGENET_WNIDS, metainfo=dict(protocol=protocol), **kwargs
        )

    def list_items(self, root: Path) -> list[dict]:
        """Items of every corruption and severity, in the order of the arguments."""
        places = corruption_folders(root, self.corruptions, self.severities)
        missing = [f'{name}/{severity}' for (name, severity), place in places.items() if place is None]
        if missing:
            raise MissingFileError(
                f'{root}: {len(missing)} of {len(places)} folders are missing: {some(missing)}. Get them from '
                f'{SETS["imagenet-c"].source}, or name those that are there with corruptions and severities.'
            )
        items = []
        for (name, severity), place in track(
            places.items(), 'Listing ImageNet-C', transient=True, disable=not is_main_process()
        ):
            items += [dict(item, corruption=name, severity=severity) for item in super().list_items(place)]
        return items


# ImageNet's validation images in one flat folder
# ---------------------------------------------------------------------------


def flat_images(root: Path) -> list[str]:
    """Names of the images in a folder that has no sub-folders; empty if it has some, or is not there."""
    if not root.is_dir() or sub_folders(root):
        return []
    return sorted(name for name in os.listdir(root) if is_image_name(name))


def flat_val_images(root: Path, names: Sequence[str], ground_truth: str | Path | None = None) -> dict[str, list[str]]:
    """Names of images by WordNet id, in label order.

    Raises:
        FileNotFoundError: No ground truth.
        ValueError: Images that it does not know.
    """
    path = find_ground_truth(root) if ground_truth is None else Path(ground_truth).expanduser()
    truth = read_ground_truth(path)
    unknown = [name for name in names if Path(name).stem not in truth]
    if unknown:
        raise ConfigError(f'{root}: {path} does not know {len(unknown)} of {len(names)} images: {some(unknown)}.')
    images = {wnid: [] for wnid in IMAGENET_WNIDS}
    for name in names:
        images[truth[Path(name).stem]].append(name)
    return images


def find_ground_truth(val: Path) -> Path:
    """The file with the labels of flat validation images: one of :data:`GROUND_TRUTHS` in the folder, beside it, in the
    unpacked devkit beside it, or, of Kaggle's archive, at its top.

    Raises:
        FileNotFoundError: There is none. Says where to get it.
    """
    beside = val.absolute().parent
    places = [
        val,
        beside,
        beside / 'ILSVRC2012_devkit_t12' / 'data',
        beside / 'ILSVRC2012_devkit_t12',
        beside / 'devkit' / 'data',
        *list(beside.parents)[:3],
    ]
    for path in (place / name for place in places for name in GROUND_TRUTHS):
        if path.is_file():
            return path
    raise MissingFileError(
        f'{val} holds images but no class folders, and their labels were not found: looked for '
        f'{", ".join(GROUND_TRUTHS)} in it and beside it. Unpack ILSVRC2012_devkit_t12.tar.gz from '
        f'{SETS["imagenet"].source} beside it, give the file as ground_truth, or sort the images into class folders.'
    )


def read_ground_truth(path: Path) -> dict[str, str]:
    """WordNet id of every validation image, by the stem of its file name.

    Formats: the devkit's (a number per line, in the order of the images, with ``meta.mat`` beside it), a WordNet id per
        line in that
    order, Kaggle's CSV, and ``<image> <label>`` lines with WordNet ids or labels from 0.

    Raises:
        FileNotFoundError: No such file, or no ``meta.mat`` beside the devkit's.
        ValueError: A line that is none of these; named.
    """
    if not path.is_file():
        raise MissingFileError(f'There is no ground truth {path}.')
    text = read_text(path)
    if path.suffix == '.csv':
        table = csv.DictReader(text.splitlines())
        if not {'ImageId', 'PredictionString'} <= set(table.fieldnames or ()):
            raise ConfigError(
                f'{path} has no columns ImageId and PredictionString, as LOC_val_solution.csv has, but '
                f'{some(table.fieldnames or ["none"])}.'
            )
        rows = [(row['ImageId'], ((row['PredictionString'] or '').split() or [''])[0]) for row in table]
    else:
        lines = [line.split() for line in text.splitlines() if line.strip()]
        rows = [
            (Path(line[0]).stem, line[1]) if len(line) == 2 else (f'ILSVRC2012_val_{number:08d}', line[0])
            for number, line in enumerate(lines, start=1)
        ]
        if all(len(line) == 1 and line[0].isdigit() for line in lines):
            numbers = devkit_wnids(path.with_name('meta.mat'))
            rows = [(stem, numbers.get(int(label), label)) for stem, label in rows]
        elif all(len(line) == 2 and line[1].isdigit() for line in lines):
            rows = [(stem, dict(enumerate(IMAGENET_WNIDS)).get(int(label), label)) for stem, label in rows]
    known = set(IMAGENET_WNIDS)
    for stem, wnid in rows:
        if wnid not in known:
            raise ConfigError(f"{path}: the label {wnid!r} of {stem} is not one of ImageNet's 1000 classes.")
    return dict(rows)


def devkit_wnids(meta: Path) -> dict[int, str]:
    """WordNet id of each of the devkit's numbers (1 to 1000 for the classes), from its ``meta.mat``."""
    if not meta.is_file():
        raise MissingFileError(
            f'There is no {meta}, which says what the numbers of the ground truth beside it mean. Both come in '
            f'ILSVRC2012_devkit_t12.tar.gz from {SETS["imagenet"].source}.'
        )
    synsets = mat4py.loadmat(str(meta))['synsets']
    return dict(zip(synsets['ILSVRC2012_ID'], synsets['WNID']))


# ObjectNet's mapping files
# -------------------------------------------------------------------------------------------------


class ObjectNetMapping(NamedTuple):
    """What ObjectNet's folders mean.

    Attributes:
        labels: ObjectNet's name of every folder.
        groups: Indices of ImageNet's classes that mean it, in ascending order; empty where none does.
    """

    labels: dict[str, str]
    groups: dict[str, tuple[int, ...]]


def objectnet_images(root: Path) -> Path:
    """Where the class folders lie."""
    return root / 'images' if (root / 'images').is_dir() else root


def objectnet_mappings(root: Path) -> Path:
    """Where the mapping files lie: in ``mappings/``, in the set's folder itself, or beside the class folders."""
    places = [root / 'mappings', root, root.parent / 'mappings']
    return next((place for place in places if (place / MAPPINGS[0]).is_file()), places[0])


def read_objectnet_mapping(folder: Path) -> ObjectNetMapping:
    """Join ObjectNet's four mapping files.

    ``folder_to_objectnet_label.json``: folder to ObjectNet's name. ``objectnet_to_imagenet_1k.json``: name to one or
    several labels of ImageNet, separated by ``; ``. ``imagenet_to_label_2012_v2``: such a label per line, in the order
    of the devkit's numbers (from 0). ``pytorch_to_imagenet_2012_id.json``: the usual index of a class to that number.

    Raises:
        FileNotFoundError: One is not there; named, with where it comes from.
        ValueError: They do not fit together.
    """
    missing = [name for name in MAPPINGS if not (folder / name).is_file()]
    if missing:
        raise MissingFileError(
            f'{folder} lacks {some(missing)}, which says which classes of ObjectNet are classes of ImageNet. The '
            f'mapping files come with the set ({SETS["objectnet"].source}, mappings/ in objectnet-1.0.zip).'
        )
    tables = {}
    for name in MAPPINGS[:3]:
        try:
            tables[name] = json.loads(read_text(folder / name))
        except json.JSONDecodeError as error:
            raise ConfigError(f'{folder / name} is no valid JSON ({error}).') from None
    labels, overlap, numbers = tables.values()
    lines = [line.strip() for line in read_text(folder / MAPPINGS[3]).splitlines()]
    usual = {number: int(index) for index, number in numbers.items()}
    if len(usual) != len(numbers) or not set(usual) <= set(range(len(lines))):
        raise ConfigError(f'{folder / MAPPINGS[2]} does not number the {len(lines)} lines of {MAPPINGS[3]} one by one.')
    index = {label: usual[number] for number, label in enumerate(lines) if number in usual}
    twice = {label for label, count in Counter(lines).items() if count > 1}  # 'crane' is a bird and a machine
    unknown = set(overlap) - set(labels.values())
    if unknown:
        raise ConfigError(f'{folder / MAPPINGS[1]}: {some(sorted(unknown))} are no labels in {MAPPINGS[0]}.')

    groups = {}
    for name, label in labels.items():
        names = [part.strip() for part in overlap[label].split(';')] if label in overlap else []
        wrong = [part for part in names if part not in index or part in twice]
        if wrong:
            raise ConfigError(
                f'{folder / MAPPINGS[1]}: {some(wrong)} of {label!r} are not each one line of {MAPPINGS[3]}.'
            )
        groups[name] = tuple(sorted(index[part] for part in names))
    return ObjectNetMapping(labels, groups)


# ImageNet-C's folders
# ------------------------------------------------------------------------------------------------------


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
