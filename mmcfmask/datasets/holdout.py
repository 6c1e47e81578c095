"""Seeded hold-outs and subsets of image lists: which images belong to which part."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable

from mmengine.logging import print_log

from ..errors import ConfigError
from ..messages import short_list
from .names import composed

RUN_SEED = 'run'  # as holdout.seed or subset_seed: the seed of the run


def seeded_order(names: Iterable[str], seed: int | str) -> list[str]:
    """Names shuffled by the SHA-256 of seed and name: the same on every machine, and adding a name moves no other.

    Raises:
        ConfigError: ``seed`` is still 'run'.
    """
    if seed == RUN_SEED:
        raise ConfigError("The seed 'run' stands for the seed of a run, but there is no run here: give a number.")
    return sorted(
        names, key=lambda name: hashlib.sha256(f'{seed}/{composed(name)}'.encode(errors='surrogateescape')).digest()
    )


def check_holdout(holdout: dict) -> None:
    """Raise a ConfigError for invalid hold-out settings."""
    unknown = set(holdout) - {'size', 'fraction', 'seed', 'part', 'test', 'test_seed'}
    if unknown:
        raise ConfigError(
            f'holdout has no setting {short_list(sorted(map(str, unknown)))}: use size or fraction, seed, part, test, '
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
        raise ConfigError(f"holdout.part={part!r} must be 'train' or 'held_out', or, with test=…, 'test'.")
    if part == 'test' and test is None:
        raise ConfigError("holdout.part='test' needs holdout=dict(test=…), in the unit of size or fraction.")
    for key in ('seed', 'test_seed'):
        if type(holdout.get(key, 0)) is not int and not (key == 'seed' and holdout[key] == RUN_SEED):
            raise ConfigError(
                f'holdout.{key}={holdout[key]!r} must be a whole number'
                + (f', or {RUN_SEED!r}.' if key == 'seed' else '.')
            )


def follow_run(node, seed: int | None) -> bool:
    """Replace every ``holdout.seed='run'`` and ``subset_seed='run'`` in ``node``, a config or a part of one, by the
    seed of the run.

    Returns:
        Whether there was such an entry.

    Raises:
        ConfigError: There is one, but the run has no seed.
    """
    found = False
    for key, value in list(node.items() if hasattr(node, 'items') else enumerate(node)):
        follows = key == 'holdout' and isinstance(value, dict) and value.get('seed') == RUN_SEED
        if follows or (key, value) == ('subset_seed', RUN_SEED):
            if seed is None:
                raise ConfigError(
                    f"{'holdout.seed' if follows else key}='run' stands for the seed of the run, but the run has none: "
                    'set randomness.seed, or --seed of tools/train.py'
                )
            (value if follows else node)['seed' if follows else key] = seed
            found = True
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
    """One part of a seeded, stratified split: each class is divided in proportion.

    Args:
        images: Names of images by class.
        part: 'test', 'held_out', or 'train' for all other images.
        size: Number of images to hold out.
        fraction: Fraction of every class to hold out, in place of ``size``; rounded, at least one image.
        seed: Seed of the hold-out.
        test: Number (with ``size``) or fraction (with ``fraction``) of images to cut off first. Test part and hold-out
            together hold as many images as a hold-out of their sum: the sum is rounded.
        test_seed: Seed of the test part.

    Returns:
        Names by class, each list sorted.

    Raises:
        ConfigError: Nothing is left to train on, or ``seed`` is still 'run'.
    """
    counts = {folder: len(names) for folder, names in images.items()}
    if fraction is not None:
        cut = {folder: max(1, round(test * count)) if test else 0 for folder, count in counts.items()}
        quota = {
            folder: max(1, round((fraction + (test or 0)) * count) - cut[folder]) for folder, count in counts.items()
        }
    else:
        cut = (
            proportional(counts, limit_to_half(test, sum(counts.values()), 'test'), test_seed)
            if test
            else dict.fromkeys(counts, 0)
        )
        rest = {folder: count - cut[folder] for folder, count in counts.items()}
        quota = proportional(rest, limit_to_half(size, sum(rest.values()), 'size'), seed)
    bare = [folder for folder, count in counts.items() if cut[folder] + quota[folder] >= count]
    if len(bare) == len(images):
        raise ConfigError(
            f'The hold-out leaves no image to train on: no class has more than {max(counts.values())}. Hold out fewer '
            'images, or validate on another folder.'
        )
    if bare:
        print_log(
            f'The hold-out leaves no image to train on in {len(bare)} of {len(images)} classes: {short_list(bare)}.',
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


def limit_to_half(size: int, total: int, key: str) -> int:
    """``size``, but at most half of ``total``, with a warning."""
    if size <= total // 2:
        return size
    print_log(
        f'holdout.{key}={size} is more than half of the {total} images: holds out {total // 2}.',
        'current',
        level=logging.WARNING,
    )
    return total // 2


def proportional(counts: dict[str, int], size: int, seed: int) -> dict[str, int]:
    """Divide ``size`` in proportion to ``counts``: rounded down, plus one for the largest remainders; the seed breaks
    ties."""
    total = sum(counts.values())
    shares = {name: size * count // total for name, count in counts.items()}
    drawn = {name: place for place, name in enumerate(seeded_order(counts, seed))}
    remainders = sorted(counts, key=lambda name: (-(size * counts[name] % total), drawn[name]))
    for name in remainders[: size - sum(shares.values())]:
        shares[name] += 1
    return shares


def take_per_class(images: dict[str, list[str]], per_class: int, seed: int | str = 0) -> dict[str, list[str]]:
    """``per_class`` images of every class, drawn with a seed; sorted lists. A smaller draw is part of a larger one."""
    short = [f'{folder} ({len(names)})' for folder, names in images.items() if len(names) < per_class]
    if short:
        raise ConfigError(f'per_class={per_class}, but {len(short)} classes have fewer images: {short_list(short)}.')
    return {folder: sorted(seeded_order(names, seed)[:per_class]) for folder, names in images.items()}


def take_per_group(images: dict[str, list[str]], per_group: int, seed: int | str = 0) -> dict[str, list[str]]:
    """:func:`take_per_class` of groups."""
    short = [f'{group} ({len(names)})' for group, names in images.items() if len(names) < per_group]
    if short:
        raise ConfigError(f'per_group={per_group}, but {len(short)} groups have fewer images: {short_list(short)}.')
    return take_per_class(images, per_group, seed)


def take_fraction(images: dict[str, list[str]], fraction: float, seed: int | str = 0) -> dict[str, list[str]]:
    """A fraction of every class or group, rounded, at least one image, drawn with a seed; sorted lists. A smaller draw
    is part of a larger one."""
    return {
        folder: sorted(seeded_order(names, seed)[: max(1, round(fraction * len(names)))])
        for folder, names in images.items()
        if names
    }
