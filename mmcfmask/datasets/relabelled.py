"""ImageNet's validation images with other labels or with factors, and ImageNet-Hard, by the files of their authors."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from mmpretrain.registry import DATASETS

from ..errors import ConfigError
from ..messages import short_list
from .class_folders import MissingSetError
from .csv_tables import missing_files
from .folder import FolderDataset, drop_unreadable
from .imagenet_labels import IMAGENET_CLASSES
from .imagenet_shifts import ImageNetDataset
from .layouts import SETS, find_set
from .names import read_text

FACTORS = (
    'pose', 'background', 'pattern', 'color', 'smaller', 'shape', 'partial_view', 'subcategory', 'texture', 'larger',
    'darker', 'object_blocking', 'person_blocking', 'style', 'brighter', 'multiple_objects',
)  # fmt: skip
"""Factors of ImageNet-X, in the order of its authors."""


def find_labels(given: str | None, data_root: str, val: Path, names: Sequence[str], title: str, source: str) -> Path:
    """A file with labels of the validation images: the one that is given, or one of ``names`` in ``data_root``, in the
    folder of the images or beside it.

    Raises:
        MissingSetError: It does not exist; the message says where to get it.
    """
    places = [Path(data_root), val, val.parent]
    candidates = [Path(given).expanduser()] if given else [place / name for place in places for name in names]
    for path in candidates:
        if path.is_file():
            return path
    looked = given or f'{" or ".join(names)} in {" and ".join(dict.fromkeys(map(str, places)))}'
    raise MissingSetError(f'{title}: there is no file {looked}. Get it from {source}, or give it as annotations.')


def val_number(path: str) -> int:
    """Number of a validation image, from 1, by its file name ``ILSVRC2012_val_00000001.JPEG``.

    Raises:
        ConfigError: Another name.
    """
    match = re.fullmatch(r'ILSVRC2012_val_(\d{8})', Path(path).stem)
    if match is None or not int(match[1]):
        raise ConfigError(f'{path}: validation images must have their names ILSVRC2012_val_00000001.JPEG and so on.')
    return int(match[1])


def read_jsonl(path: Path, keys: Sequence[str]) -> list[dict]:
    """Rows of a file with a JSON object per line.

    Raises:
        ConfigError: No rows, a line that is none, or one without a key; the message names it.
    """
    rows = []
    for number, line in enumerate(read_text(path).split('\n'), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ConfigError(f'{path}, line {number}: not valid JSON ({error}).') from None
        missing = [key for key in keys if not isinstance(row, dict) or key not in row]
        if missing:
            raise ConfigError(f'{path}, line {number}: there is no {short_list(missing)}.')
        rows.append(row)
    if not rows:
        raise ConfigError(f'{path} lists no images.')
    return rows


def check_label_list(labels: object, where: str) -> list[int]:
    """A list of indices of ImageNet's classes, or a ConfigError that begins with ``where``."""
    if not isinstance(labels, list) or any(type(label) is not int or not 0 <= label < 1000 for label in labels):
        raise ConfigError(f"{where}: {labels!r} is not a list of indices of ImageNet's 1000 classes.")
    return labels


class RelabelledDataset(ImageNetDataset):
    """ImageNet's validation images with a file of annotations: ``_name`` in :data:`SETS`, files named ``_files``.

    Args:
        data_root (str): As of :class:`ImageNetDataset`.
        annotations (str, optional): The file. Defaults to the one that is found (:func:`find_labels`).
        **kwargs: Arguments of :class:`ImageNetDataset` except ``split_dir``.
    """

    _name: str
    _files: tuple[str, ...]

    def __init__(self, data_root: str, annotations: str | None = None, **kwargs) -> None:
        self.annotations, self.given_root = annotations, str(Path(data_root).expanduser())
        super().__init__(data_root, 'val', **kwargs)

    def find_annotations(self) -> Path:
        """Path of the file."""
        published = SETS[self._name]
        val = Path(self.img_prefix)
        return find_labels(self.annotations, self.given_root, val, self._files, published.title, published.source)

    def list_items(self, root: Path) -> list[dict]:
        """The annotated images."""
        path = self.find_annotations()
        items = self._annotate(super().list_items(root), path)
        if not items:
            raise ConfigError(f'{path} annotates none of the images in {root}.')
        self.num_listed = len(items)
        self._metainfo['protocol'] = SETS[self._name].protocol
        return items

    def _annotate(self, items: list[dict], path: Path) -> list[dict]:
        raise NotImplementedError


@DATASETS.register_module()
class ImageNetRealDataset(RelabelledDataset):
    """ImageNet's validation images with their ReaL labels (Beyer et al., "Are we done with ImageNet?", 2020).

    ``real.json`` is a list with a list of classes for each image, in the order of their numbers. As published, any of
    the labels is right, and images without a label are left out.

    Args:
        data_root (str): Folder of ImageNet, or one that holds it.
        annotations (str, optional): Path of ``real.json``. Defaults to the one in ``data_root``, in the folder of the
            images or beside it.
        **kwargs: Arguments of :class:`ImageNetDataset` except ``split_dir``.

    Raises:
        MissingSetError: The images or the file do not exist.
        ConfigError: Labels that are none of ImageNet's, an image that the file lacks, or other names of the images.
    """

    _name, _files = 'imagenet-real', ('real.json',)

    def _annotate(self, items: list[dict], path: Path) -> list[dict]:
        try:
            labels = json.loads(read_text(path))
        except json.JSONDecodeError as error:
            raise ConfigError(f'{path} is not valid JSON ({error}).') from None
        if not isinstance(labels, list):
            raise ConfigError(f'{path} must hold a list with a list of classes for each validation image.')
        found = []
        for item in items:
            number = val_number(item['img_path'])
            if number > len(labels):
                raise ConfigError(f'{path} has labels of {len(labels):,} images, but not of {item["img_path"]}.')
            right = check_label_list(labels[number - 1], f'{path}, entry {number}')
            found += [dict(item, gt_label=right)] if right else []
        return found


