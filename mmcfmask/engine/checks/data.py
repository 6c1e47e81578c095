"""Data sets have their folders."""

from __future__ import annotations

from pathlib import Path

from mmengine.config import Config
from mmpretrain.registry import DATASETS

from ...datasets import FolderDataset, MissingSetError
from ...datasets.class_folders import check_folders, sub_folders
from ...errors import ConfigError
from ..test_loop import choose_shifts, may_be_missing
from ..values import is_a, value_of
from .parts import lower_errors


def check_training_data(cfg: Config) -> None:
    """Find what is wrong with the settings and folders of data sets before a model is built, which can take minutes.

    Raises:
        MissingSetError, ValueError: With the key of the data set.
    """
    val = cfg.get('val_dataloader') or {}
    loaders = dict(
        train_dataloader=cfg.get('train_dataloader'),
        **{'model.head.class_weights': value_of(cfg, 'model.head.class_weights')},
    )
    loaders.update(
        {'val_dataloader': val}
        if 'dataset' in val
        else {f'val_dataloader.{name}': loader for name, loader in val.items()}
    )
    for key, loader in loaders.items():
        _find_folder(f'{key}.dataset', (loader or {}).get('dataset'))


def check_test_data(cfg: Config) -> None:
    """The same for the test sets that would run. One that is not there is no error where it may be left out, but for
    all of them.

    Raises:
        MissingSetError, ValueError: With the key of the data set; class folders that are missing or unknown are named.
    """
    loop, missing = cfg.test_cfg, {}
    names = [loop.id_set, *choose_shifts(cfg.test_dataloader, loop.id_set, loop.get('shifts'))]
    for name in names:
        key = f'test_dataloader.{name}.dataset'
        try:
            dataset = _find_folder(key, cfg.test_dataloader[name].dataset)
        except MissingSetError as error:
            if not may_be_missing(name, loop.get('skip_missing', False)):
                raise
            missing[name] = str(error)
            continue
        folders = () if dataset is None else dataset.folders or ()
        present = sub_folders(Path(dataset.img_prefix)) if folders else ()
        if set(folders) & set(present):  # else the images lie flat, or deeper
            try:
                check_folders(folders, present, Path(dataset.img_prefix), dataset.other_folders)
            except ValueError as error:
                raise ConfigError(f'{key}: {error}') from None
    if len(missing) == len(names):
        raise MissingSetError('none of the test sets is there:\n' + '\n'.join(missing.values()))


def _find_folder(key: str, dataset: dict | None) -> FolderDataset | None:
    """Build a data set without its images, and look for its folder; None for one that has no folder."""
    if not dataset or not is_a(FolderDataset, dataset.type, DATASETS):
        return None
    with lower_errors(key):
        built = DATASETS.build(dict(dataset, pipeline=[], lazy_init=True))
    folder = Path(built.img_prefix)
    if not folder.is_dir():
        raise MissingSetError(
            f'{key}: there is no folder {folder.absolute()}: set its data_root (of all: --cfg-options data_root=…), '
            'and split_dir or domain'
        )
    return built
