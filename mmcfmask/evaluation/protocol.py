"""What was evaluated: the part of ``metrics.json`` that lets a reader check the protocol."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import mmengine
import mmpretrain
import open_clip
import torch
from mmengine.dataset import BaseDataset
from torch import nn

from ..datasets.wrappers import inner_datasets
from ..files import hash_file
from ..version import __version__

FORMAT = 1


def describe_set(dataset: BaseDataset, preprocessor: nn.Module | None = None) -> dict:
    """The protocol of one set.

    Args:
        dataset (mmengine.dataset.BaseDataset): The set. ``metainfo['protocol']``, where there is one, holds the
            published number of ``images`` and ``num_classes``; ``metainfo['notes']`` more remarks for the reader. Of a
            wrapper, folder and transform are those of the first set inside.
        preprocessor (ClsDataPreprocessor, optional): Its normalisation ends the transform.

    Returns:
        dict: ``dataset``, ``root``, ``images``, ``published_images``, ``classes``, ``published_classes``, ``complete``
            (None where nothing
        is published), ``skipped``, ``notes`` and ``transform``.
    """
    metainfo = getattr(dataset, 'metainfo', None) or {}
    published = metainfo.get('protocol') or {}
    images, classes = len(dataset), len(metainfo.get('classes') or ())
    wanted_images, wanted_classes = published.get('images'), published.get('num_classes')
    parts = list(inner_datasets(dataset))
    skipped = sum(int(getattr(part, 'num_skipped', 0)) for part in parts)
    complete = None if wanted_images is None else images == wanted_images and wanted_classes in (None, classes)

    notes = list(metainfo.get('notes', ()))
    subset = describe_subset(parts[0]) if len(parts) == 1 else ''
    if subset:
        notes.append(
            f'a subset ({subset}): {images:,}' + (f' of {wanted_images:,}' if wanted_images else '') + ' images'
        )
    elif wanted_images is not None and images != wanted_images:
        notes.append(
            f'incomplete: {images:,} of {wanted_images:,} images'
            if images < wanted_images
            else f'not the published set: {images:,} images instead of {wanted_images:,}'
        )
    if wanted_classes not in (None, classes):
        notes.append(f'{classes:,} classes instead of {wanted_classes:,}')
    if skipped:
        notes.append(f'{skipped:,} unreadable {"image was" if skipped == 1 else "images were"} left out')
    transform = [str(step) for step in getattr(getattr(parts[0], 'pipeline', None), 'transforms', [])]
    if preprocessor is not None and getattr(preprocessor, '_enable_normalize', False):
        mean, std = (tensor.flatten().tolist() for tensor in (preprocessor.mean, preprocessor.std))
        transform.append(f'Normalize(mean={_rounded(mean)}, std={_rounded(std)}, to_rgb={preprocessor.to_rgb})')
    return dict(
        dataset=type(dataset).__name__,
        root=str(getattr(parts[0], 'img_prefix', '') or getattr(parts[0], 'data_root', '') or '').rstrip('/'),
        images=images,
        published_images=wanted_images,
        classes=classes,
        published_classes=wanted_classes,
        complete=complete,
        skipped=skipped,
        notes=notes,
        transform=transform,
    )


def describe_subset(dataset: BaseDataset) -> str:
    """The settings that select a part of the set, as text; empty if there are none."""
    settings = []
    for name in ('per_class', 'per_group', 'fraction'):
        if getattr(dataset, name, None) is not None:
            settings.append(f'{name}={getattr(dataset, name)}')
    indices = getattr(dataset, '_indices', None)
    if indices is not None:
        settings.append(f'indices={indices}' if isinstance(indices, int) else f'{len(indices)} indices')
    return ', '.join(settings)


def describe_checkpoint(path: str | None) -> dict | None:
    """``path`` and ``sha256`` of a file, None without one."""
    if path is None:
        return None
    return dict(path=str(path), sha256=hash_file(path))


def versions() -> dict[str, str]:
    """Versions of the libraries that compute the numbers."""
    return dict(
        mmcfmask=__version__,
        torch=str(torch.__version__),
        mmengine=mmengine.__version__,
        mmpretrain=mmpretrain.__version__,
        open_clip=open_clip.__version__,
        pillow=_installed('pillow'),
        python=platform.python_version(),
    )


def describe_run(
    loop: Any,
    config: str,
    checkpoint: dict | None = None,
    seed: int | None = None,
    preprocessor: nn.Module | None = None,
    results: dict | None = None,
    method: str | None = None,
    training: dict[str, str] | None = None,
    selected_by: str | None = None,
    command: str | None = None,
) -> dict:
    """What ``metrics.json`` holds, of a :class:`MultiSetTestLoop` that has run; see docs/evaluation.md.

    Args:
        loop (MultiSetLoop): The loop.
        config (str): Path of the config.
        checkpoint (dict, optional): From :func:`describe_checkpoint`.
        seed (int, optional): Of the training.
        preprocessor (ClsDataPreprocessor, optional): The model's.
        results (dict, optional): Defaults to the loop's.
        method (str, optional): Defaults to the name of the config.
        training (dict, optional): Settings of the training by which runs are told apart, but for the seed.
        selected_by (str, optional): The validation metric that chose the checkpoint among those of its training.
        command (str, optional): What was typed.
    """
    results = loop.results if results is None else results
    sets = {}
    for name, result in results.items():
        details = dict(result['details'])
        described = describe_set(loop.loaders[name].dataset, preprocessor)
        described['notes'] += details.pop('notes', [])
        details.pop('predictions', None)
        sets[name] = dict(metrics=result['metrics'], **described, **details, speed=result['speed'])
    flat = {f'{name}/{metric}': value for name, part in sets.items() for metric, value in part['metrics'].items()}
    average = None
    if loop.averaged:
        average = dict(top1=loop.ood_average(results), over=loop.averaged)
        flat['ood_average/top1'] = average['top1']
    return dict(
        format=FORMAT,
        command=command,
        config=str(config),
        method=Path(config).stem if method is None else method,
        seed=seed,
        checkpoint=checkpoint,
        training=training,
        selected_by=selected_by,
        amp=bool(loop.amp),
        id_set=loop.id_set,
        sets=sets,
        ood_average=average,
        missing=dict(loop.missing),
        versions=versions(),
        metrics=flat,
    )


def list_notes(run: dict) -> list[str]:
    """Notes for a reader of the table: which sets are missing or incomplete, or have skipped images."""
    notes = [f'{name}: {note}.' for name, part in run['sets'].items() for note in part['notes']]
    return notes + [f'{name}: missing, not tested. {" ".join(why.split())}' for name, why in run['missing'].items()]


def _rounded(values: list[float]) -> list[float]:
    return [round(float(value), 4) for value in values]


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # Pillow under another name, pillow-simd
        return 'unknown'
