"""Image transforms that mmpretrain lacks."""

from __future__ import annotations

import mmcv
import mmcv.transforms
import mmpretrain.datasets  # noqa: F401  registers mmcv's LoadImageFromFile, which ours replaces
import numpy as np
from mmcv.transforms import BaseTransform
from mmpretrain.registry import TRANSFORMS
from PIL import Image

from ..errors import ConfigError, StorageError
from ..ranges import Count, Pixels, Positive, Whole, height_and_width
from .images import open_image, read_image, to_rgb


@TRANSFORMS.register_module(force=True)
class LoadImageFromFile(mmcv.transforms.LoadImageFromFile):
    """mmcv's ``LoadImageFromFile``, with a Pillow backend that reads like
    :func:`mmcfmask.datasets.images.read_image`.

    mmcv's own Pillow backend puts grey images with transparency on a grey canvas, and turns 16-bit images white and
    floating-point images black.

    Adds ``img`` (H, W, 3) uint8 BGR, ``img_shape`` and ``ori_shape``.

    Args:
        **kwargs: Arguments of mmcv's transform. The published pipelines use ``imdecode_backend='pillow',
            color_type='color_ignore_orientation'``: no rotation by EXIF.

    Raises:
        StorageError: The file cannot be read, or only by guessing; the message names it.
    """

    def transform(self, results: dict) -> dict | None:
        """Read ``results['img_path']``."""
        if (
            self.imdecode_backend != 'pillow'
            or self.color_type not in ('color', 'color_ignore_orientation')
            or self.file_client_args
        ):
            try:
                return super().transform(results)
            except Exception as error:  # of OpenCV, or of mmcv if OpenCV gives nothing
                raise StorageError(
                    f'{results["img_path"]} cannot be read as an image with imdecode_backend={self.imdecode_backend!r} '
                    f'({error})'
                ) from None
        try:
            image = read_image(results['img_path'], self.backend_args, turned=self.color_type == 'color')
        except StorageError:
            if self.ignore_empty:
                return None
            raise
        results['img'] = np.asarray(image, np.float32 if self.to_float32 else np.uint8)[:, :, ::-1]
        results['img_shape'] = results['ori_shape'] = results['img'].shape[:2]
        return results


@TRANSFORMS.register_module()
class CropBorder(BaseTransform):
    """Cut a border off every side. ObjectNet's images have a red one, which must go before the resize.

    Changes ``img`` (H, W, C) and ``img_shape``.

    Args:
        border (int): Width in pixels. Defaults to 2, as in ObjectNet's protocol.

    Raises:
        ConfigError: The image is all border; the message names its file.
    """

    def __init__(self, border: Whole = 2) -> None:
        if border < 0:
            raise ConfigError(f'CropBorder: border={border} must not be negative.')
        self.border = border

    def transform(self, results: dict) -> dict:
        """Crop ``results['img']``."""
        height, width = results['img'].shape[:2]
        if min(height, width) <= 2 * self.border:
            raise ConfigError(
                f'{results.get("img_path", "an image")}: {width}x{height} pixels are too few for a border of '
                f'{self.border}.'
            )
        results['img'] = results['img'][self.border : height - self.border, self.border : width - self.border]
        results['img_shape'] = results['img'].shape[:2]
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(border={self.border})'


@TRANSFORMS.register_module()
class ResizeCenterCrop(BaseTransform):
    """CLIP's test transform: resize the image until it just covers ``image_size`` (Pillow, bicubic), and cut out the
    centre.

    For a square ``image_size``, this is ``ResizeEdge(image_size, edge='short', backend='pillow',
    interpolation='bicubic')`` and ``CenterCrop(image_size)``. The argument has the name of the backbone's, so that one
    variable of a config sets both.

    Changes ``img`` (H, W, 3) uint8, ``img_shape``; adds ``scale``, ``scale_factor``.

    Args:
        image_size (int | tuple[int, int]): Height and width in pixels, or one number for both.

    Raises:
        ConfigError: ``image_size`` is not one or two positive numbers of pixels.
    """

    def __init__(self, image_size: Pixels | tuple[Pixels, Pixels]) -> None:
        self.height, self.width = height_and_width(image_size, type(self).__name__)

    def transform(self, results: dict) -> dict:
        """Resize and crop ``results['img']``."""
        image = results['img']
        height, width = image.shape[:2]
        # The other side is rounded down, as ResizeEdge and torchvision do.
        if self.height * width >= self.width * height:
            size = (max(self.width, int(self.height * width / height)), self.height)
        else:
            size = (self.width, max(self.height, int(self.width * height / width)))
        resized, *factors = mmcv.imresize(image, size, return_scale=True, interpolation='bicubic', backend='pillow')
        top, left = round((size[1] - self.height) / 2), round((size[0] - self.width) / 2)
        results['img'] = resized[top : top + self.height, left : left + self.width]
        results['img_shape'] = results['img'].shape[:2]
        results['scale'], results['scale_factor'] = size, tuple(factors)
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(image_size={(self.height, self.width)})'


