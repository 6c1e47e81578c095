"""Check that data sets have their folders."""

from __future__ import annotations

import glob
from pathlib import Path

from mmengine.config import Config
from mmpretrain.datasets import MultiLabelDataset, MultiTaskDataset
from mmpretrain.registry import DATASETS

from ...datasets import FolderDataset, GroupCSVDataset, MissingSetError
from ...datasets.class_folders import check_folders, sub_folders
from ...datasets.shards import find_shards
from ...datasets.wrappers import inner_configs
from ...errors import ConfigError, blame
from ..test_loop import find_sets, may_be_missing
from ..values import get_value, is_a
from .parts import named_loaders


def check_training_data(cfg: Config) -> None:
    """Check the settings and the folders of the data sets of a training.

    Raises:
        MissingSetError, ConfigError: Names the key of the data set.
    """
    loaders = {
        'train_dataloader': cfg.get('train_dataloader'),
        'model.head.class_weights': get_value(cfg, 'model.head.class_weights'),
        **named_loaders(cfg, 'val'),
    }
    for key, loader in loaders.items():
        for dataset in inner_configs((loader or {}).get('dataset') or {}):
            if is_a((MultiLabelDataset, MultiTaskDataset), dataset.get('type'), DATASETS):
                raise ConfigError(
                    f'{key}.dataset.type={dataset["type"]!r} gives an image several labels, but relevance and class '
                    'embeddings need one class per image: such data sets are not supported'
                )
            _find_folder(f'{key}.dataset', dataset)


def check_test_data(cfg: Config) -> None:
    """Check the settings and the folders of the test sets that would run. ``test_cfg.skip_missing`` allows some sets to
    be missing, but not all of them.

    Raises:
        MissingSetError, ConfigError: Names the key of the data set, and missing or unknown class folders.
    """
    loop, missing = cfg.test_cfg, {}
    names = find_sets(cfg)
    for name in names:
        key = f'test_dataloader.{name}.dataset'
        try:
            for dataset in inner_configs(cfg.test_dataloader[name].dataset):
                _check_folders(key, _find_folder(key, dataset))
        except MissingSetError as error:
            if not may_be_missing(name, loop.get('skip_missing', False)):
                raise
            missing[name] = str(error)
    if len(missing) == len(names):
        raise MissingSetError('none of the test sets was found:\n' + '\n'.join(missing.values()))


def _check_folders(key: str, dataset: FolderDataset | None) -> None:
    """Check that a data set has its class folders. Labels in shards are checked when they are listed."""
    if dataset is None or not dataset.folders or find_shards(dataset.img_prefix):
        return
    present = sub_folders(Path(dataset.img_prefix))
    if set(dataset.folders) & set(present):  # else there are no class folders, or they are deeper
        with blame(key):
            check_folders(dataset.folders, present, Path(dataset.img_prefix), dataset.other_folders)


def _find_folder(key: str, dataset: dict | None) -> FolderDataset | None:
    """Build a data set without its images and check that its folder exists. None for a data set without a folder."""
    if not dataset or not is_a(FolderDataset, dataset.type, DATASETS):
        return None
    with blame(key):
        built = DATASETS.build(dict(dataset, pipeline=[], lazy_init=True))
    folder = Path(built.img_prefix)
    with blame(key):
        shards = find_shards(folder)
    if not folder.is_dir() and not shards:
        missing = 'no file matches' if glob.has_magic(str(folder)) else 'there is no folder'
        raise MissingSetError(
            f'{key}: {missing} {folder.absolute()}: set its data_root (of all data sets: --cfg-options '
            'data_root=…), and split_dir or domain'
        )
    if isinstance(built, GroupCSVDataset):
        with blame(key):
            built.find_csv()
    return built
