"""Labels of ImageNet and its shifts, from the files that come with them."""

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
from timm.data import ImageNetInfo

from ..errors import ConfigError, MissingFileError
from ..messages import short_list
from .class_folders import sub_folders
from .images import is_image_name
from .layouts import SETS
from .names import read_text

# In label order, which is the order of the ids. OpenAI's names contain 'missile' and 'sunglasses' twice.
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


def read_coarse_classes(name: str) -> dict[str, tuple[int, ...]]:
    """Indices of the ImageNet classes that each class of another set means, by class folder, from
    ``class_maps/<name>.txt``."""
    lines = (Path(__file__).parent / 'class_maps' / f'{name}.txt').read_text(encoding='utf-8').splitlines()
    groups: dict[str, list[int]] = {}
    for _, index, folder in (line.split(maxsplit=2) for line in lines if not line.startswith('#')):
        groups.setdefault(folder, []).append(int(index))
    return {folder: tuple(indices) for folder, indices in groups.items()}


CLASS_ROWS = ('waterbirds',)  # class maps that give classes of another set as groups of ImageNet's


def read_class_rows(name: str) -> list[list[int]]:
    """Indices of ImageNet's classes for each class of another set, by ``class_maps/<name>.txt``."""
    lines = (Path(__file__).parent / 'class_maps' / f'{name}.txt').read_text(encoding='utf-8').splitlines()
    pairs = [tuple(map(int, line.split()[1:3])) for line in lines if not line.startswith('#')]
    return [[index for index, label in pairs if label == row] for row in range(max(label for _, label in pairs) + 1)]


def flat_images(root: Path) -> list[str]:
    """Names of the images in a folder without sub-folders; empty if it has sub-folders or does not exist."""
    if not root.is_dir() or sub_folders(root):
        return []
    return sorted(name for name in os.listdir(root) if is_image_name(name))


def flat_val_images(root: Path, names: Sequence[str], ground_truth: str | Path | None = None) -> dict[str, list[str]]:
    """Names of images by WordNet id, in label order.

    Raises:
        MissingFileError: The ground truth does not exist.
        ConfigError: The ground truth lacks an image.
    """
    path = find_ground_truth(root) if ground_truth is None else Path(ground_truth).expanduser()
    truth = read_ground_truth(path)
    unknown = [name for name in names if Path(name).stem not in truth]
    if unknown:
        raise ConfigError(f'{root}: {path} lacks {len(unknown)} of {len(names)} images: {short_list(unknown)}.')
    images = {wnid: [] for wnid in IMAGENET_WNIDS}
    for name in names:
        images[truth[Path(name).stem]].append(name)
    return images


def find_ground_truth(val: Path) -> Path:
    """The file with the labels of flat validation images: one of :data:`GROUND_TRUTHS` in the folder, beside it, in the
    unpacked devkit beside it, or at the top of Kaggle's archive.

    Raises:
        MissingFileError: It is not found. The message says where to get it.
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

    Formats: the devkit's (one number per line, in the order of the images, with ``meta.mat`` beside it), one WordNet id
    per line in that order, Kaggle's CSV, and ``<image> <label>`` lines with WordNet ids or labels from 0.

    Raises:
        MissingFileError: The file does not exist, or ``meta.mat`` beside the devkit's.
        ConfigError: A label is not a class of ImageNet; the message names it.
    """
    if not path.is_file():
        raise MissingFileError(f'The ground truth {path} does not exist.')
    text = read_text(path)
    if path.suffix == '.csv':
        table = csv.DictReader(text.splitlines())
        if not {'ImageId', 'PredictionString'} <= set(table.fieldnames or ()):
            raise ConfigError(
                f'{path} lacks the columns ImageId and PredictionString of LOC_val_solution.csv; it has '
                f'{short_list(table.fieldnames or ["none"])}.'
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
    """WordNet id of each number of the devkit (1 to 1000 for the classes), from its ``meta.mat``."""
    if not meta.is_file():
        raise MissingFileError(
            f'{meta} does not exist; it maps the numbers of the ground truth beside it to classes. Both come in '
            f'ILSVRC2012_devkit_t12.tar.gz from {SETS["imagenet"].source}.'
        )
    synsets = mat4py.loadmat(str(meta))['synsets']
    return dict(zip(synsets['ILSVRC2012_ID'], synsets['WNID']))


class ObjectNetMapping(NamedTuple):
    """What ObjectNet's folders mean.

    Attributes:
        labels: ObjectNet's name of every folder.
        groups: Indices of the matching ImageNet classes, in ascending order; empty if none matches.
    """

    labels: dict[str, str]
    groups: dict[str, tuple[int, ...]]


def read_objectnet_mapping(folder: Path) -> ObjectNetMapping:
    """Join ObjectNet's four mapping files.

    - ``folder_to_objectnet_label.json``: folder to ObjectNet's name;
    - ``objectnet_to_imagenet_1k.json``: that name to one or several ImageNet labels, separated by ``; ``;
    - ``imagenet_to_label_2012_v2``: one ImageNet label per line, in the order of the devkit's numbers (from 0);
    - ``pytorch_to_imagenet_2012_id.json``: the usual class index to the devkit's number.

    Raises:
        MissingFileError: A file does not exist; the message names it and its source.
        ConfigError: The files do not fit together.
    """
    missing = [name for name in MAPPINGS if not (folder / name).is_file()]
    if missing:
        raise MissingFileError(
            f'{folder} lacks {short_list(missing)}; the mapping files say which classes of ObjectNet are in ImageNet '
            f'and come with the set ({SETS["objectnet"].source}, mappings/ in objectnet-1.0.zip).'
        )
    tables = {}
    for name in MAPPINGS[:3]:
        try:
            tables[name] = json.loads(read_text(folder / name))
        except json.JSONDecodeError as error:
            raise ConfigError(f'{folder / name} is not valid JSON ({error}).') from None
    labels, overlap, numbers = tables.values()
    lines = [line.strip() for line in read_text(folder / MAPPINGS[3]).splitlines()]
    usual = {number: int(index) for index, number in numbers.items()}
    if len(usual) != len(numbers) or not set(usual) <= set(range(len(lines))):
        raise ConfigError(f'{folder / MAPPINGS[2]} does not number the {len(lines)} lines of {MAPPINGS[3]} one by one.')
    index = {label: usual[number] for number, label in enumerate(lines) if number in usual}
    twice = {label for label, count in Counter(lines).items() if count > 1}  # 'crane' is a bird and a machine
    unknown = set(overlap) - set(labels.values())
    if unknown:
        raise ConfigError(f'{folder / MAPPINGS[1]}: {short_list(sorted(unknown))} are not labels of {MAPPINGS[0]}.')

    groups = {}
    for name, label in labels.items():
        names = [part.strip() for part in overlap[label].split(';')] if label in overlap else []
        wrong = [part for part in names if part not in index or part in twice]
        if wrong:
            raise ConfigError(
                f'{folder / MAPPINGS[1]}: {short_list(wrong)} of {label!r} must match exactly one line of '
                f'{MAPPINGS[3]}.'
            )
        groups[name] = tuple(sorted(index[part] for part in names))
    return ObjectNetMapping(labels, groups)