@DATASETS.register_module()
class ImageNetXDataset(RelabelledDataset):
    """ImageNet's validation images with the factors of ImageNet-X (Idrissi et al., ICLR 2023), for
    :class:`mmcfmask.evaluation.FactorAccuracy`.

    The file has a JSON object per line: ``file_name``, and 0 or 1 for each of :data:`FACTORS`. Items carry ``group``,
    the list of their factors: one in ``imagenet_x_val_top_factor.jsonl``, the default, several in
    ``imagenet_x_val_multi_factor.jsonl``. As published, the prototypes are left out: the images that
    ``prototypical_paths.csv`` beside the file names.

    Args:
        data_root (str): Folder of ImageNet, or one that holds it.
        annotations (str, optional): Path of the file. Defaults to the first in ``data_root``, in the folder of the
            images or beside it.
        **kwargs: Arguments of :class:`ImageNetDataset` except ``split_dir``.

    Raises:
        MissingSetError: The images or the file do not exist.
        ConfigError: Lines without a name or a factor.
    """

    _name, _files = 'imagenet-x', ('imagenet_x_val_top_factor.jsonl', 'imagenet_x_val_multi_factor.jsonl')

    def _annotate(self, items: list[dict], path: Path) -> list[dict]:
        factors = {
            row['file_name']: [index for index, factor in enumerate(FACTORS) if row[factor]]
            for row in read_jsonl(path, ('file_name', *FACTORS))
        }
        prototypes = path.with_name('prototypical_paths.csv')
        if prototypes.is_file():
            for row in csv.DictReader(read_text(prototypes).splitlines()):
                factors.pop(row.get('file_name') or '', None)
        else:
            note = f'with the prototypes: there is no {prototypes.name} beside the annotations'
            self._metainfo['notes'] = [*self._metainfo.get('notes', ()), note]
        self._metainfo['group_names'] = FACTORS
        return [dict(item, group=factors[name]) for item in items if (name := Path(item['img_path']).name) in factors]


@DATASETS.register_module()
class ImageNetHardDataset(FolderDataset):
    """ImageNet-Hard (Taesiri et al., NeurIPS 2023): images that zooming does not make easy, with one or several labels.

    Layout: image files and ``metadata.jsonl`` with ``{"file_name": …, "label": [indices of ImageNet's classes]}`` per
    line (docs/protocols.md says how to write it). As published, the decision is between all 1000 classes, and any of
    the labels is right.

    Args:
        data_root (str): Folder of the set, or a common folder of all sets.
        **kwargs: Arguments of :class:`FolderDataset` except ``split_dir``, ``folders``, ``classes``, ``holdout`` and
            ``per_class``.

    Raises:
        MissingSetError: The folder, the file or all images do not exist.
        ConfigError: Lines without a name or labels, a file in two lines.
    """

    METAINFO = dict(classes=IMAGENET_CLASSES, label_groups=None)

    def __init__(self, data_root: str, **kwargs) -> None:
        for key in ('holdout', 'per_class'):
            if kwargs.get(key):
                raise ConfigError(f'ImageNetHardDataset has no {key}: its images may have several classes.')
        super().__init__(
            str(find_set('imagenet-hard', data_root)), metainfo=dict(protocol=SETS['imagenet-hard'].protocol), **kwargs
        )

    def list_items(self, root: Path) -> list[dict]:
        """The images that the file lists, in its order."""
        path = root / 'metadata.jsonl'
        if not path.is_file():
            raise MissingSetError(f'{SETS["imagenet-hard"].title}: there is no file {path}.')
        rows = read_jsonl(path, ('file_name', 'label'))
        files = [str(row['file_name']) for row in rows]
        twice = [name for name, count in Counter(files).items() if count > 1]
        if twice:
            raise ConfigError(f'{path}: {len(twice)} images stand in several lines: {short_list(twice)}.')
        missing = missing_files(root, files)
        if len(missing) == len(files):
            raise MissingSetError(f'{root}: all {len(files):,} images of {path.name} are missing, such as {files[0]}.')
        labels = {name: check_label_list(row['label'], f'{path}, {name}') for name, row in zip(files, rows)}
        empty = [name for name, right in labels.items() if not right]
        if empty:
            raise ConfigError(f'{path}: {short_list(empty)} have no label.')
        here = [name for name in files if name not in missing]
        self.num_listed = len(here)
        if self.skip_unreadable:
            here = drop_unreadable({path.name: here}, root)[path.name]
            self.num_skipped = self.num_listed - len(here)
        return [dict(img_path=f'{root}/{name}', gt_label=labels[name]) for name in here]
