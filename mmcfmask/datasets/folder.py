"""Image folders with one sub-folder per class, seeded hold-outs and subsets; PACS."""
from __future__ import annotations

import difflib
import hashlib
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from mmengine.logging import print_log
from mmpretrain.datasets import BaseDataset
from mmpretrain.registry import DATASETS
from rich.progress import track

from ..errors import StorageError
from .images import EXTENSIONS, find_images, is_hidden, left_out_words, lies_in, list_folder, why_unreadable, why_unreadable_all


class MissingSetError(FileNotFoundError):
    """The folder of a data set is not there; the message says what was looked for, and where to get it if it is a published set."""


@DATASETS.register_module()
class FolderDataset(BaseDataset):
    """Images in ``data_root/split_dir/<class folder>/**``; which files are images: :func:`mmcfmask.datasets.images.find_images`.

    Items are dicts with ``img_path``, ``gt_label`` and ``sample_idx``. Hold-out and subset depend on file names and seeds
    only, not on the order of the file system.

    ``metainfo['label_groups']`` says which logits of a model's head mean each class: None (the head has the same classes in the same
    order), or a tuple with a tuple of ints per class. ``metainfo['folders']`` holds the folder names where their order makes the labels.
    Published sets have ``metainfo['protocol']``, a dict with ``images`` (None with a hold-out), ``num_classes`` and ``source``; where
    a hold-out is of another number of images than the published one, ``metainfo['notes']`` says so.

    Args:
        data_root (str): Folder of the data set.
        split_dir (str): Sub-folder of it that holds the class folders, e.g. ``'train'``. Defaults to ''.
        classes (Sequence[str] | str, optional): Class names, in label order, or a text file with one per line. Defaults
            to the folder names.
        folders (Sequence[str], optional): Folder names in label order; then the tree must hold these and no others.
            Defaults to all folders there are, sorted.
        other_folders (Sequence[str]): Names of folders beside ``folders`` that are known and left out. Defaults to ().
        holdout (dict, optional): Splits off a seeded part, stratified by class: ``dict(size=10240, seed=0, part='train')``
            with ``part`` 'train' or 'held_out', or ``fraction=0.2`` instead of ``size``. Both parts together are the whole.
            Of ``size`` images every class gives the same number, up to one. A ``size`` above half of the images is
            lowered to half of them, with a warning. Defaults to None: all images.
        per_class (int, optional): Number of images to keep of every class, drawn after the hold-out. Defaults to None: all.
        subset_seed (int): Seed of ``per_class``. Defaults to 0.
        skip_unreadable (bool): Whether all images are decoded when the dataset is built, and those that fail are left out
            and named in the log. Otherwise such an image is an error, with its path, when it is read. Defaults to False.
        **kwargs: Those of :class:`mmpretrain.datasets.BaseDataset`: ``pipeline``, ``test_mode``, ``indices``, ...

    Attributes:
        num_listed (int): Number of images before hold-out, ``skip_unreadable`` and subset.
        num_skipped (int): Number of images that ``skip_unreadable`` left out.
        left_out (Counter): Number of files in class folders that are no images, by ending. They are named in the log.

    Raises:
        MissingSetError: No such folder.
        FileNotFoundError: No class folders in it.
        ValueError: Empty, unknown or missing class folders, too few images for the hold-out or for ``per_class``.

    Examples:
        >>> train = FolderDataset('data/pets', holdout=dict(fraction=0.2, seed=0, part='train'), pipeline=[...])
        >>> val = FolderDataset('data/pets', holdout=dict(fraction=0.2, seed=0, part='held_out'), pipeline=[...])
    """

    def __init__(self,
                 data_root: str,
                 split_dir: str = '',
                 classes: Sequence[str] | str | None = None,
                 folders: Sequence[str] | None = None,
                 other_folders: Sequence[str] = (),
                 holdout: dict | None = None,
                 per_class: int | None = None,
                 subset_seed: int = 0,
                 skip_unreadable: bool = False,
                 **kwargs) -> None:
        self.folders = None if folders is None else list(folders)
        self.other_folders = list(other_folders)
        self.holdout = None if holdout is None else dict(holdout)
        self.per_class = per_class
        self.subset_seed = subset_seed
        self.skip_unreadable = skip_unreadable
        self.num_listed = self.num_skipped = 0
        self.left_out = Counter()
        if self.holdout is not None:
            check_holdout(self.holdout)
        if per_class is not None and per_class < 1:
            raise ValueError(f'per_class={per_class} must be at least 1.')
        super().__init__(ann_file='', data_root=os.path.expanduser(data_root), data_prefix=split_dir, classes=classes, **kwargs)

    def load_data_list(self) -> list[dict]:
        """List the images of every class and apply hold-out, check and subset."""
        self._metainfo.setdefault('label_groups', None)
        self.num_listed = 0
        self.left_out.clear()
        items = self.list_items(Path(self.img_prefix))
        if self.left_out:
            print_log(f'{self.img_prefix}: {left_out_words(self.left_out)} are left out. Image files end in {", ".join(EXTENSIONS)}.',
                      'current', level=logging.WARNING)
        protocol = self._metainfo.get('protocol')
        if protocol and self.holdout is not None:  # nothing was published about a part
            listed, published = self.num_listed, protocol.get('images')
            self._metainfo['protocol'] = dict(protocol, images=None)
            if published not in (None, listed):
                note = (f'held out of an incomplete set: {listed:,} of {published:,} images' if listed < published else
                        f'held out of what is not the published set: {listed:,} images instead of {published:,}')
                self._metainfo['notes'] = [*self._metainfo.get('notes', ()), note]
        return items

    def list_items(self, root: Path) -> list[dict]:
        """Items of the images below ``root``, ordered by class and name."""
        images = self.class_images(root)
        empty = [folder for folder, names in images.items() if not names]
        if empty:
            others = f'; {left_out_words(self.left_out)} are no images' if self.left_out else ''
            raise ValueError(f'{root}: no images in the {len(empty)} class folders {some(empty)}{others}. Image files end in '
                             f'{", ".join(EXTENSIONS)}, in any case.')
        self.num_listed += sum(map(len, images.values()))
        if self.holdout is not None:
            images = split_holdout(images, **self.holdout)
        if self.skip_unreadable:
            before = sum(map(len, images.values()))
            images = drop_unreadable(images, root)
            self.num_skipped += before - sum(map(len, images.values()))
        if self.per_class is not None:
            images = take_per_class(images, self.per_class, self.subset_seed)
        return [dict(img_path=f'{root}/{name}', gt_label=label) for label, names in enumerate(images.values()) for name in names]

    def class_images(self, root: Path) -> dict[str, list[str]]:
        """Names of images relative to ``root``, sorted, by class folder, in label order. Sets the class names if there are none yet."""
        present = list_class_folders(root)
        folders = self.folders or present
        check_folders(folders, present, root, self.other_folders)
        if self.folders is None:
            self._metainfo['folders'] = tuple(folders)
        if self._metainfo.get('classes') is None:
            self._metainfo['classes'] = tuple(folders)
        if len(self._metainfo['classes']) != len(folders):
            raise ValueError(f'{root} has {len(folders)} class folders, but {len(self._metainfo["classes"])} class names are given.')
        return {folder: list_images(root, folder, self.left_out) for folder in folders}

    def prepare_data(self, idx: int):
        """Run the pipeline; an image that cannot be read is an error that names it."""
        try:
            return super().prepare_data(idx)
        except Exception:
            path = self.get_data_info(idx)['img_path']
            reason = why_unreadable(path)
            if reason is None:
                raise  # not the image but a transform
            raise StorageError(f'{reason}. Repair or remove it, or leave such images out: with --skip-broken in tools/test.py and '
                               'tools/wise_ft.py, elsewhere with skip_unreadable=True on the dataset.') from None

    def extra_repr(self) -> list[str]:
        """Where the images are and which of them are used."""
        return [f'Root of images: \t{self.img_prefix}', f'Hold-out: \t{self.holdout}', f'Images per class: \t{self.per_class}']


