"""Image transforms that mmpretrain lacks."""
from __future__ import annotations

from io import BytesIO

import numpy as np
from mmcv.transforms import BaseTransform
from mmengine import fileio
from mmpretrain.registry import TRANSFORMS
from PIL import Image

from ..ranges import Count, Positive, Whole


@TRANSFORMS.register_module()
class CropBorder(BaseTransform):
    """Cut a border off every side: ObjectNet's images have a red one, which must go before the image is resized.

    Changes ``img`` (H, W, C) and ``img_shape``.

    Args:
        border (int): Width in pixels. Defaults to 2, as in ObjectNet's protocol.

    Raises:
        ValueError: The image has nothing but border; names its file.
    """

    def __init__(self, border: Whole = 2) -> None:
        if border < 0:
            raise ValueError(f'CropBorder: border={border} must not be negative.')
        self.border = border

    def transform(self, results: dict) -> dict:
        """Crop ``results['img']``."""
        height, width = results['img'].shape[:2]
        if min(height, width) <= 2 * self.border:
            raise ValueError(f'{results.get("img_path", "an image")}: {width}x{height} pixels are too few for a border of {self.border}.')
        results['img'] = results['img'][self.border:height - self.border, self.border:width - self.border]
        results['img_shape'] = results['img'].shape[:2]
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(border={self.border})'


@TRANSFORMS.register_module()
class LoadResizedImage(BaseTransform):
    """Read an image and resize its short side (Pillow, bicubic), in one go.

    Gives exactly what ``LoadImageFromFile(imdecode_backend='pillow', color_type='color_ignore_orientation')`` and
    ``ResizeEdge(scale, edge='short', backend='pillow', interpolation='bicubic')`` give, without the copies between them. With
    ``reducing_gap``, large JPEGs are decoded at a fraction of their size, which costs a fraction of the time and changes pixels a little
    (docs/performance.md has numbers).

    Adds ``img`` (H, W, 3) uint8 BGR, ``img_shape``, ``ori_shape``, ``scale``, ``scale_factor``.

    Args:
        scale (int): Length of the short side after resizing.
        reducing_gap (float, optional): A JPEG is decoded at 1/2, 1/4 or 1/8 of its size where this leaves at least ``reducing_gap`` times
            the pixels of the resized image in each direction; at least 1. Pillow's own default for thumbnails is 2. Defaults to None:
            decode at full size.
        backend_args (dict, optional): Where files are, see :func:`mmengine.fileio.get`.

    Raises:
        ValueError: ``scale`` below 1 or ``reducing_gap`` below 1.
    """

    def __init__(self, scale: Count, reducing_gap: Positive | None = None, backend_args: dict | None = None) -> None:
        if scale < 1:
            raise ValueError(f'LoadResizedImage: scale={scale} must be a positive number of pixels.')
        if reducing_gap is not None and reducing_gap < 1:
            raise ValueError(f'LoadResizedImage: reducing_gap={reducing_gap} must be at least 1, or None to decode at full size.')
        self.scale = scale
        self.reducing_gap = reducing_gap
        self.backend_args = backend_args

    def transform(self, results: dict) -> dict:
        """Read ``results['img_path']``."""
        with Image.open(BytesIO(fileio.get(results['img_path'], backend_args=self.backend_args))) as image:
            width, height = image.size
            # The long side is rounded down, as ResizeEdge and torchvision do.
            size = (self.scale, int(self.scale * height / width)) if width < height else (int(self.scale * width / height), self.scale)
            box = None
            if self.reducing_gap is not None and image.format == 'JPEG':
                reduced = image.draft(None, tuple(int(side * self.reducing_gap) for side in size))
                box = reduced and reduced[1]  # in pixels of the reduced image, with a fraction where the size is not a multiple
            resized = _rgb(image).resize(size, Image.Resampling.BICUBIC, box)
        results['img'] = np.asarray(resized)[:, :, ::-1]
        results['img_shape'] = results['img'].shape[:2]
        results['ori_shape'] = (height, width)
        results['scale'] = size
        results['scale_factor'] = (size[0] / width, size[1] / height)
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(scale={self.scale}, reducing_gap={self.reducing_gap})'


def _rgb(image: Image.Image) -> Image.Image:
    """As mmcv converts: grey with transparency lies on a grey canvas, so that black objects stay visible."""
    if image.mode != 'LA':
        return image.convert('RGB')
    canvas = Image.new('RGB', image.size, (124, 117, 104))
    image = image.convert('RGBA')
    canvas.paste(image, mask=image.getchannel('A'))
    return canvas
