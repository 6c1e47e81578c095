"""Predictions for single images, as CSV files."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

from torch.utils.data import DataLoader

from ..files import atomic_write


def write_predictions(folder: Path, results: Mapping[str, dict], loaders: Mapping[str, DataLoader]) -> list[Path]:
    """Write one CSV per set: path, gt, pred, correct (0 or 1), confidence.

    Args:
        folder (Path): Where to write ``<set>.csv``.
        results (Mapping): Of a test loop that kept its predictions, by set.
        loaders (Mapping): Dataloaders of the sets. A data set without files names its images (``image_keys``).

    Returns:
        list[Path]: The files.
    """
    paths = {name: folder / f'{name}.csv' for name in results}
    for name, result in results.items():
        items = result['details']['predictions']
        images = getattr(loaders[name].dataset, 'image_keys', list)()
        if len(images) != len(items):
            images = [item['img_path'] for item in items]
        # surrogateescape: keep file names that are not UTF-8
        with atomic_write(paths[name], 'w', newline='', errors='surrogateescape') as file:
            writer = csv.writer(file)
            writer.writerow(['path', 'gt', 'pred', 'correct', 'confidence'])
            for image, item in zip(images, items):
                writer.writerow([image, item['gt'], item['pred'], int(item['correct']), f'{item["confidence"]:.6f}'])
    return list(paths.values())
