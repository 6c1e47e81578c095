"""Compare the copies of ImageNet and its shifts on disk with what was published: counts, class folders, contents."""

from __future__ import annotations

import os
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import ConfigError, MissingFileError, UserError
from ..files import hash_file
from ..messages import short_list
from .benchmark_checks import check_benchmark, check_group_csv
from .class_folders import MissingSetError, find_folder_problems, list_images, sub_folders
from .duplicates import duplicate_folders, equal_words
from .groups import WaterbirdsDataset
from .imagenet_labels import (
    IMAGENET_WNIDS,
    find_ground_truth,
    flat_images,
    flat_val_images,
    read_ground_truth,
    read_objectnet_mapping,
)
from .imagenet_shifts import ImageNetADataset, ImageNetCDataset, ImageNetRDataset
from .images import left_out_words, why_unreadable_all
from .layouts import (
    SETS,
    SEVERITIES,
    WATERBIRDS_GROUPS,
    WNIDS,
    corruption_folders,
    find_imagenet,
    find_set,
    holds_shards,
    objectnet_images,
    objectnet_mappings,
)
from .published import BENCHMARKS
from .shards import Folders, Shards, find_shards

NUMBERS = tuple(str(label) for label in range(1000))
FOLDERS = {
    'imagenet': IMAGENET_WNIDS,
    'imagenet-train': IMAGENET_WNIDS,
    'imagenet-v2': NUMBERS,
    'imagenet-v2-threshold-0.7': NUMBERS,
    'imagenet-v2-top-images': NUMBERS,
    'imagenet-r': ImageNetRDataset.WNIDS,
    'imagenet-a': ImageNetADataset.WNIDS,
    'imagenet-sketch': IMAGENET_WNIDS,
    'imagenet-c': IMAGENET_WNIDS,
}
PER_CLASS = {
    'imagenet': 50,
    'imagenet-v2': 10,
    'imagenet-v2-threshold-0.7': 10,
    'imagenet-v2-top-images': 10,
    'imagenet-c': 50,
}
# Not reported as missing.
OPTIONAL = ('imagenet-v2-threshold-0.7', 'imagenet-v2-top-images', 'waterbirds', *BENCHMARKS)
OBJECTNET_IMAGES = 50_273  # in all 313 folders

Watch = Callable[[Iterable, int, str], Iterable]  # items, their number, what happens to them


@dataclass
class SetReport:
    """What was found of one set.

    Attributes:
        name, title: Key in :data:`mmcfmask.datasets.layouts.SETS`, and name in print.
        source: Where to get it.
        folder: Where it is; None if it is missing.
        images, classes: Counts of what is scored.
        published_images, published_classes: The published counts.
        decoded: Number of images that were read as a sample.
        problems: What is wrong.
        notes: What else is worth knowing.
    """

    name: str
    title: str
    source: str
    published_images: int
    published_classes: int
    folder: str | None = None
    images: int = 0
    classes: int = 0
    decoded: int = 0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def status(self) -> str:
        """'complete', 'incomplete' (only images are missing), 'wrong' or 'missing'."""
        if self.folder is None:
            return 'missing'
        if self.problems:
            return 'wrong'
        missing = self.published_images - self.images
        return 'incomplete' if missing > 0 else 'wrong' if missing else 'complete'

    def words(self) -> list[str]:
        """Problems, difference from the published count, and notes."""
        missing = self.published_images - self.images
        count = (
            []
            if self.folder is None or missing == 0
            else [
                f'{abs(missing):,} images {"fewer" if missing > 0 else "more"} than published ({self.images:,} of '
                f'{self.published_images:,})'
            ]
        )
        return [*self.problems, *count, *self.notes]


def check_sets(
    data_root: str | Path,
    names: Sequence[str] | None = None,
    sample: int | None = 100,
    seed: int = 0,
    watch: Watch = lambda items, number, what: items,
) -> list[SetReport]:
    """Check every set that is found under a folder.

    Several sets have the same class folders. If ``data_root`` itself holds class folders and its name says nothing, it
    counts as an incomplete copy of one of them only if ``names`` says which.

    Args:
        data_root: Folder of all sets, or ImageNet's folder with the others in or beside it.
        names: Keys of :data:`mmcfmask.datasets.layouts.SETS`. Defaults to all; the two minor variants of ImageNet-V2,
            Waterbirds and the benchmarks of :mod:`mmcfmask.datasets.published` only if they are found.
        sample: Number of images of each set to decode, drawn with the seed; None: all.
        seed: Seed of the sample.
        watch: Wraps long loops, to show progress.

    Raises:
        MissingFileError: ``data_root`` does not exist.
        ConfigError: An unknown name; the message lists the known ones.
    """
    if not Path(data_root).expanduser().is_dir():
        raise MissingFileError(f'the folder {data_root} does not exist')
    unknown = [name for name in names or () if name not in SETS]
    if unknown:
        raise ConfigError(f'unknown set {", ".join(unknown)}: choose from {", ".join(SETS)}')
    # Benchmarks have class folders and files of common names: without a name of theirs, a folder is none of them.
    reports = [
        check_set(name, data_root, sample, seed, watch, any_name=bool(names) or name not in BENCHMARKS)
        for name in names or SETS
    ]
    if not names:
        here = [
            report.name
            for report in reports
            if report.status != 'complete'
            and report.folder == os.path.abspath(os.path.expanduser(data_root))
            and (SETS[report.name].signs == WNIDS or holds_shards(Path(report.folder)))
        ]
        reports = [
            _check_elsewhere(report, sample, seed, watch) if len(here) > 1 and report.name in here else report
            for report in reports
        ]
    return [report for report in reports if names or report.folder or report.name not in OPTIONAL]


