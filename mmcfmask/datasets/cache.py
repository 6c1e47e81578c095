"""Resized and cropped images, kept on disk so that later epochs only read them."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import cv2
import mmcv
import mmpretrain
import numpy as np
import PIL
from filelock import FileLock
from mmengine.dataset import BaseDataset, Compose
from mmengine.logging import print_log
from mmpretrain.registry import DATASETS
from PIL import features
from rich.filesize import decimal

from ..errors import ConfigError, StorageError
from ..files import atomic_write, remove_leftovers, write_json
from .shards import file_of
from .wrappers import inner_datasets

# Deterministic transforms.
CACHEABLE = (
    'LoadImageFromFile',
    'LoadResizedImage',
    'Resize',
    'ResizeEdge',
    'ResizeCenterCrop',
    'CenterCrop',
    'CropBorder',
)
VERSION = 2  # of the file layout and of how mmcfmask.datasets.images reads an image
RECORD = np.dtype([('stamp', '<u8'), ('checksum', '<u4'), ('ori_shape', '<u4', 2), ('scale_factor', '<f8', 2)])


@DATASETS.register_module()
class CachedDataset:
    """A dataset of image files whose decoded, resized and cropped images are kept in one memory-mapped file.

    The first process that needs an image computes and stores it; later epochs, other processes and other runs read it.
    The file holds the output of the pipeline up to its first random or unknown transform; the rest of the pipeline runs
    as usual. Items are the same as without the cache.

    An image is computed again if its file or shard has changed in size or modification time, or if its checksum is
    wrong (a process was killed while writing). Each pipeline, list of files, and set of versions of the decoding
    libraries has its own cache file. Cache files can be deleted at any time. Any number of processes can share one.

    Args:
        dataset (dict | BaseDataset): The dataset, such as a :class:`FolderDataset`, or a wrapper of some, such as a
            ``ClassBalancedDataset``: each of them then has its own file. Pipelines must give uint8 images of one size.
        cache_dir (str): Folder of the file, best on a fast local disk. An image of 224 x 224 pixels takes 150 kB,
            ImageNet 193 GB.

    Raises:
        ConfigError: The pipeline begins with a transform that cannot be cached, or gives images of different sizes.
        StorageError: ``cache_dir`` cannot be written to, or has too little space.

    Examples:
        >>> pets = dict(type='FolderDataset', data_root='data/pets', pipeline=[...])
        >>> train = CachedDataset(pets, cache_dir='/fast/cache')
    """

    def __init__(self, dataset: dict | object, cache_dir: str) -> None:
        self.dataset = DATASETS.build(dataset) if isinstance(dataset, dict) else dataset
        self.caches = [_keep_images(part, cache_dir) for part in inner_datasets(self.dataset)]

    def __getattr__(self, name: str):
        if name == 'dataset':  # not set yet while this object is unpickled
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, idx: int):
        return self.dataset[idx]

    def __repr__(self) -> str:
        return f'{self.dataset!r}\nImages cached in {", ".join(str(cache.path) for cache in self.caches)}'


def _keep_images(dataset: BaseDataset, cache_dir: str) -> CachedTransforms:
    """Let a data set, in place, keep what the first transforms of its pipeline give."""
    transforms = dataset.pipeline.transforms
    if transforms and isinstance(transforms[0], CachedTransforms):  # inside a wrapper, or shared by two
        return transforms[0]
    number = next(
        (i for i, transform in enumerate(transforms) if type(transform).__name__ not in CACHEABLE), len(transforms)
    )
    if number == 0:
        raise ConfigError(
            f'CachedDataset: the pipeline must begin with one of {", ".join(CACHEABLE)}, but it begins with '
            f'{transforms[0] if transforms else "nothing"}.'
        )
    dataset.pipeline = Compose(transforms[:number])
    example = dataset.prepare_data(0)['img']
    paths = [dataset.get_data_info(i)['img_path'] for i in range(len(dataset))]
    cache = CachedTransforms(transforms[:number], cache_dir, paths, example)
    dataset.pipeline = Compose([cache, *transforms[number:]])
    return cache


class CachedTransforms:
    """Transforms whose result is read from a cache file, or computed and stored if the file does not hold it yet.

    The file holds one record per image (hash of size and modification time of its source, checksum, shape and scale),
    and, from the next multiple of 4096 bytes on, the images, (N, H, W, 3) uint8. It is read through a memory map and
    written with ``pwrite``, where a full disk is an error; in a memory map it would end the process.

    Args:
        transforms (Sequence): Deterministic callables on a results dict that give an ``img`` of constant size.
        cache_dir (str): Folder of the file.
        paths (Sequence[str]): All image files, in the order of ``sample_idx``.
        example (np.ndarray): One image, for size and type.
    """

    def __init__(self, transforms: Sequence, cache_dir: str, paths: Sequence[str], example: np.ndarray) -> None:
        if example.dtype != np.uint8 or example.ndim != 3:
            raise ConfigError(
                f'CachedDataset needs uint8 colour images, but the pipeline gives {example.dtype} of shape '
                f'{example.shape}.'
            )
        self.transforms = list(transforms)
        self.shape = (len(paths), *example.shape)
        about = dict(
            layout=VERSION,
            transforms=[
                [type(transform).__name__, {name: repr(value) for name, value in sorted(vars(transform).items())}]
                for transform in self.transforms
            ],
            versions=dict(
                pillow=PIL.__version__,
                libjpeg=features.version('libjpeg_turbo'),
                opencv=cv2.__version__,
                mmcv=mmcv.__version__,
                mmpretrain=mmpretrain.__version__,
            ),
            images=list(self.shape),
        )
        absolute = [path if '://' in path else os.path.abspath(path) for path in paths]
        key = hashlib.sha256(json.dumps([about, absolute]).encode()).hexdigest()[:16]
        self.path = Path(cache_dir).expanduser().absolute() / f'{key}.images'
        self.start = -(-len(paths) * RECORD.itemsize // 4096) * 4096
        self.writable = True
        self._close()
        self._create({**about, 'folder': os.path.commonpath(map(file_of, absolute))})

    def _create(self, about: dict) -> None:
        """Create the file, all zeros, unless it exists, and beside it a JSON file that describes it."""
        size = self.start + int(np.prod(self.shape))
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path.parent):
                pass
        except OSError as error:
            raise StorageError(
                f'CachedDataset: cannot write to cache_dir {str(self.path.parent)!r} ({error.strerror}): choose '
                'another folder, or do without the cache'
            ) from None
        with FileLock(f'{self.path}.lock'):
            remove_leftovers(self.path.parent)
            there = self.path.stat() if self.path.exists() else None
            if there is not None and there.st_size == size:
                missing = size - there.st_blocks * 512
            else:
                missing = size
            free = shutil.disk_usage(self.path.parent).free
            if missing > free:
                raise StorageError(
                    f'CachedDataset: {self.shape[0]} images take {decimal(size)}, of which {decimal(missing)} are not '
                    f'written yet, but {self.path.parent} has only {decimal(free)} left: choose another cache_dir, or '
                    'do without the cache.'
                )
            if there is None or there.st_size != size:
                write_json(self.path.with_suffix('.json'), about)
                with atomic_write(self.path) as file:
                    file.truncate(size)

    def _open(self) -> None:
        self._records = np.memmap(self.path, RECORD, 'r', shape=self.shape[:1])
        self._images = np.memmap(self.path, np.uint8, 'r', self.start, self.shape)
        self._file = open(self.path, 'r+b', buffering=0)  # noqa: SIM115  open as long as the dataset is

    def _close(self) -> None:
        self._records = self._images = self._file = None

    def __getstate__(self) -> dict:
        # A process that is not forked opens the file again.
        return {**self.__dict__, '_records': None, '_images': None, '_file': None}

    def __call__(self, results: dict) -> dict | None:
        """Add ``img``, ``img_shape``, ``ori_shape`` and ``scale_factor`` to ``results`` with ``img_path`` and
        ``sample_idx``."""
        if self._file is None:
            self._open()
        idx, status = results['sample_idx'], os.stat(file_of(results['img_path']))
        stamp = int.from_bytes(
            hashlib.blake2b(f'{status.st_size} {status.st_mtime_ns}'.encode(), digest_size=8).digest(), 'little'
        )
        record = self._records[idx]
        if record['stamp'] == stamp:
            image = np.array(self._images[idx])
            if record['checksum'] == zlib.crc32(image):
                results.update(img=image, img_shape=image.shape[:2], ori_shape=tuple(map(int, record['ori_shape'])))
                if not np.isnan(record['scale_factor'][0]):
                    results['scale_factor'] = tuple(map(float, record['scale_factor']))
                return results
        for transform in self.transforms:
            results = transform(results)
            if results is None:
                return None
        self._store(idx, stamp, results)
        return results

    def _store(self, idx: int, stamp: int, results: dict) -> None:
        image = np.ascontiguousarray(results['img'])
        if image.shape != self.shape[1:]:
            raise ConfigError(
                f'CachedDataset needs images of one size, but {results["img_path"]} is {image.shape[:2]} after the '
                f'pipeline and others are {self.shape[1:3]}: add a crop to the pipeline, or do without the cache.'
            )
        if not self.writable:
            return
        record = np.zeros((), RECORD)
        record['stamp'], record['checksum'] = stamp, zlib.crc32(image)
        record['ori_shape'] = results['ori_shape']
        record['scale_factor'] = results.get('scale_factor', (np.nan, np.nan))
        try:
            # The record comes last: without it the image does not count.
            _write(self._file.fileno(), image, self.start + idx * image.nbytes)
            _write(self._file.fileno(), record, idx * RECORD.itemsize)
        except OSError as error:
            self.writable = False
            print_log(f'Stops writing images to {self.path} ({error.strerror}).', 'current', level=logging.WARNING)


def _write(file: int, array: np.ndarray, offset: int) -> None:
    data = memoryview(array.tobytes())
    while data:
        written = os.pwrite(file, data, offset)
        data, offset = data[written:], offset + written