@DATASETS.register_module()
class PACSDataset(FolderDataset):
    """One domain of PACS (Li et al., ICCV 2017): 7 classes in ``data_root/<domain>/<class>``.

    Args:
        data_root (str): Folder of the data set, with the domains as sub-folders.
        domain (str): 'photo', 'art_painting', 'cartoon' or 'sketch'. Defaults to 'photo'.
        **kwargs: Those of :class:`FolderDataset` but ``split_dir`` and ``folders``.
    """
    METAINFO = dict(classes=('dog', 'elephant', 'giraffe', 'guitar', 'horse', 'house', 'person'))
    IMAGES = dict(photo=1670, art_painting=2048, cartoon=2344, sketch=3929)
    DOMAINS = tuple(IMAGES)

    def __init__(self, data_root: str, domain: str = 'photo', **kwargs) -> None:
        if domain not in self.DOMAINS:
            raise ValueError(f'PACSDataset: unknown domain {domain!r}, choose one of {", ".join(self.DOMAINS)}.')
        protocol = dict(images=self.IMAGES[domain], num_classes=7, source='https://dali-dl.github.io/project_iccv2017.html')
        super().__init__(data_root, split_dir=domain, folders=self.METAINFO['classes'], metainfo=dict(protocol=protocol), **kwargs)


