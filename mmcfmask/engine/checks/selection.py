"""Nothing of a training is chosen by a distribution shift, and no image is both trained on and held out."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable

from mmengine.config import Config
from mmengine.logging import print_log
from mmpretrain.registry import METRICS

from ...datasets.holdout import follow_run
from ...datasets.overlap import identify_images, are_known_disjoint
from ...errors import ConfigError, MissingFileError
from ...evaluation import ShiftAccuracy
from ..test_loop import metrics_of, refuse_choice_by_shift
from ..values import is_a, value_of


def check_selection(cfg: Config) -> None:
    """Nothing of a training may be chosen by a distribution shift.

    Images that choose the checkpoint and are tested in distribution too are warned of, and so are test images that are
    trained on.

    Raises:
        ConfigError: A ``save_best`` or ``monitor`` names a shift or their average, a ``save_best`` no metric, images of
            the validation set are also those of a shift of the test, or images are both trained on and held out.
    """
    loader, loop = cfg.get('val_dataloader') or {}, cfg.get('val_cfg') or {}
    held_out = loader.get(loop['id_set'], {}) if loop.get('id_set') else loader
    _check_hold_out(cfg, value_of(cfg, 'train_dataloader.dataset'), held_out.get('dataset'))
    if not loader:
        return
    if loop.get('id_set'):
        parts = [cfg.get('default_hooks'), cfg.get('custom_hooks'), cfg.get('param_scheduler')]
        refuse_choice_by_shift(parts, loop.id_set, list(loader))
    _check_save_best(cfg)


def check_complete(cfg: Config, mode: str, names: Iterable[str] | None = None) -> None:
    """Raise a ConfigError for a validation or a test that would leave out the last images of a set."""
    loaders = cfg.get(f'{mode}_dataloader') or {}
    loaders = (
        {f'{mode}_dataloader': loaders}
        if 'dataset' in loaders
        else {f'{mode}_dataloader.{name}': loader for name, loader in loaders.items() if names is None or name in names}
    )
    for key, loader in loaders.items():
        if loader.get('drop_last'):
            raise ConfigError(f'{key}.drop_last=True would leave out images: set it to False')


def check_validation(cfg: Config) -> None:
    """The validation of a training sees all images, and gives the metrics that early stopping and schedules wait for.

    Raises:
        ConfigError: ``drop_last``, a validation that begins after the last epoch, or a ``monitor`` that is no metric of
            the validation, as far as these are known here.
    """
    check_complete(cfg, 'val')
    loop = cfg.get('train_cfg') or {}
    begin, last = loop.get('val_begin', 1), loop.get('max_epochs', loop.get('max_iters', 1))
    if cfg.get('val_dataloader') and begin > last:
        raise ConfigError(
            f'train_cfg.val_begin={begin}: a training that ends at {last} would never be validated. For none, use '
            '--no-validate'
        )
    parts = {f'default_hooks.{name}': hook for name, hook in (cfg.get('default_hooks') or {}).items()}
    for key in ('custom_hooks', 'param_scheduler'):
        value = cfg.get(key) or []
        parts.update(
            {key: value} if isinstance(value, dict) else {f'{key}[{index}]': part for index, part in enumerate(value)}
        )
    known = _known_metrics(cfg)
    for key, part in parts.items():
        monitor = (part or {}).get('monitor')
        if monitor is None:
            continue
        if not cfg.get('val_dataloader'):
            raise ConfigError(f'{key}.monitor={monitor!r}: there is no validation that could give it')
        if known is not None and monitor not in known:
            raise ConfigError(f'{key}.monitor={monitor!r}: the validation gives no such metric, but {", ".join(known)}')


def _known_metrics(cfg: Config) -> list[str] | None:
    """The names of all metrics of the validation; None where one of them is not ours."""
    loop, evaluator = cfg.get('val_cfg') or {}, cfg.get('val_evaluator')
    sets = list(cfg.val_dataloader) if loop.get('id_set') else [None]
    known = []
    for name in sets:
        metrics = (
            metrics_of(name, evaluator, 'val') if name else evaluator if isinstance(evaluator, list) else [evaluator]
        )
        for metric in metrics:
            if not metric or not is_a(ShiftAccuracy, metric.get('type'), METRICS):
                return None
            prefix = name or metric.get('prefix') or ShiftAccuracy.default_prefix
            known += [f'{prefix}/{key}' for key in ShiftAccuracy.NAMES]
    return list(dict.fromkeys(known))


def _check_save_best(cfg: Config) -> None:
    """The metric that chooses the checkpoint must be one that the validation gives, as far as its metrics are known
    here."""
    chosen, known = value_of(cfg, 'default_hooks.checkpoint.save_best'), _known_metrics(cfg)
    for name in [chosen] if isinstance(chosen, str) else chosen or []:
        if known is not None and name != 'auto' and name not in known:
            raise ConfigError(
                f'default_hooks.checkpoint.save_best={name!r}: the validation gives no such metric, but '
                f'{", ".join(known)}'
            )


def check_start_images(cfg: Config) -> None:
    """:func:`check_selection` for a test: of the images that the head or a gate of the tested model is made of.

    Raises:
        ConfigError: Images of a shift choose something, or images are both learned from and held out.
    """
    _check_hold_out(cfg)


def _check_hold_out(cfg: Config, train: dict | None = None, val: dict | None = None) -> None:
    """Which images are learned from, choose something and are tested: compared are the images, however their configs
    are written."""
    listed: dict[str, set[str]] = {}

    def shared(one: str, other: str) -> str:
        """How many images of the data set at key ``other`` are at key ``one`` too, in words; empty if there are none."""
        if not sets.get(one) or not sets.get(other) or are_known_disjoint(sets[one], sets[other]):
            return ''
        for key in (one, other):
            if key not in listed:
                listed[key] = _list_images(key, sets[key], value_of(cfg, 'randomness.seed'))
        both = listed[one] & listed[other]
        return f'{len(both):,} of its {len(listed[other]):,} images (such as {min(both)})' if both else ''

    tests = {name: f'test_dataloader.{name}.dataset' for name in cfg.get('test_dataloader') or ()}
    learned = {
        'train_dataloader.dataset': train
    }  # key of what is learned from, and of what chooses something: data set
    choosing = {'val_dataloader': val}
    for part in ('model.head.class_weights', 'model.gate'):
        made_of, held_out = (value_of(cfg, f'{part}.{key}') for key in ('dataset', 'held_out'))
        if made_of and made_of not in learned.values():
            learned[f'{part}.dataset'] = made_of
        if held_out and held_out not in choosing.values():
            choosing[f'{part}.held_out'] = held_out
    sets = {**learned, **choosing, **{key: cfg.test_dataloader[name].get('dataset') for name, key in tests.items()}}
    for one in learned:
        for other in choosing:
            if both := shared(one, other):
                raise ConfigError(
                    f'{other} chooses by its images, but {both} would be trained on ({one}). Give both data sets of '
                    'one '
                    "folder the same holdout=dict(fraction=…, seed=…), one with part='train' and one with "
                    "part='held_out'"
                )
    whole = None
    if train and val and are_known_disjoint(train, val):  # parts of one folder, which then is listed once
        whole = 'train_dataloader.dataset (without holdout)'
        sets[whole] = {key: value for key, value in train.items() if key not in ('holdout', 'per_class', 'indices')}
    loop = cfg.get('test_cfg') or {}
    for name, key in tests.items() if loop.get('id_set') else ():
        if name != loop.id_set and loop.get('shifts') is not None and name not in loop.shifts:
            continue  # it does not run
        elsewhere = whole and not shared(whole, key)
        for other in choosing:
            if elsewhere and other == 'val_dataloader' or not (both := shared(other, key)):
                continue
            what = (
                ('a checkpoint', 'the checkpoint') if other == 'val_dataloader' else ('what is', 'a part of the model')
            )
            if name != loop.id_set:
                raise ConfigError(
                    f'{other} reads images of the shift {name!r} of test_dataloader, {both}: {what[0]} chosen by '
                    'them is fitted to that shift. Validate on images held out of the training set'
                )
            print_log(
                f'{key}: {both} also choose {what[1]} ({other}), which is better on them than on others. Test on a '
                'part '
                "of its own: holdout=dict(fraction=0.1, test=0.1, …, part='test')",
                'current',
                level=logging.WARNING,
            )
        for one in learned:
            if not (elsewhere and one == 'train_dataloader.dataset') and (both := shared(one, key)):
                print_log(
                    f'{key}: {both} are trained on ({one.removesuffix(".dataset")}), so that the accuracy on them '
                    'says nothing of others',
                    'current',
                    level=logging.WARNING,
                )


def _list_images(key: str, dataset: dict, seed: int | None) -> set[str]:
    """:func:`identify_images` the config of a data set; empty, with a warning, where they cannot be listed."""
    dataset = copy.deepcopy(dataset)
    follow_run(dataset, seed or 0)
    try:
        return set(identify_images(dataset))
    except MissingFileError:  # said by those who need it
        return set()
    except ConfigError as error:
        raise ConfigError(f'{key}: {error}') from None
    except Exception as error:  # of any data set there may be
        print_log(
            f'the images of {key} cannot be compared with those of other data sets ({type(error).__name__}: {error})',
            'current',
            level=logging.WARNING,
        )
        return set()
