"""Pack a folder data set into shards for WebDataset: tar files that hold an image and its label for every key."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors import ConfigError, StorageError
from ...files import atomic_write, explained, json_text, locked, remove_leftovers, write_text
from ...messages import short_list
from ..class_folders import check_are_classes, list_class_folders, list_images
from ..holdout import seeded_order
from ..imagenet_labels import flat_images, flat_val_images
from .tars import read_tar, split_name, tar_name

PLAN = 'pack.json'
MEGABYTE = 10**6
OVERHEAD = 2048  # bytes of headers, padding and the label of an image
Watch = Callable[[Iterable, int, str], Iterable]  # items, their number, what happens to them


@dataclass
class Plan:
    """Which images go into which shard.

    Attributes:
        root: The folder that the names are relative to.
        shards: Name of each shard, and the images in it with their labels.
        text: What :data:`PLAN` records: another plan gives another text.
    """

    root: Path
    shards: dict[str, list[tuple[str, int]]]
    text: str


def plan_shards(root: str | Path, shard_size: int = 512, seed: int = 0) -> Plan:
    """Divide the images of a folder over shards.

    Args:
        root: Class folders, or ImageNet's flat validation images with their ground truth
            (:func:`mmcfmask.datasets.imagenet_labels.flat_val_images`).
        shard_size: Megabytes after which a shard ends.
        seed: Of the order of the images, which mixes the classes in every shard.

    Raises:
        MissingFileError, ConfigError: There are no class folders or images, or names that become one in a shard.
    """
    root = Path(root).expanduser()
    if names := flat_images(root):
        images = flat_val_images(root, names)
    else:
        folders = list_class_folders(root)
        check_are_classes(folders, root)
        images = {folder: list_images(root, folder) for folder in folders}
        if empty := [folder for folder, names in images.items() if not names]:
            raise ConfigError(f'{root}: no images in the class folders {short_list(empty)}')
    labels = {name: label for label, names in enumerate(images.values()) for name in names}
    keys: dict[str, str] = {}
    for name in labels:
        key = split_name(tar_name(name))[0]
        if key in keys:
            raise ConfigError(
                f'{root}: {keys[key]} and {name} differ only in their ending, and WebDataset takes that for two parts '
                'of one image: rename one of them'
            )
        keys[key] = name
    shards, size = [], 0
    for name in seeded_order(labels, seed):
        if not shards or size >= shard_size * MEGABYTE:
            shards.append([])
            size = 0
        shards[-1].append((name, labels[name]))
        size += os.path.getsize(root / name) + OVERHEAD
    digits = max(len(str(len(shards) - 1)), 4)
    named = {f'{number:0{digits}d}.tar': images for number, images in enumerate(shards)}
    about = dict(
        images=len(labels),
        classes=list(images),
        shard_size=shard_size,
        seed=seed,
        shards=[len(part) for part in shards],
    )
    return Plan(root, named, json_text(about))


def pack(plan: Plan, out: str | Path, watch: Watch = lambda items, number, what: items) -> None:
    """Write the shards of a plan that are not there yet, then compare all of them with the images.

    A shard is written under another name first, so a killed run leaves whole shards, and the next one continues.

    Args:
        plan: From :func:`plan_shards`.
        out: The folder; nothing but shards of the same plan may be in it.
        watch: Wraps long loops, to show progress.

    Raises:
        ConfigError: The folder holds other files.
        StorageError: It cannot be written, or a shard differs from the images; the message names the shard.
    """
    out = Path(out).expanduser()
    with explained(out), locked(out, 'mmcfmask pack'):
        _claim(plan, out)
        remove_leftovers(out)
        missing = [name for name in plan.shards if not (out / name).exists()]
        for name in watch(missing, len(missing), f'Packing {plan.root}'):
            write_shard(out / name, plan.root, plan.shards[name])
        for name in watch(plan.shards, len(plan.shards), f'Comparing {out} with {plan.root}'):
            check_shard(out / name, plan.root, plan.shards[name])


def _claim(plan: Plan, out: Path) -> None:
    """Record the plan in a new folder, or check that the folder belongs to it."""
    path = out / PLAN
    if path.exists():
        if path.read_text(encoding='utf-8', errors='replace') != plan.text:
            raise ConfigError(
                f'{out} holds shards of other images, of another --shard-size or --seed: choose another folder, or '
                f'delete {path} and the shards'
            )
        return
    if others := sorted(entry.name for entry in out.iterdir() if not entry.name.startswith('.')):
        raise ConfigError(f'{out} is not empty ({short_list(others, 3)}): choose another folder')
    write_text(path, plan.text)


def write_shard(path: Path, root: Path, images: Sequence[tuple[str, int]]) -> None:
    """Write one shard: for each image its file and a member ``.cls`` with the label."""
    with atomic_write(path) as file, tarfile.open(fileobj=file, mode='w', format=tarfile.GNU_FORMAT) as archive:
        for name, label in images:
            member = tar_name(name)
            _add(archive, member, _read(root / name))
            _add(archive, f'{split_name(member)[0]}.cls', str(label).encode())


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # no time and no owner: the same images give the same file
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StorageError(f'{path} cannot be read ({error.strerror})') from None


def check_shard(path: Path, root: Path, images: Sequence[tuple[str, int]]) -> None:
    """Compare a shard with the images, byte for byte.

    Raises:
        StorageError: It has other images, labels or contents.
    """
    samples = read_tar(path)
    found = [(sample.name, sample.label) for sample in samples]
    if found != [(tar_name(name), str(label)) for name, label in images]:
        raise StorageError(f'{path} does not hold the images that it should: delete it, and pack again')
    with open(path, 'rb') as file:
        for sample, (name, _) in zip(samples, images):
            file.seek(sample.first)
            if file.read(sample.second) != _read(root / name):
                raise StorageError(
                    f'{path}: {sample.name} differs from {root / name}: delete the shard, and pack again'
                )
