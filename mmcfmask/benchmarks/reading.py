"""Speed of reading images: ways to decode, resize and crop, compared on the same files."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence

import cv2
import numpy as np
import torch
from mmengine.dataset import Compose
from mmengine.registry import init_default_scope
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torchvision.transforms import v2

from ..datasets.cache import CachedTransforms
from ..datasets.images import EXTENSIONS, find_images
from ..errors import MissingFileError


def benchmark_reading(folder: str, images: int = 200, rounds: int = 3) -> dict:
    """Time all ways to read images, with one thread.

    Args:
        folder: Folder of images, which is read recursively.
        images: Maximum number of images, taken at even distances.
        rounds: How often each way reads each image; the median counts.

    Returns:
        dict: ``ways`` and a description of the images; :func:`show_reading` prints it.

    Raises:
        MissingFileError: There are no images in the folder.
    """
    init_default_scope('mmpretrain')
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    paths = [f'{folder}/{name}' for name in find_images(folder)]
    if not paths:
        raise MissingFileError(f'{folder}: there are no images ({", ".join(EXTENSIONS)}) in or below this folder')
    paths = [paths[i] for i in np.linspace(0, len(paths) - 1, min(images, len(paths))).round().astype(int)]
    ways = compare_ways(paths, rounds)
    width, height = (round(statistics.median(side)) for side in zip(*(Image.open(path).size for path in paths)))
    size = sum(map(os.path.getsize, paths)) / len(paths)
    return dict(images=len(paths), width=width, height=height, bytes=size, ways=ways)


def make_ways(paths: Sequence[str], cache_dir: str) -> dict[str, Callable[[int], np.ndarray]]:
    """Functions from the number of an image to its (224, 224, 3) uint8 RGB pixels, by name."""

    def pipeline(*transforms: dict) -> Compose:
        return Compose([*transforms, dict(type='CenterCrop', crop_size=224)])

    exact = pipeline(
        dict(type='LoadImageFromFile', imdecode_backend='pillow', color_type='color_ignore_orientation'),
        dict(type='ResizeEdge', scale=224, edge='short', backend='pillow', interpolation='bicubic'),
    )
    mmpretrain = pipeline(
        dict(type='LoadImageFromFile'),
        dict(type='ResizeEdge', scale=224, edge='short', backend='cv2', interpolation='bicubic'),
    )
    fused = pipeline(dict(type='LoadResizedImage', scale=224))
    torchvision = v2.Compose([v2.Resize(224, v2.InterpolationMode.BICUBIC), v2.CenterCrop(224)])
    example = exact(dict(img_path=paths[0]))['img']
    cached = CachedTransforms(fused.transforms, cache_dir, paths, example)

    def bgr(transform: Callable[[dict], dict]) -> Callable[[int], np.ndarray]:
        return lambda index: transform(dict(img_path=paths[index], sample_idx=index))['img'][..., ::-1]

    return {
        'torchvision (Pillow)': lambda index: np.asarray(torchvision(Image.open(paths[index]).convert('RGB'))),
        'mmpretrain (OpenCV)': bgr(mmpretrain),
        'the configs (Pillow)': bgr(exact),
        'LoadResizedImage': bgr(fused),
        'reducing_gap=2': bgr(pipeline(dict(type='LoadResizedImage', scale=224, reducing_gap=2.0))),
        'reducing_gap=1': bgr(pipeline(dict(type='LoadResizedImage', scale=224, reducing_gap=1.0))),
        'CachedDataset, 2nd epoch': bgr(cached),
    }


def compare_ways(paths: Sequence[str], rounds: int) -> dict[str, dict[str, float]]:
    """Images per second of each way, the ratio to torchvision, and the differences of the pixels."""
    with tempfile.TemporaryDirectory() as folder:
        candidates = make_ways(paths, folder)
        pixels = {
            name: [way(index).astype(np.int16) for index in range(len(paths))] for name, way in candidates.items()
        }
        seconds = {name: [] for name in candidates}
        for _ in track(range(rounds), 'Timing', transient=True):
            for name, way in candidates.items():
                start = time.perf_counter()
                for index in range(len(paths)):
                    torch.from_numpy(np.array(way(index), order='C')).permute(2, 0, 1).contiguous()
                seconds[name].append(time.perf_counter() - start)
    reference, *_ = candidates
    result = {}
    for name in candidates:
        difference = [np.abs(image - other) for image, other in zip(pixels[name], pixels[reference])]
        result[name] = {
            'images_per_second': len(paths) / statistics.median(seconds[name]),
            'ratio': statistics.median(a / b for a, b in zip(seconds[reference], seconds[name])),
            'mean_difference': float(np.mean([each.mean() for each in difference])),
            'max_difference': int(max(each.max() for each in difference)),
        }
    return result


def show_reading(result: dict, console: Console) -> None:
    """Print a result of :func:`benchmark_reading`."""
    title = (
        f'{result["images"]} images, median size {result["width"]} x {result["height"]}, '
        f'{result["bytes"] / 1e3:.0f} kB on average'
    )
    table = Table('', 'images / s', 'ratio', 'mean difference', 'largest', title=title)
    for name, row in result['ways'].items():
        numbers = (f'{row["images_per_second"]:.0f}', f'{row["ratio"]:.2f}', f'{row["mean_difference"]:.2f}')
        table.add_row(name, *numbers, str(row['max_difference']))
    console.print(table)
