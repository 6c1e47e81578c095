"""Example images whose predictions differ between methods, small enough to lie within a page."""

from __future__ import annotations

import base64
import io
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from ..datasets.shapes.rendering import render
from ..datasets.shapes.tables import SPLITS
from .predictions import BySet, SetPredictions

SIDE = 112  # pixels
CANDIDATES = 2000  # images looked at per set
PANEL_WIDTH = 1100


def choose_images(correct: np.ndarray, num: int, seed: int = 0) -> list[int]:
    """Choose images that show how methods differ: greedily, the image that adds most to the pairs of methods that have
    the fewest examples so far, one being right and the other wrong.

    Args:
        correct (np.ndarray): (methods, N) bool, at least two methods.
        num (int): How many to choose at most.
        seed (int): Of the candidates, a random part of many images.

    Returns:
        list[int]: Indices of images, in order.
    """
    differing = np.flatnonzero(correct.any(axis=0) & ~correct.all(axis=0))
    candidates = np.random.default_rng(seed).permutation(differing)[:CANDIDATES]
    pairs = list(itertools.permutations(range(len(correct)), 2))
    before, after = np.array(pairs).T
    shows = correct[before][:, candidates] & ~correct[after][:, candidates]  # (pairs, candidates)
    seen, chosen = np.zeros(len(pairs)), []
    for _ in range(min(num, len(candidates))):
        best = int(np.argmax((1 / (1 + seen) ** 2) @ shows))
        chosen.append(int(candidates[best]))
        seen += shows[:, best]
        shows[:, best] = False
    return sorted(chosen)


def collect_examples(predictions: BySet, num: int) -> tuple[dict[str, list[dict[str, Any]]], list[str]]:
    """Example images of every set, with what each method predicts.

    Args:
        predictions: Of :func:`.predictions.gather_predictions`.
        num: Images per set at most.

    Returns:
        ``{set: [{path, label, picture, predicted: {method: [class, right]}}]}`` with the picture as a data URL, and
        notes on images that are not there.
    """
    examples: dict[str, list[dict[str, Any]]] = {}
    notes = []
    for name, methods in predictions.items():
        same = _on_same_images(methods)
        if len(same) < 2 or not num:
            continue
        first = next(iter(same.values())).first
        lost = []
        for index in choose_images(np.stack([part.first.correct for part in same.values()]), num):
            try:
                picture = encode_picture(load_picture(first.paths[index]))
            except OSError:  # moved, or of another machine
                lost.append(first.paths[index])
                continue
            predicted = {m: [part.first.predicted[index], int(part.first.correct[index])] for m, part in same.items()}
            example = dict(path=first.paths[index], label=first.labels[index], picture=picture, predicted=predicted)
            examples.setdefault(name, []).append(example)
        if lost:
            notes.append(f'{name}: {len(lost)} example images are not there, such as {lost[0]}.')
    return examples, notes


def _on_same_images(methods: Mapping[str, SetPredictions]) -> dict[str, SetPredictions]:
    """The methods that were tested on the images of the first."""
    paths = next(iter(methods.values())).first.paths
    return {method: part for method, part in methods.items() if part.first.paths == paths}


def load_picture(path: str) -> Image.Image:
    """An image of a set by the path in its predictions: a file, or an image of the built-in benchmark, rendered again.

    Raises:
        OSError: There is no such image, or it cannot be read.
    """
    kind, *place = path.split('/')
    if kind == 'shapes' and len(place) == 3 and place[0] in SPLITS and all(part.isdigit() for part in place[1:]):
        return Image.fromarray(render(place[0], int(place[1]), int(place[2]))[0])
    with Image.open(path) as image:
        image.draft('RGB', (2 * SIDE, 2 * SIDE))
        return image.convert('RGB')


def encode_picture(image: Image.Image) -> str:
    """The middle square of an image as a small JPEG, as a data URL."""
    small = ImageOps.fit(image, (SIDE, SIDE), Image.Resampling.BICUBIC)
    return data_url(small, 78)


def encode_panel(path: Path) -> tuple[str, tuple[int, int]]:
    """A figure as a data URL, and its width and height in pixels."""
    with Image.open(path) as image:
        image = image.convert('RGB')
    image.thumbnail((PANEL_WIDTH, 4 * PANEL_WIDTH), Image.Resampling.LANCZOS)
    return data_url(image, 85), image.size


def data_url(image: Image.Image, quality: int) -> str:
    """An image as JPEG in a data URL."""
    file = io.BytesIO()
    image.save(file, 'JPEG', quality=quality, optimize=True)
    return 'data:image/jpeg;base64,' + base64.b64encode(file.getvalue()).decode()


def find_panels(folders: Sequence[Path]) -> list[Path]:
    """Pictures of counterfactual images in and below some folders: files named ``counterfactuals*.png``."""
    return sorted({path for folder in folders for path in folder.rglob('counterfactuals*.png')})
