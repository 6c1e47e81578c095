"""CelebA, and the image classification sets of WILDS, by their CSV files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from mmpretrain.registry import DATASETS

from ..errors import ConfigError
from ..messages import near_names
from .csv_tables import read_table
from .groups import GroupCSVDataset
from .layouts import SETS, find_set
from .published import CELEBA_GROUPS, WILDS_IMAGES

Row = dict[str, str]


class CSVLayout(NamedTuple):
    """How a set of WILDS lists its images.

    Attributes:
        csv: The file.
        columns: Those that are read.
        convert: (number of the row from 0, row) to a row with ``filename``, ``y``, ``split`` and ``group``; None for a
            row that belongs to no split.
        group: What the groups are called.
        image_dir: Folder of the images.
    """

    csv: str
    columns: tuple[str, ...]
    convert: Callable[[int, Row], Row | None]
    group: str | None
    image_dir: str = ''


def camelyon17_row(number: int, row: Row) -> Row:
    """Hospital 1 is for validation and 2 for the test; the others are split by the file (0 train, 1 id_val)."""
    patient, node, x, y = (row[key] for key in ('patient', 'node', 'x_coord', 'y_coord'))
    stem = f'patient_{patient}_node_{node}'
    split = {'1': 'val', '2': 'test'}.get(row['center']) or {'0': 'train', '1': 'id_val'}.get(row['split'], '')
    return dict(
        filename=f'patches/{stem}/patch_{stem}_x_{x}_y_{y}.png', y=row['tumor'], split=split, group=row['center']
    )


def iwildcam_row(number: int, row: Row) -> Row:
    """All columns are there."""
    return dict(filename=row['filename'], y=row['y'], split=row['split'], group='')


def fmow_row(number: int, row: Row) -> Row | None:
    """Images are numbered by the rows of the whole file. The official splits are by year: those of the file before
    2013 are in distribution; validation images of 2013 to 2015 and test images from 2016 on are not; the rest is
    unused."""
    year = int(row['timestamp'][:4])
    split = row['split']
    if year < 2013:
        split = {'train': 'train', 'val': 'id_val', 'test': 'id_test'}.get(split, '')
    elif (split, year >= 2016) not in (('val', False), ('test', True)):
        split = ''
    if not split:
        return None
    return dict(filename=f'images/rgb_img_{number}.png', y=row['category'], split=split, group=row['country_code'])


def rxrx1_row(number: int, row: Row) -> Row:
    """The second site of the training experiments is the test in distribution."""
    split = 'id_test' if row['dataset'] == 'train' and row['site'] == '2' else row['dataset']
    path = f'images/{row["experiment"]}/Plate{row["plate"]}/{row["well"]}_s{row["site"]}.png'
    return dict(filename=path, y=row['sirna_id'], split=split, group=row['cell_type'])


LAYOUTS = {
    'camelyon17': CSVLayout(
        'metadata.csv',
        ('patient', 'node', 'x_coord', 'y_coord', 'tumor', 'center', 'split'),
        camelyon17_row,
        'hospital',
    ),
    'iwildcam': CSVLayout('metadata.csv', ('filename', 'y', 'split'), iwildcam_row, None, 'train'),
    'fmow': CSVLayout('rgb_metadata.csv', ('split', 'category', 'timestamp', 'country_code'), fmow_row, 'region'),
    'rxrx1': CSVLayout(
        'metadata.csv',
        ('dataset', 'experiment', 'plate', 'well', 'site', 'sirna_id', 'cell_type'),
        rxrx1_row,
        'cell type',
    ),
}


@DATASETS.register_module()
class WILDSDataset(GroupCSVDataset):
    """Camelyon17, iWildCam, FMoW or RxRx1 of WILDS (Koh et al., ICML 2021), with the official splits.

    Layout: as the ``wilds`` package unpacks them (``camelyon17_v1.0/metadata.csv``, …). Classes are the values of the
    label in numerical or alphabetical order, which is theirs. Groups are hospitals, regions (FMoW), cell types (RxRx1);
    iWildCam has none, because its measure is macro F1.

    Args:
        data_root (str): Folder of the set, or a common folder of all sets.
        benchmark (str): 'camelyon17', 'iwildcam', 'fmow' or 'rxrx1'.
        split (str): 'train', 'val' or 'test', the latter two out of distribution; 'id_val' (Camelyon17, iWildCam, FMoW)
            and 'id_test' (all but Camelyon17) are in distribution. Defaults to 'train'.
        **kwargs: ``classes``, ``holdout``, ``fraction``, ``per_group``, ``per_class``, ``subset_seed``,
            ``skip_unreadable``, ``pipeline`` and other arguments of :class:`GroupCSVDataset` that do not describe the
            file.

    Raises:
        ConfigError: An unknown benchmark or split; and as :class:`GroupCSVDataset`.
    """

    def __init__(self, data_root: str, benchmark: str, split: str = 'train', **kwargs) -> None:
        if benchmark not in LAYOUTS:
            raise ConfigError(
                f'WILDSDataset: unknown benchmark={benchmark!r}, choose one of {", ".join(LAYOUTS)}.'
                f'{near_names(str(benchmark), list(LAYOUTS))} CelebA and Waterbirds have datasets of their own.'
            )
        images = WILDS_IMAGES[benchmark]
        if split not in images:
            raise ConfigError(f'WILDSDataset: {benchmark} has no split {split!r}, choose one of {", ".join(images)}.')
        self.layout = layout = LAYOUTS[benchmark]
        protocol = dict(SETS[benchmark].protocol, images=images[split])
        super().__init__(
            str(find_set(benchmark, data_root)),
            csv=layout.csv,
            group_columns=() if layout.group is None else ('group',),
            split=split,
            train_split='train',
            image_dir=layout.image_dir,
            metainfo=dict(protocol=protocol),
            **kwargs,
        )

    def read_table(self, path: Path, columns: Sequence[str]) -> list[Row]:
        """Rows with the columns of :attr:`CSVLayout.convert`."""
        converted = (
            self.layout.convert(number, row) for number, row in enumerate(read_table(path, self.layout.columns))
        )
        rows = [row for row in converted if row is not None]
        if self.layout.group == 'region':
            regions = {
                row['alpha-3']: row['region']
                for row in read_table(self.find_csv('country_code_mapping.csv'), ('alpha-3', 'region'), empty=True)
            }
            rows = [dict(row, group=regions.get(row['group']) or 'Other') for row in rows]
        return rows


@DATASETS.register_module()
class CelebADataset(GroupCSVDataset):
    """CelebA with the task of Sagawa et al. (ICLR 2020): blond hair or not, in groups of hair and sex.

    Layout: ``list_attr_celeba.csv``, ``list_eval_partition.csv`` and ``img_align_celeba/``, as in WILDS and on Kaggle.

    Args:
        data_root (str): Folder of the set, or a common folder of all sets.
        split (str): 'train', 'val' or 'test'. Defaults to 'train'.
        **kwargs: ``holdout``, ``fraction``, ``per_group``, ``per_class``, ``subset_seed``, ``skip_unreadable``,
            ``pipeline`` and other arguments of :class:`GroupCSVDataset` that do not describe the file.
    """

    METAINFO = dict(classes=('not blond', 'blond'))
    SPLITS = dict(train=0, val=1, test=2)

    def __init__(self, data_root: str, split: str = 'train', **kwargs) -> None:
        if split not in self.SPLITS:
            raise ConfigError(f'CelebADataset: unknown split {split!r}, choose one of {", ".join(self.SPLITS)}.')
        root = find_set('celeba', data_root)
        nested = root / 'img_align_celeba' / 'img_align_celeba'  # Kaggle's archive
        protocol = dict(SETS['celeba'].protocol, images=sum(CELEBA_GROUPS[split]))
        super().__init__(
            str(root),
            csv='list_attr_celeba.csv',
            split_csv='list_eval_partition.csv',
            image_dir='img_align_celeba/img_align_celeba' if nested.is_dir() else 'img_align_celeba',
            file_column='image_id',
            label_column='Blond_Hair',
            group_columns=dict(Blond_Hair=self.METAINFO['classes'], Male=('female', 'male')),
            split_column='partition',
            split=self.SPLITS[split],
            train_split=self.SPLITS['train'],
            metainfo=dict(protocol=protocol),
            **kwargs,
        )
