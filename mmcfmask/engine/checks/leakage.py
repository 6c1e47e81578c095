"""Check that no image is both trained on and held out, and that no shift chooses anything."""

from __future__ import annotations

import copy
import logging

from mmengine.config import Config
from mmengine.logging import print_log

from ...datasets.holdout import follow_run
from ...datasets.overlap import are_known_disjoint, identify_images
from ...distributed import on_node
from ...errors import ConfigError, MissingFileError
from ..values import get_value

TRAIN, VAL = 'train_dataloader.dataset', 'val_dataloader'


def check_leakage(cfg: Config, training: bool = True, seed: int | None = None) -> None:
    """Compare the images that a model learns from, that choose something, and that are tested.

    The images are compared, not their configs. Test images of the ID set that choose something, and any test images
    that are trained on, are only warned of.

    Args:
        cfg (Config): The config of a training or a test.
        training (bool): Include the training and the validation set. If False, compare only the images that make the
            head or the k-NN gate.
        seed (int, optional): Of the run, for hold-outs that follow it. None: the value of the config.

    Raises:
        ConfigError: Images that choose something are also learned from, or belong to a shift.
    """
    learned, choosing = _find_sets(cfg, training)
    tested = {name: f'test_dataloader.{name}.dataset' for name in cfg.get('test_dataloader') or ()}
    sets = {**learned, **choosing, **{key: cfg.test_dataloader[name].get('dataset') for name, key in tested.items()}}
    overlaps = _Overlaps(sets, get_value(cfg, 'randomness.seed') if seed is None else seed)
    for one in learned:
        for other in choosing:
            if both := overlaps.describe(one, other):
                raise ConfigError(
                    f'{other} chooses by its images, but {both} would be trained on ({one}). Give both data sets of '
                    "one folder the same holdout=dict(fraction=…, seed=…), one with part='train' and one with "
                    "part='held_out'"
                )
    loop = cfg.get('test_cfg') or {}
    whole = overlaps.add_whole(learned.get(TRAIN), choosing.get(VAL))
    for name, key in tested.items() if loop.get('id_set') else ():
        if name not in (loop.id_set, *(tested if loop.get('shifts') is None else loop.shifts)):
            continue  # it does not run
        apart = {TRAIN, VAL} if whole and not overlaps.describe(whole, key) else ()
        _check_choice(overlaps, [other for other in choosing if other not in apart], name, key, name != loop.id_set)
        for one in learned:
            if one not in apart and (both := overlaps.describe(one, key)):
                _warn(
                    f'{key}: {both} are trained on ({one.removesuffix(".dataset")}), so that the accuracy on them '
                    'says nothing about others'
                )


def _find_sets(cfg: Config, training: bool) -> tuple[dict[str, dict | None], dict[str, dict | None]]:
    """Return the data sets that a model learns from and those that choose something, by dotted key."""
    learned, choosing = {}, {}
    if training:
        loader, loop = cfg.get('val_dataloader') or {}, cfg.get('val_cfg') or {}
        learned[TRAIN] = get_value(cfg, TRAIN)
        choosing[VAL] = (loader.get(loop['id_set'], {}) if loop.get('id_set') else loader).get('dataset')
    for part in ('model.head.class_weights', 'model.knn_gate'):
        made_of, held_out = (get_value(cfg, f'{part}.{key}') for key in ('dataset', 'held_out'))
        if made_of and made_of not in learned.values():
            learned[f'{part}.dataset'] = made_of
        if held_out and held_out not in choosing.values():
            choosing[f'{part}.held_out'] = held_out
    return learned, choosing


def _check_choice(overlaps: _Overlaps, choosing: list[str], name: str, key: str, is_shift: bool) -> None:
    """Refuse a choice by images of a shift; warn of a choice by test images of the ID set.

    Args:
        overlaps (_Overlaps): Of all data sets.
        choosing (list[str]): Keys of the data sets that choose something.
        name (str): Of the test set.
        key (str): Its dotted key.
        is_shift (bool): Whether it is a shift.
    """
    for other in choosing:
        both = overlaps.describe(other, key)
        if not both:
            continue
        chosen, what = ('a checkpoint', 'the checkpoint') if other == VAL else ('what is', 'a part of the model')
        if is_shift:
            raise ConfigError(
                f'{other} reads images of the shift {name!r} of test_dataloader, {both}: {chosen} chosen by them is '
                'fitted to that shift. Validate on images held out of the training set'
            )
        _warn(
            f'{key}: {both} also choose {what} ({other}), which is better on them than on others. Test on a part of '
            "its own: holdout=dict(fraction=0.1, test=0.1, …, part='test')"
        )


class _Overlaps:
    """Images that data sets share.

    Args:
        sets (dict): Dotted key to the config of a data set.
        seed (int, optional): Of the run, for hold-outs that follow it.
    """

    def __init__(self, sets: dict[str, dict | None], seed: int | None) -> None:
        self.sets = sets
        self.seed = seed
        self.images: dict[str, set[str]] = {}

    def add_whole(self, train: dict | None, val: dict | None) -> str | None:
        """Add the folder of which the training and the validation set are parts, so that it is listed once; its key."""
        if not (train and val and are_known_disjoint(train, val)):
            return None
        key = f'{TRAIN} (without holdout)'
        parts = ('holdout', 'per_class', 'per_group', 'fraction', 'indices')
        self.sets[key] = {name: value for name, value in train.items() if name not in parts}
        return key

    def describe(self, one: str, other: str) -> str:
        """Say how many images of the data set ``other`` are in ``one`` too; empty if there are none."""
        if not self.sets.get(one) or not self.sets.get(other) or are_known_disjoint(self.sets[one], self.sets[other]):
            return ''
        for key in (one, other):
            if key not in self.images:
                self.images[key] = _list_images(key, self.sets[key], self.seed)
        both = self.images[one] & self.images[other]
        return f'{len(both):,} of its {len(self.images[other]):,} images (such as {min(both)})' if both else ''


def _list_images(key: str, dataset: dict, seed: int | None) -> set[str]:
    """List the images of a data set; none, with a warning, if they cannot be listed."""
    dataset = copy.deepcopy(dataset)
    follow_run(dataset, seed or 0)
    try:
        return on_node(f'images of {dataset}', lambda: set(identify_images(dataset)))
    except MissingFileError:  # other checks need the files, and say so
        return set()
    except ConfigError as error:
        raise ConfigError(f'{key}: {error}') from None
    except Exception as error:  # of any data set
        _warn(f'the images of {key} cannot be compared with the images of other sets ({type(error).__name__}: {error})')
        return set()


def _warn(text: str) -> None:
    print_log(text, 'current', level=logging.WARNING)