def check_set(
    name: str,
    data_root: str | Path,
    sample: int | None = 100,
    seed: int = 0,
    watch: Watch = lambda items, number, what: items,
    any_name: bool = True,
) -> SetReport:
    """Check one set; arguments as in :func:`check_sets` and :func:`mmcfmask.datasets.layouts.find_set`."""
    published = SETS[name]
    report = SetReport(name, published.title, published.source, published.images, published.num_classes)
    split = {'imagenet': 'val', 'imagenet-train': 'train'}.get(name)
    if name in BENCHMARKS:
        return _decode(report, check_benchmark(report, data_root, any_name), sample, seed, watch)
    try:
        root = find_imagenet(data_root, split) if split else find_set(name, data_root, any_name)
    except MissingSetError as error:
        report.notes.append(str(error))
        return report
    report.folder = str(root)
    try:
        if name == 'objectnet':
            paths = _check_objectnet(report, root, watch)
        elif name == 'imagenet-c':
            paths = _check_corruptions(report, root, watch)
        elif name == 'waterbirds':
            paths = check_group_csv(report, WaterbirdsDataset, WATERBIRDS_GROUPS, root)
        elif name == 'imagenet' and (names := flat_images(root)):
            images = flat_val_images(root, names)
            paths = _check_images(report, Folders(root), images, PER_CLASS[name])
            report.notes.append(f'flat; labels from {find_ground_truth(root)}')
        elif shards := find_shards(root):
            paths = _check_shards(report, root, Shards(shards, expected=FOLDERS[name]))
        else:
            paths = _check_folders(report, root, FOLDERS[name], PER_CLASS.get(name), watch)
    except (UserError, ValueError, OSError) as error:  # of a mapping file, a ground truth or a shard
        report.problems.append(str(error).rstrip('.'))
        return report
    return _decode(report, paths, sample, seed, watch)


def _decode(report: SetReport, paths: Sequence[str], sample: int | None, seed: int, watch: Watch) -> SetReport:
    """Read a sample of the images."""
    chosen = paths if sample is None or sample >= len(paths) else random.Random(seed).sample(paths, sample)
    reasons = list(watch(why_unreadable_all(chosen), len(chosen), f'{report.title}: reading images'))
    report.decoded = len(chosen)
    broken = [reason for reason in reasons if reason]
    if broken:
        report.problems.append(
            f'{len(broken)} of {len(chosen)} images that were read are broken: {short_list(broken, 5)}'
        )
    return report


def _check_elsewhere(report: SetReport, sample: int | None, seed: int, watch: Watch) -> SetReport:
    """Check a set again without the folder of ``report``, which may belong to any of several sets."""
    again = check_set(report.name, report.folder, sample, seed, watch, any_name=False)
    if again.folder is None:
        known = len(set(sub_folders(Path(report.folder))) & set(IMAGENET_WNIDS))
        what = f'{known:,} class folders of ImageNet' if known else 'shards'
        again.notes.insert(
            0,
            f'{report.folder} holds {what}, but matches none of these sets as published: name the set with --sets to '
            'see what is missing',
        )
    return again


def _check_folders(
    report: SetReport,
    root: Path,
    expected: Sequence[str],
    per_class: int | None,
    watch: Watch,
    other: Sequence[str] = (),
) -> list[str]:
    """Compare the class folders with the expected ones; returns the images that count."""
    present = sub_folders(root)
    report.problems += find_folder_problems(expected, present, other)
    left_out = Counter()
    images = _list(root, present, watch, f'{report.title}: counting', left_out)
    if left_out:
        report.notes.append(f'{left_out_words(left_out)} are not images')
    doubled = duplicate_folders(root, images)
    if doubled:
        report.problems.append(
            f'{sum(map(len, doubled)) - len(doubled)} class folders hold the same files as another: '
            f'{equal_words(doubled)}'
        )
    report.problems += _misplaced(report.name, root, images)
    kept = {folder: images[folder] for folder in expected if folder in images}
    return _check_images(report, Folders(root), kept, per_class)


