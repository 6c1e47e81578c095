"""Images whose labels, splits and groups stand in a CSV file: Waterbirds, CelebA, WILDS."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from mmengine.logging import print_log
from mmpretrain.registry import DATASETS

from ..errors import ConfigError
from ..messages import near_names, short_list
from ..ranges import Count, OpenShare, SubsetSeed
from .class_folders import MissingSetError
from .csv_tables import Value, missing_files, number_values, read_table, split_values
from .folder import FolderDataset, drop_unreadable
from .holdout import split_holdout, take_fraction, take_per_class, take_per_group
from .layouts import SETS, WATERBIRDS_GROUPS, find_set


@DATASETS.register_module()
class GroupCSVDataset(FolderDataset):
    """Images that a CSV file lists, with a label, a split and the attributes that make groups, such as the background.

    Items are dicts with ``img_path``, ``gt_label``, ``group`` (int) and ``sample_idx``, in the order of the file.
    ``PackInputs(meta_keys=('sample_idx', 'img_path', 'group'))`` passes the group on to
    :class:`mmcfmask.evaluation.GroupAccuracy`.

    The classes are the values of the label column in the whole file, so all splits have the same. Values are texts.
    If they are among the given names, the names are meant; whole numbers below the number of names are indices; other
    numbers mean the names in sorted order (−1 before 1). The values of group columns are read alike. A group is a
    combination of values; groups are numbered with the last column running fastest.

    ``metainfo['group_names']`` holds the names of all groups, and ``metainfo['group_sizes']`` the number of images
    of each in ``train_split``, of the whole file, whatever part of it is used. Images of the split whose files are
    missing are left out; the log and ``metainfo['notes']`` count them.

    Args:
        data_root (str): Folder of the data set.
        csv (str): The file, relative to ``data_root``. Defaults to 'metadata.csv'.
        file_column (str): Column with the paths of images. Defaults to 'filename'.
        label_column (str): Column with the labels. Defaults to 'y'.
        group_columns (Sequence[str] | Mapping[str, Sequence[str]]): Columns that make the groups; with names of their
            values: ``dict(y=['dark', 'blond'], Male=['female', 'male'])``. Defaults to (): one group.
        split_column (str): Column with the splits. Defaults to 'split'.
        split (str | int | Sequence, optional): Value or values of the split column to use. Defaults to None: all
            images.
        train_split (str | int | Sequence, optional): Value or values of the training images. Defaults to None: the
            sizes of the groups in training are not known, and there is no average weighted by them.
        split_csv (str, optional): Another file with the file column and the split column, as CelebA has. Defaults to
            None.
        image_dir (str): Folder of the images in ``data_root``. Defaults to ''.
        group_names (Sequence[str], optional): Names of the groups. Defaults to the names of the values, joined by
            commas.
        fraction (float, optional): Part of the images of every group to keep, rounded, at least one. Defaults to None:
            all.
        per_group (int, optional): Number of images of every group to keep. Defaults to None: all.
        per_class (int, optional): Number of images of every class to keep, whatever their groups. Defaults to None:
            all.
        subset_seed (int | str): Seed of the subset, which is drawn after the hold-out; ``'run'`` is the seed of the
            run. A smaller draw is part of a larger one. Defaults to 0.
        **kwargs: Arguments of :class:`FolderDataset` except ``split_dir``, ``folders`` and ``other_folders``:
            ``classes``, ``holdout`` (stratified by group), ``skip_unreadable``, ``pipeline``, ...

    Raises:
        MissingSetError: The folder or the file does not exist, or none of the images.
        ConfigError: A column or a split that the file does not have; rows that are not complete; an image in two rows;
            names that do not fit the values.

    Examples:
        >>> celeba = dict(
        ...     data_root='data/celeba', csv='list_attr_celeba.csv', split_csv='list_eval_partition.csv',
        ...     image_dir='img_align_celeba', file_column='image_id', label_column='Blond_Hair',
        ...     split_column='partition', train_split=0, classes=['dark', 'blond'],
        ...     group_columns=dict(Blond_Hair=['dark', 'blond'], Male=['female', 'male']))
        >>> test = GroupCSVDataset(split=2, **celeba, pipeline=[...])
    """  # fmt: skip

    def __init__(
        self,
        data_root: str,
        csv: str = 'metadata.csv',
        file_column: str = 'filename',
        label_column: str = 'y',
        group_columns: Sequence[str] | Mapping[str, Sequence[str]] = (),
        split_column: str = 'split',
        split: Value | Sequence[Value] | None = None,
        train_split: Value | Sequence[Value] | None = None,
        split_csv: str | None = None,
        image_dir: str = '',
        group_names: Sequence[str] | None = None,
        fraction: OpenShare | None = None,
        per_group: Count | None = None,
        subset_seed: SubsetSeed = 0,
        per_class: Count | None = None,
        **kwargs,
    ) -> None:
        for key, advice in dict(split_dir='use image_dir', folders='', other_folders='').items():
            if kwargs.get(key):
                raise ConfigError(f'{type(self).__name__} has no {key}' + (f': {advice}.' if advice else '.'))
        if isinstance(group_columns, str):
            raise ConfigError(
                f'group_columns={group_columns!r} must be a list of columns, such as [{group_columns!r}].'
            )
        subsets = dict(fraction=fraction, per_group=per_group, per_class=per_class)
        given = [f'{key}={value}' for key, value in subsets.items() if value is not None]
        if len(given) > 1:
            raise ConfigError(f'{" and ".join(given)}: only one of them can be set.')
        if fraction is not None and not 0 < fraction < 1:
            raise ConfigError(f'fraction={fraction} must lie between 0 and 1; None keeps all images.')
        if per_group is not None and per_group < 1:
            raise ConfigError(f'per_group={per_group} must be at least 1.')
        self.csv = csv
        self.file_column, self.label_column, self.split_column = file_column, label_column, split_column
        self.group_columns = (
            {column: list(names) for column, names in group_columns.items()}
            if isinstance(group_columns, Mapping)
            else dict.fromkeys(group_columns)
        )
        self.split = None if split is None else split_values(split, 'split')
        self.train_split = None if train_split is None else split_values(train_split, 'train_split')
        self.split_csv = split_csv
        self.group_names = None if group_names is None else list(group_names)
        self.fraction = fraction
        self.per_group = per_group
        super().__init__(data_root, split_dir=image_dir, per_class=per_class, subset_seed=subset_seed, **kwargs)

    def find_csv(self, name: str | None = None) -> Path:
        """Path of the CSV file, or of another one beside it.

        Raises:
            MissingSetError: It does not exist.
        """
        path = Path(self.data_root) / (name or self.csv)
        if not path.is_file():
            raise MissingSetError(f'there is no file {path.absolute()}: set data_root and csv of the dataset.')
        return path

    def name_classes(self, root: Path) -> list[str]:
        """Read the class names from the CSV file, unless they are given."""
        self.read_rows()
        return list(self._metainfo['classes'])

    def list_items(self, root: Path) -> list[dict]:
        """The items of the split, in the order of the file. Sets the metainfo."""
        rows = self.read_rows()
        path, groups = self.find_csv(), self._metainfo['group_names']
        if self.train_split is not None:
            self._check_split(rows, self.train_split, 'train_split')
            sizes = Counter(row['group'] for row in rows if row['split'] in self.train_split)
            self._metainfo['group_sizes'] = tuple(sizes[group] for group in range(len(groups)))
        if self.split is not None:
            self._check_split(rows, self.split, 'split')
            rows = [row for row in rows if row['split'] in self.split]
        missing = missing_files(root, [row['file'] for row in rows])
        if missing:
            words = f'{len(missing):,} of the {len(rows):,} images that {path.name} lists are missing'
            if len(missing) == len(rows):
                raise MissingSetError(
                    f'{root}: all {len(rows):,} images that {path.name} lists are missing, such as {min(missing)}: set '
                    'data_root and image_dir of the dataset.'
                )
            print_log(f'{root}: {words}: {short_list(sorted(missing))}', 'current', level=logging.WARNING)
            self._metainfo['notes'] = [*self._metainfo.get('notes', ()), words]
            rows = [row for row in rows if row['file'] not in missing]
        self.num_listed = len(rows)
        chosen = self._choose(rows, root)
        return [
            dict(img_path=f'{root}/{row["file"]}', gt_label=row['label'], group=row['group'])
            for row in rows
            if row['file'] in chosen
        ]

    def _choose(self, rows: Sequence[dict], root: Path) -> set[str]:
        """Names of the images that hold-out, check and subset leave."""
        names = self._metainfo['group_names']
        images: dict[str, list[str]] = {}
        for row in sorted(rows, key=lambda row: (row['group'], row['file'])):
            images.setdefault(names[row['group']], []).append(row['file'])
        if self.holdout is not None:
            images = split_holdout(images, **self.holdout)
            images = {group: files for group, files in images.items() if files}
        if self.skip_unreadable:
            before = sum(map(len, images.values()))
            images = drop_unreadable(images, root)
            self.num_skipped += before - sum(map(len, images.values()))
        if self.fraction is not None:
            images = take_fraction(images, self.fraction, self.subset_seed)
        if self.per_group is not None:
            images = take_per_group(images, self.per_group, self.subset_seed)
        chosen = {file for files in images.values() for file in files}
        if self.per_class is None:
            return chosen
        by_class: dict[str, list[str]] = {name: [] for name in self._metainfo['classes']}
        for row in rows:
            if row['file'] in chosen:
                by_class[self._metainfo['classes'][row['label']]].append(row['file'])
        drawn = take_per_class(by_class, self.per_class, self.subset_seed)
        return {file for files in drawn.values() for file in files}

    def read_rows(self) -> list[dict]:
        """All rows of the file as dicts with ``file``, ``split``, ``label`` and ``group``. Sets the names in the
        metainfo."""
        path = self.find_csv()
        wanted = [self.file_column, self.label_column, *self.group_columns]
        needs_split = self.split is not None or self.train_split is not None
        table = self.read_table(path, wanted + ([self.split_column] if needs_split and not self.split_csv else []))
        files = [row[self.file_column] for row in table]
        twice = [file for file, count in Counter(files).items() if count > 1]
        if twice:
            raise ConfigError(f'{path}: {len(twice)} images stand in several rows: {short_list(twice)}.')
        splits = [row.get(self.split_column) for row in table]
        if needs_split and self.split_csv:
            splits = self._read_splits(files)
        labels, classes = number_values(
            [row[self.label_column] for row in table],
            self._metainfo.get('classes'),
            f'{path}, column {self.label_column}',
        )
        self._metainfo['classes'] = classes
        groups, names = [0] * len(table), ['']
        for column, given in self.group_columns.items():
            given = classes if given is None and column == self.label_column else given
            values, own = number_values([row[column] for row in table], given, f'{path}, column {column}')
            groups = [group * len(own) + value for group, value in zip(groups, values)]
            names = [f'{name}, {value}' if name else value for name in names for value in own]
        if self.group_names is not None and len(self.group_names) != len(names):
            raise ConfigError(
                f'{path}: {len(names)} groups ({short_list(names)}), but {len(self.group_names)} group_names are given.'
            )
        names = list(map(str, self.group_names or [name or 'all' for name in names]))
        alike = [name for name, count in Counter(names).items() if count > 1]
        if alike:
            raise ConfigError(f'{path}: several groups have the name {short_list(alike)}: give other group_names.')
        self._metainfo['group_names'] = tuple(names)
        return [
            dict(file=file, split=split, label=label, group=group)
            for file, split, label, group in zip(files, splits, labels, groups)
        ]

    def read_table(self, path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
        """Rows of the file with these columns. A child class may make columns that the file does not have."""
        return read_table(path, columns)

    def _read_splits(self, files: Sequence[str]) -> list[str]:
        """The split of every image by ``split_csv``."""
        path = self.find_csv(self.split_csv)
        table = read_table(path, [self.file_column, self.split_column])
        splits = {row[self.file_column]: row[self.split_column] for row in table}
        unknown = [file for file in files if file not in splits]
        if unknown:
            raise ConfigError(
                f'{path} has no row for {len(unknown):,} of {len(files):,} images: {short_list(unknown)}.'
            )
        return [splits[file] for file in files]

    def _check_split(self, rows: Sequence[dict], wanted: Sequence[str], key: str) -> None:
        counts = Counter(row['split'] for row in rows)
        unknown = [value for value in wanted if not counts[value]]
        if unknown:
            known = ', '.join(f'{value} ({count:,})' for value, count in sorted(counts.items()))
            raise ConfigError(
                f'{self.find_csv(self.split_csv)}: {key}={short_list(unknown)}, but column {self.split_column} has '
                f'{known}.{near_names(unknown[0], list(counts))}'
            )

    def extra_repr(self) -> list[str]:
        """Where the images are, and which of them are used."""
        return [
            f'Root of images: \t{self.img_prefix}',
            f'Split: \t{"all" if self.split is None else ", ".join(self.split)}',
            f'Hold-out: \t{self.holdout}',
            f'Part of every group: \t{self.per_group or self.fraction or "all"}',
            f'Images per class: \t{self.per_class}',
        ]


@DATASETS.register_module()
class WaterbirdsDataset(GroupCSVDataset):
    """Waterbirds (Sagawa et al., ICLR 2020): land and water birds of CUB-200, pasted on land or water.

    In the training split 95 % of the birds are on their own background; validation and test split have as many of a
    class on each. The four groups are the classes on land and on water.

    Args:
        data_root (str): Folder of the set, with ``metadata.csv``, or a common folder of all sets
            (:func:`mmcfmask.datasets.layouts.find_set`).
        split (str): 'train', 'val' or 'test'. Defaults to 'train'.
        **kwargs: ``holdout``, ``fraction``, ``per_group``, ``per_class``, ``subset_seed``, ``skip_unreadable``,
            ``pipeline`` and other arguments of :class:`GroupCSVDataset` that do not describe the file.
    """

    METAINFO = dict(classes=('landbird', 'waterbird'))
    SPLITS = dict(train=0, val=1, test=2)
    GROUPS = ('landbird on land', 'landbird on water', 'waterbird on land', 'waterbird on water')

    def __init__(self, data_root: str, split: str = 'train', **kwargs) -> None:
        if split not in self.SPLITS:
            raise ConfigError(f'WaterbirdsDataset: unknown split {split!r}, choose one of {", ".join(self.SPLITS)}.')
        protocol = dict(SETS['waterbirds'].protocol, images=sum(WATERBIRDS_GROUPS[split]))
        super().__init__(
            str(find_set('waterbirds', data_root)),
            file_column='img_filename',
            label_column='y',
            group_columns=dict(y=self.METAINFO['classes'], place=('land', 'water')),
            split_column='split',
            split=self.SPLITS[split],
            train_split=self.SPLITS['train'],
            group_names=self.GROUPS,
            metainfo=dict(protocol=protocol),
            **kwargs,
        )