@TRANSFORMS.register_module()
class LoadResizedImage(BaseTransform):
    """Read an image and resize its short side (Pillow, bicubic) in one step.

    Gives exactly what ``LoadImageFromFile(imdecode_backend='pillow', color_type='color_ignore_orientation')`` and
    ``ResizeEdge(scale, edge='short', backend='pillow', interpolation='bicubic')`` give, without the copies in between.
    With ``reducing_gap``, large JPEGs are decoded at a fraction of their size, which is faster and changes pixels
    slightly (docs/performance.md has numbers).

    Adds ``img`` (H, W, 3) uint8 BGR, ``img_shape``, ``ori_shape``, ``scale``, ``scale_factor``. If there is no
    ``img_path`` (inference on an array), ``img`` is resized.

    Args:
        scale (int): Length of the short side after resizing.
        reducing_gap (float, optional): Decode a JPEG at 1/2, 1/4 or 1/8 of its size if this leaves at least
            ``reducing_gap`` times the side length of the resized image; at least 1. Pillow uses 2 for thumbnails.
            Defaults to None: decode at full size.
        backend_args (dict, optional): Where files are, see :func:`mmengine.fileio.get`.

    Raises:
        ConfigError: ``scale`` or ``reducing_gap`` below 1.
        StorageError: The file cannot be read, or only by guessing; the message names it.
    """

    def __init__(self, scale: Count, reducing_gap: Positive | None = None, backend_args: dict | None = None) -> None:
        if scale < 1:
            raise ConfigError(f'LoadResizedImage: scale={scale} must be a positive number of pixels.')
        if reducing_gap is not None and reducing_gap < 1:
            raise ConfigError(
                f'LoadResizedImage: reducing_gap={reducing_gap} must be at least 1, or None to decode at full size.'
            )
        self.scale = scale
        self.reducing_gap = reducing_gap
        self.backend_args = backend_args

    def transform(self, results: dict) -> dict:
        """Read ``results['img_path']``."""
        if 'img_path' not in results:
            return self._resize(results, Image.fromarray(results['img']))
        with open_image(results['img_path'], self.backend_args) as image:
            reduced = None
            if self.reducing_gap is not None and image.format == 'JPEG':
                full = image.size
                reduced = image.draft(None, tuple(int(side * self.reducing_gap) for side in self._size(*full)))
            rgb = to_rgb(image)
            if reduced is None:  # after the read, because a TIFF may be rotated by it
                self._resize(results, rgb)
            else:  # the box is in pixels of the reduced image, fractional if the size is not a multiple
                self._resize(results, rgb, full, reduced[1])
        results['img'] = results['img'][:, :, ::-1]
        return results

    def _size(self, width: int, height: int) -> tuple[int, int]:
        # The long side is rounded down, as ResizeEdge and torchvision do.
        return (
            (self.scale, int(self.scale * height / width))
            if width < height
            else (int(self.scale * width / height), self.scale)
        )

    def _resize(
        self, results: dict, image: Image.Image, full: tuple[int, int] | None = None, box: tuple | None = None
    ) -> dict:
        """Add the entries of :meth:`transform` to ``results``; ``box`` of ``image`` covers an original of size
        ``full``."""
        width, height = full or image.size
        size = self._size(width, height)
        results['img'] = np.asarray(image.resize(size, Image.Resampling.BICUBIC, box))
        results['img_shape'] = results['img'].shape[:2]
        results['ori_shape'] = (height, width)
        results['scale'] = size
        results['scale_factor'] = (size[0] / width, size[1] / height)
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(scale={self.scale}, reducing_gap={self.reducing_gap})'