def list_class_folders(root: Path) -> list[str]:
    """Names of the folders in ``root``, sorted; hidden ones are left out."""
    if not root.is_dir():
        raise MissingSetError(f'There is no folder {root.absolute()}: set data_root (and split_dir, or domain) of the dataset.')
    folders = sub_folders(root)
    if not folders:
        files = os.listdir(root)
        tars = any(file.endswith('.tar') for file in files)
        raise FileNotFoundError(f'{root.absolute()} has no class folders, but {len(files)} files: ' + (
            'unpack each of its archives into a folder of the same name.' if tars else
            'images must lie in one folder per class. Set data_root and split_dir to the folder that holds the class folders.'))
    return folders


def sub_folders(root: Path) -> list[str]:
    """Names of the folders in ``root``, sorted; hidden ones are left out, and links to a folder that ``root`` lies in."""
    real = os.path.realpath(root)
    return sorted(entry.name for entry in list_folder(root) if entry.is_dir() and not is_hidden(entry.name)
                  and not (entry.is_symlink() and lies_in(real, os.path.realpath(entry.path))))


def check_folders(expected: Sequence[str], present: Sequence[str], root: Path, other: Sequence[str] = ()) -> None:
    """Raise a ValueError where the class folders are not exactly those expected, and perhaps ``other`` known ones."""
    problems = folder_problems(expected, present, other)
    if problems:
        raise ValueError(f'{root}: {"; ".join(problems)}.')


def folder_problems(expected: Sequence[str], present: Sequence[str], other: Sequence[str] = ()) -> list[str]:
    """What is wrong with the class folders that are ``present``, in words."""
    problems = []
    missing = [folder for folder in expected if folder not in set(present)]
    if missing:
        problems.append(f'{len(missing)} of {len(expected)} class folders are missing: {some(missing)}')
    known = {*expected, *other}
    unknown = [folder for folder in present if folder not in known]
    if unknown:
        problems.append(f'{len(unknown)} folders are no known classes: {some_with_nearest(unknown, [*expected, *other])}')
    return problems


def some_with_nearest(names: Sequence[str], known: Sequence[str], limit: int = 10) -> str:
    """Names, each with the nearest of the known ones where one is near. A WordNet id is no misspelling of another: it is left alone."""
    near = {name: difflib.get_close_matches(name, known, n=1) for name in names[:limit] if not re.fullmatch(r'n\d{8}', name)}
    return some([f'{name} (near {near[name][0]})' if near.get(name) else name for name in names], limit)


def list_images(root: Path, folder: str, left_out: Counter | None = None) -> list[str]:
    """Names of all images under ``root/folder``, relative to ``root``, sorted; see :func:`mmcfmask.datasets.images.find_images`."""
    return [f'{folder}/{name}' for name in find_images(root / folder, root, left_out)]


def seeded_order(names: Iterable[str], seed: int) -> list[str]:
    """Names shuffled by the SHA-256 of seed and name: the same everywhere, and a new name moves no other."""
    return sorted(names, key=lambda name: hashlib.sha256(os.fsencode(f'{seed}/{name}')).digest())


