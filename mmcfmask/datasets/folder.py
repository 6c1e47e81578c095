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

from ..errors import ConfigError, MissingFileError, StorageError
from ..ranges import Count, Seed
from .images import (
    EXTENSIONS,
    find_images,
    is_folder,
    left_out_words,
    lies_in,
    list_folder,
    why_unreadable,
    why_unreadable_all,
)
from .names import class_names, composed, in_order, read_names

RUN_SEED = 'run'  # holdout.seed: that of the run


class MissingSetError(MissingFileError):
    """The folder of a data set is not there; the message says what was looked for, and where to get it if it is a
    published set."""


@DATASETS.register_module()
class FolderDataset(BaseDataset):
    """Images in ``data_root/split_dir/<class folder>/**``; which files are images:
    :func:`mmcfmask.datasets.images.find_images`.

    Items are dicts with ``img_path``, ``gt_label`` and ``sample_idx``. Hold-out and subset depend on file names and
    seeds only, not on the order of the file system.

    ``metainfo['label_groups']`` says which logits of a model's head mean each class: None (the head has the same
    classes in the same order), or a tuple with a tuple of ints per class. ``metainfo['folders']`` holds the folder
    names where their order makes the labels. Published sets have ``metainfo['protocol']``, a dict with ``images`` (None
    with a hold-out), ``num_classes`` and ``source``; where a hold-out is of another number of images than the published
    one, ``metainfo['notes']`` says so.

    Args:
        data_root (str): Folder of the data set.
        split_dir (str): Sub-folder of it that holds the class folders, e.g. ``'train'``. Defaults to ''.
        classes (Sequence[str] | str, optional): Class names, in label order, or a text file with one per line. Defaults
            to the folder names.
        folders (Sequence[str], optional): Folder names in label order; then the tree must hold these and no others.
            Defaults to all folders there are, sorted; numbered ones (``2``, ``class_10``) by their numbers.
        other_folders (Sequence[str]): Names of folders beside ``folders`` that are known and left out. Defaults to ().
        holdout (dict, optional): Splits the images into seeded parts, stratified by class: ``dict(size=10240, seed=0,
            part='train')`` with ``part`` 'train' or 'held_out', or ``fraction=0.2`` instead of ``size``. ``test=0.1``,
            as ``size`` or ``fraction`` in its unit, is cut first, as a third part 'test' with a seed of its own,
            ``test_seed=0``. All parts together are the whole, and every class has its share of each, in proportion to
            its images. A ``size`` above half of the images is lowered to half of them, with a warning. ``seed='run'``
            stands for the seed of the run, which the tools put in its place: train and held_out then differ from run to
            run, test does not. Defaults to None: all images.
        per_class (int, optional): Number of images to keep of every class, drawn after the hold-out. Defaults to None:
            all.
        subset_seed (int): Seed of ``per_class``. Defaults to 0.
        skip_unreadable (bool): Whether all images are decoded when the dataset is built, and those that fail are left
            out and named in the log. Otherwise such an image is an error, with its path, when it is read. Defaults to
            False.
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

    def __init__(
        self,
        data_root: str,
        split_dir: str = '',
        classes: Sequence[str] | str | None = None,
        folders: Sequence[str] | None = None,
        other_folders: Sequence[str] = (),
        holdout: dict | None = None,
        per_class: Count | None = None,
        subset_seed: Seed = 0,
        skip_unreadable: bool = False,
        **kwargs,
    ) -> None:
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
            raise ConfigError(f'per_class={per_class} must be at least 1.')
        if classes is not None:
            classes = read_names(classes) if isinstance(classes, str) else class_names(classes, 'classes')
        super().__init__(
            ann_file='', data_root=os.path.expanduser(data_root), data_prefix=split_dir, classes=classes, **kwargs
        )

    def load_data_list(self) -> list[dict]:
        """List the images of every class and apply hold-out, check and subset."""
        self._metainfo.setdefault('label_groups', None)
        self.num_listed = 0
        self.left_out.clear()
        items = self.list_items(Path(self.img_prefix))
        if self.left_out:
            print_log(
                f'{Path(self.img_prefix)}: {left_out_words(self.left_out)} are left out, which are none of the images '
                'that are read (docs/data.md has their endings).',
                'current',
                level=logging.WARNING,
            )
        protocol = self._metainfo.get('protocol')
        if protocol and self.holdout is not None:  # nothing was published about a part
            listed, published = self.num_listed, protocol.get('images')
            self._metainfo['protocol'] = dict(protocol, images=None)
            if published not in (None, listed):
                note = (
                    f'held out of an incomplete set: {listed:,} of {published:,} images'
                    if listed < published
                    else f'held out of what is not the published set: {listed:,} images instead of {published:,}'
                )
                self._metainfo['notes'] = [*self._metainfo.get('notes', ()), note]
        return items

    def list_items(self, root: Path) -> list[dict]:
        """Items of the images below ``root``, ordered by class and name."""
        images = self.class_images(root)
        empty = [folder for folder, names in images.items() if not names]
        if empty:
            others = f'; {left_out_words(self.left_out)} are no images' if self.left_out else ''
            raise ConfigError(
                f'{root}: no images in the {len(empty)} class folders {some(empty)}{others}. Image files end in '
                f'{", ".join(EXTENSIONS)}, in any case.'
            )
        self.num_listed += sum(map(len, images.values()))
        if self.holdout is not None:
            images = split_holdout(images, **self.holdout)
        if self.skip_unreadable:
            before = sum(map(len, images.values()))
            images = drop_unreadable(images, root)
            self.num_skipped += before - sum(map(len, images.values()))
        if self.per_class is not None:
            images = take_per_class(images, self.per_class, self.subset_seed)
        return [
            dict(img_path=f'{root}/{name}', gt_label=label)
            for label, names in enumerate(images.values())
            for name in names
        ]

    def class_images(self, root: Path) -> dict[str, list[str]]:
        """Names of images relative to ``root``, sorted, by class folder, in label order. Sets the class names if there
        are none yet."""
        folders = self.name_classes(root)
        images = {folder: list_images(root, folder, self.left_out) for folder in folders}
        if self.folders is None:
            warn_of_deeper_classes(images, root)
        return images

    def name_classes(self, root: Path) -> list[str]:
        """Names of the class folders as they are on the disk, in label order; sets ``folders`` and ``classes`` of the
        metainfo."""
        present = list_class_folders(root)
        check_folders(self.folders or present, present, root, self.other_folders)
        here = {composed(folder): folder for folder in present}
        if self.folders is None:
            check_are_classes(present, root)
            self._metainfo['folders'] = tuple(here)
        names = tuple(map(composed, self.folders or present))
        if self._metainfo.get('classes') is None:
            self._metainfo['classes'] = names
        if len(self._metainfo['classes']) != len(names):
            raise ConfigError(
                f'{root} has {len(names)} class folders, but {len(self._metainfo["classes"])} class names are given.'
            )
        return [here[name] for name in names]

    def prepare_data(self, idx: int):
        """Run the pipeline; an image that cannot be read is an error that names it."""
        try:
            return super().prepare_data(idx)
        except Exception:
            path = self.get_data_info(idx)['img_path']
            reason = why_unreadable(path)
            if reason is None:
                raise  # not the image but a transform
            raise StorageError(
                f'{reason}. Repair or remove it, or leave such images out: with --skip-broken in tools/test.py and '
                'tools/wise_ft.py, elsewhere with skip_unreadable=True on the dataset.'
            ) from None

    def extra_repr(self) -> list[str]:
        """Where the images are and which of them are used."""
        return [
            f'Root of images: \t{self.img_prefix}',
            f'Hold-out: \t{self.holdout}',
            f'Images per class: \t{self.per_class}',
        ]


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
            raise ConfigError(f'PACSDataset: unknown domain {domain!r}, choose one of {", ".join(self.DOMAINS)}.')
        protocol = dict(
            images=self.IMAGES[domain], num_classes=7, source='https://dali-dl.github.io/project_iccv2017.html'
        )
        super().__init__(
            data_root, split_dir=domain, folders=self.METAINFO['classes'], metainfo=dict(protocol=protocol), **kwargs
        )


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
            f'{root}: the folders {some(splits)} are parts of a data set, not classes: set split_dir to one of them, '
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
            f'{root}: the folders {some(list(images))} are taken for the classes, but hold no images themselves, and '
            f'all of them the folders {some(sorted(inner))}. If those are the classes, set split_dir to one of the '
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
            f'{root}: the folders {some(list(map(ascii, twice)))} have the same name in two Unicode forms (NFC and '
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
        problems.append(f'{len(missing)} of {len(expected)} class folders are missing: {some(missing)}')
    known = set(map(composed, [*expected, *other]))
    unknown = [folder for folder in present if composed(folder) not in known]
    if unknown:
        problems.append(
            f'{len(unknown)} folders are no known classes: {some_with_nearest(unknown, [*expected, *other])}'
        )
    return problems


def some_with_nearest(names: Sequence[str], known: Sequence[str], limit: int = 10) -> str:
    """Names, each with the nearest of the known ones where one is near. A WordNet id is no misspelling of another: it
    is left alone."""
    near = {
        name: difflib.get_close_matches(name, known, n=1) for name in names[:limit] if not re.fullmatch(r'n\d{8}', name)
    }
    return some([f'{name} (near {near[name][0]})' if near.get(name) else name for name in names], limit)


def list_images(root: Path, folder: str, left_out: Counter | None = None) -> list[str]:
    """Names of all images under ``root/folder``, relative to ``root``, sorted; see
    :func:`mmcfmask.datasets.images.find_images`."""
    return [f'{folder}/{name}' for name in find_images(root / folder, root, left_out)]


def seeded_order(names: Iterable[str], seed: int) -> list[str]:
    """Names shuffled by the SHA-256 of seed and name: the same everywhere, and a new name moves no other."""
    return sorted(
        names, key=lambda name: hashlib.sha256(f'{seed}/{composed(name)}'.encode(errors='surrogateescape')).digest()
    )


def check_holdout(holdout: dict) -> None:
    """Raise a ConfigError for settings of a hold-out that make no sense."""
    unknown = set(holdout) - {'size', 'fraction', 'seed', 'part', 'test', 'test_seed'}
    if unknown:
        raise ConfigError(
            f'holdout has no setting {some(sorted(map(str, unknown)))}: use size or fraction, seed, part, test, '
            'test_seed.'
        )
    size, fraction, part, test = (holdout.get(key) for key in ('size', 'fraction', 'part', 'test'))
    if (size is None) == (fraction is None):
        raise ConfigError(f'holdout={holdout} needs either size or fraction.')
    for key, value in dict(size=size, **(dict(test=test) if fraction is None else {})).items():
        if value is not None and (type(value) is not int or value < 1):
            raise ConfigError(f'holdout.{key}={value!r} must be a positive number of images.')
    for key, value in dict(fraction=fraction, **(dict(test=test) if size is None else {})).items():
        if value is not None and not (type(value) in (int, float) and 0 < value < 1):
            raise ConfigError(f'holdout.{key}={value!r} must lie between 0 and 1.')
    if fraction is not None and fraction + (test or 0) >= 1:
        raise ConfigError(f'holdout.fraction={fraction} and holdout.test={test} leave nothing to train on.')
    if part not in ('train', 'held_out', 'test'):
        raise ConfigError(f"holdout.part={part!r} must be 'train' or 'held_out', or, with a share for test, 'test'.")
    if part == 'test' and test is None:
        raise ConfigError("holdout.part='test' needs a share: holdout=dict(test=…), in the unit of size or fraction.")
    for key in ('seed', 'test_seed'):
        if type(holdout.get(key, 0)) is not int and not (key == 'seed' and holdout[key] == RUN_SEED):
            raise ConfigError(
                f'holdout.{key}={holdout[key]!r} must be a whole number'
                + (f', or {RUN_SEED!r}.' if key == 'seed' else '.')
            )


def follow_run(node, seed: int | None) -> bool:
    """Put the seed of a run in place of every ``holdout.seed='run'`` below ``node``, a config or a part of one; whether
    there was one.

    Raises:
        ConfigError: The run has no seed.
    """
    found = False
    for key, value in list(node.items() if hasattr(node, 'items') else enumerate(node)):
        if key == 'holdout' and isinstance(value, dict) and value.get('seed') == RUN_SEED:
            if seed is None:
                raise ConfigError(
                    "holdout.seed='run' stands for the seed of the run, which has none: set randomness.seed, or --seed "
                    'in tools/train.py'
                )
            value['seed'], found = seed, True
        elif isinstance(value, (dict, list, tuple)):
            found = follow_run(value, seed) or found
    return found


def split_holdout(
    images: dict[str, list[str]],
    part: str,
    size: int | None = None,
    fraction: float | None = None,
    seed: int | str = 0,
    test: float | None = None,
    test_seed: int = 0,
) -> dict[str, list[str]]:
    """One part of a seeded, stratified split; every class gives in proportion to its images.

    Args:
        images: Names of images by class.
        part: 'test', 'held_out', or 'train' for all others.
        size: Number of images to hold out.
        fraction: Instead, the fraction of every class to hold out, rounded, at least one image.
        seed: Decides which.
        test: Number or fraction, as ``size`` or ``fraction`` is given, of images to cut off before. Both together are
            as many images as one such share would be: the sum is rounded.
        test_seed: Decides which.

    Returns:
        Names by class, each list sorted.

    Raises:
        ConfigError: Nothing is left to train on, or ``seed`` is not settled.
    """
    if seed == RUN_SEED:
        raise ConfigError("holdout.seed='run' stands for the seed of a run, but this is none: give a number.")
    counts = {folder: len(names) for folder, names in images.items()}
    if fraction is not None:
        cut = {folder: max(1, round(test * count)) if test else 0 for folder, count in counts.items()}
        quota = {
            folder: max(1, round((fraction + (test or 0)) * count) - cut[folder]) for folder, count in counts.items()
        }
    else:
        cut = (
            proportional(counts, lowered(test, sum(counts.values()), 'test'), test_seed)
            if test
            else dict.fromkeys(counts, 0)
        )
        rest = {folder: count - cut[folder] for folder, count in counts.items()}
        quota = proportional(rest, lowered(size, sum(rest.values()), 'size'), seed)
    bare = [folder for folder, count in counts.items() if cut[folder] + quota[folder] >= count]
    if len(bare) == len(images):
        raise ConfigError(
            f'The hold-out leaves no image to train on: no class has more than {max(counts.values())}. Hold out fewer, '
            'or validate on images of another folder.'
        )
    if bare:
        print_log(
            f'The hold-out leaves no image to train on in {len(bare)} of {len(images)} classes: {some(bare)}.',
            'current',
            level=logging.WARNING,
        )
    parts = dict(train={}, held_out={}, test={})
    for folder, names in images.items():
        parts['test'][folder] = sorted(seeded_order(names, test_seed)[: cut[folder]])
        left = [name for name in names if name not in set(parts['test'][folder])] if cut[folder] else names
        held_out = set(seeded_order(left, seed)[: quota[folder]])
        parts['held_out'][folder] = sorted(held_out)
        parts['train'][folder] = [name for name in left if name not in held_out]
    return parts[part]


def lowered(size: int, total: int, key: str) -> int:
    """``size``, or half of ``total`` with a warning where it is more."""
    if size <= total // 2:
        return size
    print_log(
        f'holdout.{key}={size} is more than half of the {total} images: {total // 2} are held out.',
        'current',
        level=logging.WARNING,
    )
    return total // 2


def proportional(counts: dict[str, int], size: int, seed: int) -> dict[str, int]:
    """Shares of ``size`` in proportion to ``counts``: rounded down, and one more for the largest remainders, of equal
    ones by seed."""
    total = sum(counts.values())
    shares = {name: size * count // total for name, count in counts.items()}
    drawn = {name: place for place, name in enumerate(seeded_order(counts, seed))}
    remainders = sorted(counts, key=lambda name: (-(size * counts[name] % total), drawn[name]))
    for name in remainders[: size - sum(shares.values())]:
        shares[name] += 1
    return shares


def take_per_class(images: dict[str, list[str]], per_class: int, seed: int = 0) -> dict[str, list[str]]:
    """``per_class`` images of every class, drawn with a seed; each list sorted. A smaller number is a part of a larger
    one."""
    short = [f'{folder} ({len(names)})' for folder, names in images.items() if len(names) < per_class]
    if short:
        raise ConfigError(f'per_class={per_class}, but {len(short)} classes have fewer images: {some(short)}.')
    return {folder: sorted(seeded_order(names, seed)[:per_class]) for folder, names in images.items()}


def drop_unreadable(images: dict[str, list[str]], root: Path) -> dict[str, list[str]]:
    """Decode every image once and leave out those that fail, which are counted and named in the log."""
    names = [name for folder in images.values() for name in folder]
    reasons = list(
        track(why_unreadable_all([root / name for name in names]), f'Reading the images of {root}', len(names))
    )
    bad = {name: reason for name, reason in zip(names, reasons) if reason is not None}
    if bad:
        listed = '\n'.join(f'    {reason}' for reason in bad.values())
        print_log(
            f'{len(bad)} of {len(names)} images cannot be read and are left out:\n{listed}',
            'current',
            level=logging.WARNING,
        )
    readable = {folder: [name for name in names if name not in bad] for folder, names in images.items()}
    emptied = [folder for folder in images if images[folder] and not readable[folder]]
    if emptied:
        raise ConfigError(f'{root}: no readable image is left in the class folders {some(emptied)}.')
    return readable


def some(names: Sequence[str], limit: int = 10) -> str:
    """The first names, and how many more there are."""
    return ', '.join(names[:limit]) + (f', ... ({len(names) - limit} more)' if len(names) > limit else '')
