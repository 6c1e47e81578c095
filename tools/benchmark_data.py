#!/usr/bin/env python3
"""Images per second and core from file to tensor: ways to decode, resize and crop, each on the same files in turns.

    python tools/benchmark_data.py FOLDER                 # any folder of images, read recursively
    python tools/benchmark_data.py FOLDER --images 500 --rounds 5 --out data.json

One process and one thread, so that the numbers multiply by the workers. Differences are those of the 224 x 224 pixels
(0-255) against torchvision's, whose output is that of CLIP's own transform.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable

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

import mmcfmask  # noqa: F401  registers the components
from mmcfmask.datasets.cache import CachedTransforms
from mmcfmask.datasets.images import EXTENSIONS, find_images
from mmcfmask.engine.checks.outputs import check_out
from mmcfmask.engine.options import count
from mmcfmask.files import write_json
from mmcfmask.output import run_tool


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Time decoding, resizing and cropping')
    parser.add_argument('folder', help='images, also in folders below it')
    parser.add_argument(
        '--images', type=count, default=200, help='at most this many, spread over the folder (default: 200)'
    )
    parser.add_argument(
        '--rounds', type=count, default=3, help='times that every way sees every image; the median counts (default: 3)'
    )
    parser.add_argument('--out', help='write the numbers to this JSON file')
    return parser.parse_args(argv)


def ways(paths: list[str], cache_dir: str) -> dict[str, Callable[[int], np.ndarray]]:
    """Every way from the number of an image to its (224, 224, 3) uint8 RGB pixels."""

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


def measure(paths: list[str], rounds: int) -> dict[str, dict[str, float]]:
    """For every way images/s, its ratio to torchvision's, and how its pixels differ."""
    with tempfile.TemporaryDirectory() as folder:
        candidates = ways(paths, folder)
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


def main(argv=None) -> dict:
    args = parse_args(argv)
    if args.out:
        check_out(args.out)
    init_default_scope('mmpretrain')
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    paths = [f'{args.folder}/{name}' for name in find_images(args.folder)]
    if not paths:
        raise SystemExit(f'{args.folder}: no images ({", ".join(EXTENSIONS)}) in this folder or below it')
    paths = [paths[i] for i in np.linspace(0, len(paths) - 1, min(args.images, len(paths))).round().astype(int)]
    result = measure(paths, args.rounds)
    sizes = [Image.open(path).size for path in paths]
    width, height = (round(statistics.median(side)) for side in zip(*sizes))
    size = sum(map(os.path.getsize, paths)) / len(paths)
    table = Table(
        '',
        'images / s',
        'ratio',
        'mean difference',
        'largest',
        title=f'{len(paths)} images, {width} x {height} in the middle, {size / 1e3:.0f} kB on average',
    )
    for name, row in result.items():
        table.add_row(
            name,
            f'{row["images_per_second"]:.0f}',
            f'{row["ratio"]:.2f}',
            f'{row["mean_difference"]:.2f}',
            str(row['max_difference']),
        )
    Console().print(table)
    if args.out:
        write_json(args.out, dict(images=len(paths), width=width, height=height, bytes=size, ways=result))
    return result


if __name__ == '__main__':
    run_tool(main)
