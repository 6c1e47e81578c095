"""Image transforms that mmpretrain lacks."""
from __future__ import annotations

from mmcv.transforms import BaseTransform
from mmpretrain.registry import TRANSFORMS


@TRANSFORMS.register_module()
class CropBorder(BaseTransform):
    """Cut a border off every side: ObjectNet's images have a red one, which must go before the image is resized.

    Changes ``img`` (H, W, C) and ``img_shape``.

    Args:
        border (int): Width in pixels. Defaults to 2, as in ObjectNet's protocol.

    Raises:
        ValueError: The image has nothing but border; names its file.
    """

    def __init__(self, border: int = 2) -> None:
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
