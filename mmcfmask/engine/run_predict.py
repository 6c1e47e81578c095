"""Predictions for images without labels: what tools/predict.py runs."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.dataset import Compose
from mmpretrain.registry import TRANSFORMS
from rich.progress import track
from torch.utils.data import DataLoader, Dataset

from ..apis import load_model
from ..datasets.images import find_images, why_unreadable
from ..distributed import usable_cores
from ..errors import ConfigError, MissingFileError
from ..files import as_path, atomic_write
from .checks.outputs import check_out
from .devices import find_device
from .hub import published_config


def run_predict(
    config: str | os.PathLike,
    checkpoint: str | os.PathLike | None,
    images: str | os.PathLike,
    options: Mapping[str, Any] | Sequence[str] = (),
    *,
    out: str | os.PathLike | None = None,
    top: int = 1,
    batch_size: int = 64,
    workers: int | None = None,
    device: str | None = None,
    amp: bool = False,
) -> list[dict[str, Any]]:
    """Predict the classes of an image, or of all images in a folder and its sub-folders.

    Args:
        config (str): The config file of the model; its ID test set says how an image is read.
        checkpoint (str, optional): The fine-tuned weights. None: the pretrained ones (zero-shot CLIP).
        images (str): An image file, or a folder.
        options: As of ``--cfg-options``; see :func:`mmcfmask.engine.config.load_config`.
        out (str, optional): Write a CSV file: path, the ``top`` classes with their probabilities, and an error.
        top (int): Number of classes of an image.
        batch_size (int): Images at once.
        workers (int, optional): Processes that read images. None: as many as there are usable cores, at most 8.
        device (str, optional): None: the GPU, or the CPU if there is none.
        amp (bool): bfloat16 autocast.

    Returns:
        list[dict]: For each image, sorted by name: ``path`` (str, relative to the folder), ``classes`` (list[str], the
        likeliest first), ``probabilities`` (list[float]), and ``error``: why the image could not be read, or None. Then
        both lists are empty.

    Raises:
        UserError: Something the user can mend; the message names the file, key or value, and what to do.
    """
    config, checkpoint, images, out = map(as_path, (config, checkpoint, images, out))
    config = published_config(config) if checkpoint is None else config  # its pretrained weights
    folder, names = list_images(images)
    if out:
        check_out(out)
    where = find_device(device)
    model = load_model(config, checkpoint, where, options)
    classes = model._dataset_meta['classes'] or [str(label) for label in range(model.head.num_classes)]
    if top > len(classes):
        raise ConfigError(f'--top {top}: the model has {len(classes)} classes')
    steps = [TRANSFORMS.build(step) for step in model._config.test_dataloader.dataset.pipeline]
    loader = DataLoader(
        _Files(folder, names, Compose(steps)),
        batch_size=batch_size,
        num_workers=min(usable_cores(), 8, len(names) // batch_size) if workers is None else workers,
        collate_fn=list,
    )
    found: list[dict[str, Any]] = []
    for batch in track(loader, description=f'{len(names):,} images', disable=len(loader) == 1):
        probabilities = iter(predict_probabilities(model, [item for item in batch if not isinstance(item, str)], amp))
        for item in batch:
            row: dict[str, Any] = dict(path=names[len(found)], classes=[], probabilities=[], error=None)
            if isinstance(item, str):
                row['error'] = item
            else:
                values, labels = next(probabilities).topk(top)
                row.update(classes=[classes[label] for label in labels.tolist()], probabilities=values.tolist())
            found.append(row)
    if out:
        write_rows(out, found, top)
    return found


def list_images(path: str) -> tuple[str, list[str]]:
    """A folder and the names of the images in it, or the folder and the name of one image file.

    Raises:
        MissingFileError: There is nothing at ``path``, or no image.
    """
    if os.path.isfile(path):
        return os.path.dirname(path), [os.path.basename(path)]
    if not os.path.isdir(path):
        raise MissingFileError(f'there is no image file or folder {path!r}')
    names = find_images(path)
    if not names:
        raise MissingFileError(f'there is no image in the folder {path!r}')
    return path, names


@torch.inference_mode()
def predict_probabilities(model: torch.nn.Module, items: Sequence[dict], amp: bool = False) -> torch.Tensor:
    """Class probabilities of images.

    Args:
        model: A classifier in eval mode.
        items: What the pipeline made of each image.
        amp: bfloat16 autocast.

    Returns:
        Tensor: (B, C) float32 on the CPU.
    """
    if not items:
        return torch.empty(0)
    batch = {key: [item[key] for item in items] for key in ('inputs', 'data_samples')}
    with torch.autocast(next(model.parameters()).device.type, dtype=torch.bfloat16, enabled=amp):
        predicted = model.test_step(batch)
    return torch.stack([sample.pred_score for sample in predicted]).float().cpu()


def write_rows(out: str, found: Sequence[dict[str, Any]], top: int = 1) -> None:
    """Write what :func:`run_predict` found as CSV: path, class, probability, class_2, probability_2, …, error."""
    columns = [f'{word}{f"_{rank}" * (rank > 1)}' for rank in range(1, top + 1) for word in ('class', 'probability')]
    with atomic_write(out, 'w', newline='', errors='surrogateescape') as file:  # names that are not UTF-8 are kept
        writer = csv.writer(file)
        writer.writerow(['path', *columns, 'error'])
        for row in found:
            pairs = zip(row['classes'], (f'{value:.6f}' for value in row['probabilities']))
            cells = [cell for pair in pairs for cell in pair] or [''] * (2 * top)
            writer.writerow([row['path'], *cells, row['error'] or ''])


class _Files(Dataset):
    """What the pipeline makes of image files; of one that cannot be read, why."""

    def __init__(self, folder: str, names: Sequence[str], pipeline: Compose) -> None:
        self.folder, self.names, self.pipeline = Path(folder), names, pipeline

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> dict | str:
        path = self.folder / self.names[index]
        return why_unreadable(path) or self.pipeline(dict(img_path=str(path)))