def check_holdout(holdout: dict) -> None:
    """Raise a ValueError for settings of a hold-out that make no sense."""
    unknown = set(holdout) - {'size', 'fraction', 'seed', 'part'}
    if unknown:
        raise ValueError(f'holdout has no setting {", ".join(sorted(unknown))}: use size or fraction, seed, part.')
    size, fraction, part = holdout.get('size'), holdout.get('fraction'), holdout.get('part')
    if (size is None) == (fraction is None):
        raise ValueError(f'holdout={holdout} needs either size or fraction.')
    if size is not None and (not isinstance(size, int) or size < 1):
        raise ValueError(f'holdout.size={size} must be a positive number of images.')
    if fraction is not None and not 0 < fraction < 1:
        raise ValueError(f'holdout.fraction={fraction} must lie between 0 and 1.')
    if part not in ('train', 'held_out'):
        raise ValueError(f"holdout.part={part!r} must be 'train' or 'held_out'.")


def split_holdout(images: dict[str, list[str]], part: str, size: int | None = None, fraction: float | None = None,
                  seed: int = 0) -> dict[str, list[str]]:
    """One part of a seeded, stratified split.

    Args:
        images: Names of images by class.
        part: 'held_out', or 'train' for all others.
        size: Number of images to hold out: the same of every class, and one more of as many classes as the rest needs.
        fraction: Instead, the fraction of every class to hold out, rounded, at least one image.
        seed: Decides which.

    Returns:
        Names by class, each list sorted.
    """
    total = sum(map(len, images.values()))
    if size is not None:
        if size > total // 2:
            print_log(f'holdout.size={size} is more than half of the {total} images: {total // 2} are held out.', 'current',
                      level=logging.WARNING)
            size = total // 2
        share, rest = divmod(size, len(images))
        extra = set(seeded_order(images, seed)[:rest])
        quota = {folder: share + (folder in extra) for folder in images}
    else:
        quota = {folder: max(1, round(fraction * len(names))) for folder, names in images.items()}
    short = [f'{folder} ({len(images[folder])} images for a share of {number})' for folder, number in quota.items()
             if number > len(images[folder])]
    if short:
        raise ValueError(f'Too few images for holdout.size={size} in {len(short)} classes: {some(short)}. Use a smaller size, or '
                         'holdout=dict(fraction=...).')
    bare = [folder for folder, number in quota.items() if number == len(images[folder])]
    if bare:
        print_log(f'The hold-out leaves no image to train on in {len(bare)} of {len(images)} classes: {some(bare)}.', 'current',
                  level=logging.WARNING)
    held_out = {folder: set(seeded_order(names, seed)[:quota[folder]]) for folder, names in images.items()}
    return {
        folder: [name for name in names if (name in held_out[folder]) == (part == 'held_out')] for folder, names in images.items()
    }


def take_per_class(images: dict[str, list[str]], per_class: int, seed: int = 0) -> dict[str, list[str]]:
    """``per_class`` images of every class, drawn with a seed; each list sorted. A smaller number is a part of a larger one."""
    short = [f'{folder} ({len(names)})' for folder, names in images.items() if len(names) < per_class]
    if short:
        raise ValueError(f'per_class={per_class}, but {len(short)} classes have fewer images: {some(short)}.')
    return {folder: sorted(seeded_order(names, seed)[:per_class]) for folder, names in images.items()}


def drop_unreadable(images: dict[str, list[str]], root: Path) -> dict[str, list[str]]:
    """Decode every image once and leave out those that fail, which are counted and named in the log."""
    names = [name for folder in images.values() for name in folder]
    reasons = list(track(why_unreadable_all([root / name for name in names]), f'Reading the images of {root}', len(names)))
    bad = {name: reason for name, reason in zip(names, reasons) if reason is not None}
    if bad:
        listed = '\n'.join(f'    {reason}' for reason in bad.values())
        print_log(f'{len(bad)} of {len(names)} images cannot be read and are left out:\n{listed}', 'current', level=logging.WARNING)
    readable = {folder: [name for name in names if name not in bad] for folder, names in images.items()}
    emptied = [folder for folder in images if images[folder] and not readable[folder]]
    if emptied:
        raise ValueError(f'{root}: no readable image is left in the class folders {some(emptied)}.')
    return readable


def some(names: Sequence[str], limit: int = 10) -> str:
    """The first names, and how many more there are."""
    return ', '.join(names[:limit]) + (f', ... ({len(names) - limit} more)' if len(names) > limit else '')
