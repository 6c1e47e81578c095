"""Compare the copies of Waterbirds and of other benchmarks on disk with what was published (docs/protocols.md)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from .class_folders import MissingSetError
from .coarse_sets import CounterAnimalDataset, GeirhosDataset, ImageNet9Dataset, ImageNetDDataset
from .csv_tables import missing_files
from .domains import DomainDataset
from .folder import FolderDataset
from .groups import GroupCSVDataset
from .images import left_out_words
from .layouts import find_set
from .published import BENCHMARKS, CELEBA_GROUPS, DOMAIN_IMAGES, WILDS_IMAGES
from .relabelled import ImageNetHardDataset, ImageNetRealDataset, ImageNetXDataset
from .wilds import CelebADataset, WILDSDataset
from .zero_shot import ZeroShotDataset

if TYPE_CHECKING:
    from .checks import SetReport

# Datasets that together hold all images of a benchmark.
DATASETS: dict[str, Sequence[Callable[[str], FolderDataset]]] = {
    'imagenet-9': [ImageNet9Dataset],
    'counteranimal': [CounterAnimalDataset],
    **{name: [partial(GeirhosDataset, stimuli=name)] for name in GeirhosDataset.STIMULI},
    'imagenet-d': [ImageNetDDataset],
    'imagenet-real': [ImageNetRealDataset],
    'imagenet-x': [ImageNetXDataset],
    'imagenet-hard': [ImageNetHardDataset],
    **{name: [partial(DomainDataset, benchmark=name)] for name in DOMAIN_IMAGES},
    **{
        name: [partial(WILDSDataset, benchmark=name, split=split) for split in splits]
        for name, splits in WILDS_IMAGES.items()
    },
    **{name: [partial(ZeroShotDataset, benchmark=name)] for name in ZeroShotDataset.BENCHMARKS},
}


def check_benchmark(report: SetReport, data_root: str | Path, any_name: bool = True) -> list[str]:
    """Build the datasets of a benchmark and count what they hold; returns the paths of the images, none if the set is
    missing or cannot be built. Arguments as of :func:`mmcfmask.datasets.layouts.find_set`."""
    try:
        if BENCHMARKS[report.name].folders:
            report.folder = str(find_set(report.name, data_root, any_name))
        if report.name == 'celeba':
            return check_group_csv(report, CelebADataset, CELEBA_GROUPS, Path(str(report.folder)))
        datasets = [build(report.folder or str(data_root)) for build in DATASETS[report.name]]
    except MissingSetError as error:
        (report.notes if report.folder is None else report.problems).append(str(error).rstrip('.'))
        return []
    except (ValueError, OSError) as error:
        report.folder = report.folder or str(data_root)
        report.problems.append(str(error).rstrip('.'))
        return []
    report.folder = report.folder or str(datasets[0].img_prefix).rstrip('/')
    return count_items(report, datasets)


def count_items(report: SetReport, datasets: Sequence[FolderDataset]) -> list[str]:
    """Fill in the counts of a report; returns the paths of the images."""
    paths, groups, labels = [], Counter(), set()
    for dataset in datasets:
        names = dataset.metainfo.get('group_names') or ()
        for item in map(dataset.get_data_info, range(len(dataset))):
            label = item['gt_label']
            labels.add(tuple(label) if isinstance(label, list) else label)
            paths.append(item['img_path'])
            groups.update(names[group] for group in ([item['group']] if isinstance(item.get('group'), int) else ()))
        report.notes += dataset.metainfo.get('notes', ())
        if dataset.left_out:
            report.notes.append(f'{left_out_words(dataset.left_out)} are not images')
    report.images, report.classes = len(paths), len(labels)
    if report.name in ('imagenet-real', 'imagenet-hard'):  # sets of classes
        report.classes = len({index for label in labels for index in label})
    if report.images != report.published_images and groups:
        report.notes.append(', '.join(f'{name}: {count:,}' for name, count in groups.items()))
    return paths


def check_group_csv(
    report: SetReport, kind: type[GroupCSVDataset], published: Mapping[str, Sequence[int]], root: Path
) -> list[str]:
    """Compare the files and the groups that a CSV file lists with the published ones; returns the images that are
    there.

    Args:
        report: Is filled in.
        kind: A dataset with ``SPLITS``.
        published: Images of each group by split.
        root: Folder of the set.
    """
    dataset = kind(str(root), lazy_init=True)
    rows, folder = dataset.read_rows(), Path(dataset.img_prefix)
    missing = missing_files(folder, (row['file'] for row in rows))
    if missing:
        report.notes.append(f'{len(missing):,} of {len(rows):,} images of {dataset.csv} are missing')
    for split, sizes in published.items():
        listed = Counter(row['group'] for row in rows if row['split'] == str(kind.SPLITS[split]))
        groups = tuple(listed[group] for group in range(len(sizes)))
        counts = (
            f'{split}: {" / ".join(map(str, groups))} images of the groups, published {" / ".join(map(str, sizes))}'
        )
        if groups != tuple(sizes):
            (report.notes if sum(groups) < sum(sizes) else report.problems).append(counts)
    here = [row for row in rows if row['file'] not in missing]
    report.images, report.classes = len(here), len({row['label'] for row in here})
    return [f'{folder}/{row["file"]}' for row in here]