def _check_shards(report: SetReport, root: Path, shards: Shards) -> list[str]:
    """Compare the labels in shards with the classes; returns the paths of the images."""
    expected = FOLDERS[report.name]
    images = {folder: shards.images(folder) for folder in expected}
    report.problems += find_folder_problems(expected, shards.folders())
    report.problems += _misplaced(report.name, root, images)
    report.notes.append(f'in {len(shards.files):,} shards')
    here = {folder: names for folder, names in images.items() if names}
    return _check_images(report, shards, here, PER_CLASS.get(report.name))


def _check_images(
    report: SetReport, tree: Folders | Shards, images: Mapping[str, Sequence[str]], per_class: int | None
) -> list[str]:
    """Count the images; returns their paths."""
    empty = [folder for folder, names in images.items() if not names]
    if empty:
        report.problems.append(f'{len(empty)} classes have no images: {short_list(empty)}')
    counts = {folder: len(names) for folder, names in images.items() if names}
    uneven = [f'{folder} ({count})' for folder, count in counts.items() if per_class and count != per_class]
    if uneven:
        report.notes.append(f'{len(uneven)} classes do not have {per_class} images: {short_list(uneven)}')
    report.classes = len(counts)
    report.images += sum(counts.values())
    return [tree.path(name) for names in images.values() for name in names]  # strings: ImageNet-C has 3.75 million


def _check_objectnet(report: SetReport, root: Path, watch: Watch) -> list[str]:
    """Check the folders that overlap with ImageNet; the others may exist too."""
    groups = read_objectnet_mapping(objectnet_mappings(root)).groups
    overlap, rest = [folder for folder in groups if groups[folder]], [folder for folder in groups if not groups[folder]]
    if len(overlap) != report.published_classes:
        report.problems.append(
            f'by the mapping files {len(overlap)} classes overlap with ImageNet, but it should be '
            f'{report.published_classes}'
        )
    place = objectnet_images(root)
    paths = _check_folders(report, place, sorted(overlap), None, watch, other=rest)
    there = set(sub_folders(place)) & set(groups)
    total = len(paths) + sum(len(list_images(place, folder)) for folder in there & set(rest))
    report.notes.append(
        f'{total:,} of {OBJECTNET_IMAGES:,} images in {len(there)} of 313 folders; the {report.published_classes} that '
        'overlap with ImageNet count'
    )
    return paths


def _check_corruptions(report: SetReport, root: Path, watch: Watch) -> list[str]:
    """Check all corruptions and severities, each like a set of its own."""
    places = corruption_folders(root, ImageNetCDataset.CORRUPTIONS, SEVERITIES)
    missing = [f'{name}/{severity}' for (name, severity), place in places.items() if place is None]
    if missing:
        report.problems.append(
            f'{len(missing)} of {len(places)} folders of a corruption and severity are missing: {short_list(missing)}'
        )
    paths, digests, classes = [], defaultdict(list), set()
    for (name, severity), place in places.items():
        if place is None:
            continue
        part = SetReport('imagenet-c', f'{report.title} {name}/{severity}', '', 50_000, 1000)
        found = _check_folders(part, place, FOLDERS['imagenet-c'], PER_CLASS['imagenet-c'], watch)
        report.problems += [f'{name}/{severity}: {problem}' for problem in part.problems]
        report.notes += [f'{name}/{severity}: {note}' for note in part.notes]
        report.images += part.images
        classes.add(part.classes)
        if found:
            digests[tuple(map(hash_file, found[:3]))].append(f'{name}/{severity}')
        paths += found
    same = [group for group in digests.values() if len(group) > 1]
    if same:
        report.problems.append(
            f'folders of different corruptions or severities hold the same files: {equal_words(same)}'
        )
    report.classes = min(classes, default=0)
    return paths


def _list(root: Path, folders: Sequence[str], watch: Watch, what: str, left_out: Counter) -> dict[str, list[str]]:
    """Images in folders; other files are counted in ``left_out``. Threads, because network file systems are slow."""
    counts = [Counter() for _ in folders]
    with ThreadPoolExecutor() as pool:
        found = pool.map(lambda folder, count: list_images(root, folder, count), folders, counts)
        images = dict(zip(folders, watch(found, len(folders), what)))
    for count in counts:
        left_out.update(count)
    return images


def _misplaced(name: str, root: Path, images: Mapping[str, Sequence[str]]) -> list[str]:
    """Images of ImageNet whose file name, or the ground truth if it is found, says another class than their folder."""
    if name not in ('imagenet', 'imagenet-train'):
        return []
    truth = {}
    if name == 'imagenet':
        with suppress(FileNotFoundError):
            truth = read_ground_truth(find_ground_truth(root))
    found = []
    for folder, names in images.items():
        for image in names:
            stem = Path(image).stem
            own = re.match(r'(n\d{8})_', stem)  # a training image
            wnid = own[1] if own else truth.get(stem, folder)
            if wnid != folder:
                found.append(f'{image} (of {wnid})')
    return [f'{len(found)} images lie in the folder of another class: {short_list(found, 5)}'] if found else []
