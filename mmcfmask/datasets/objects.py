"""Images whose objects are known: drawings on white, as they are or pasted on photos of scenes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from mmpretrain.registry import DATASETS
from PIL import Image
from rich.progress import track

from ..errors import ConfigError
from ..messages import short_list
from ..ranges import Count, Pixels, Share, height_and_width
from .class_folders import MissingSetError
from .folder import FolderDataset
from .holdout import seeded_order
from .images import find_images, read_image
from .names import composed
from .transforms import ResizeCenterCrop


@DATASETS.register_module()
class ObjectsOnWhiteDataset(FolderDataset):
    """Images of objects on white, with the object as ground truth for masks: PACS' cartoons and sketches.

    The background is what a fill of near-white pixels from the border reaches (:func:`object_on_white`). Images whose
    object is smaller or larger than ``object_share`` are left out: there the fill leaked into the object, or the
    background is not white.

    With ``scenes``, every object is scaled and pasted at a random place on a random photo from there. Which one, how
    large and where depends on ``subset_seed`` and the name of the file.

    Before the pipeline (usually just ``PackInputs``), items are dicts with ``img`` (H, W, 3) BGR uint8, ``gt_mask``
    (H, W) bool, ``gt_label``, ``img_path``, ``img_shape``, ``ori_shape`` and ``sample_idx``.

    Args:
        data_root (str): Folder of the data set, such as that of PACS.
        split_dir (str): Sub-folder that holds the class folders: 'cartoon' or 'sketch' of PACS. Defaults to ''.
        per_class (int, optional): Number of images to keep of every class, drawn from those whose object is found.
            Defaults to None: all.
        image_size (int | tuple[int, int]): Height and width in pixels; images are resized and cropped as
            :class:`ResizeCenterCrop` does. Defaults to 224.
        white (int): Pixels whose channels are all above are near-white. Defaults to 235.
        object_share (tuple[float, float]): Smallest and largest share of the image that an object covers. Defaults to
            (0.12, 0.55).
        scenes (str, optional): Folder of photos to paste the objects on. Defaults to None: the images as they are.
        scene_folders (Sequence[str], optional): Sub-folders of ``scenes`` to use. Defaults to all of it.
        object_scale (tuple[float, float]): Smallest and largest side of the pasted image, as a share of
            ``image_size``. Defaults to (15 / 28, 5 / 7): 120 to 160 of 224 pixels.
        **kwargs: Arguments of :class:`FolderDataset`; ``subset_seed`` also draws the scenes.

    Raises:
        MissingSetError: ``scenes`` or one of its folders does not exist, or has no images.
        ConfigError: Fewer than ``per_class`` objects in a class, a class without any, or ranges that make no sense.
    """

    def __init__(
        self,
        data_root: str,
        split_dir: str = '',
        per_class: Count | None = None,
        image_size: Pixels | tuple[Pixels, Pixels] = 224,
        white: int = 235,
        object_share: tuple[Share, Share] = (0.12, 0.55),
        scenes: str | None = None,
        scene_folders: Sequence[str] | None = None,
        object_scale: tuple[Share, Share] = (15 / 28, 5 / 7),
        **kwargs,
    ) -> None:
        if type(white) is not int or not 0 <= white < 255:
            raise ConfigError(f'ObjectsOnWhiteDataset: white={white!r} must be a whole number from 0 to 254.')
        if per_class is not None and (type(per_class) is not int or per_class < 1):
            raise ConfigError(f'per_class={per_class!r} must be at least 1.')
        self.object_share = check_range('object_share', object_share)
        self.object_scale = check_range('object_scale', object_scale)
        if scene_folders is not None and (isinstance(scene_folders, str) or not scene_folders):
            raise ConfigError(
                f'scene_folders={scene_folders!r} must be a list of folders in scenes, or None for all of it.'
            )
        if scene_folders is not None and scenes is None:
            raise ConfigError('scene_folders needs scenes, the folder that holds them.')
        self.image_size = height_and_width(image_size, 'ObjectsOnWhiteDataset')
        self.white = white
        self.scenes, self.scene_folders = scenes, scene_folders
        self.scene_files: list[str] = []
        self.objects_per_class = per_class  # the base class would draw before objects are looked for
        super().__init__(data_root, split_dir=split_dir, **kwargs)

    def list_items(self, root: Path) -> list[dict]:
        """Items of the images whose object is found, ordered by class and name."""
        if self.scenes is not None:
            self.scene_files = find_scenes(self.scenes, self.scene_folders)
        by_class: dict[int, dict[str, dict]] = {}
        for item in super().list_items(root):
            name = os.path.relpath(item['img_path'], root)
            by_class.setdefault(item['gt_label'], {})[name] = item
        kept: list[dict] = []
        for label, items in track(by_class.items(), f'Objects in {root}', transient=True):
            wanted = len(items) if self.objects_per_class is None else self.objects_per_class
            found: list[str] = []
            for name in seeded_order(items, self.subset_seed):
                if len(found) == wanted:
                    break
                low, high = self.object_share
                if low <= self.read(items[name]['img_path'])[1].mean() <= high:
                    found.append(name)
            if not found or self.objects_per_class is not None and len(found) < wanted:
                raise ConfigError(
                    f'{root}: {len(found)} of {len(items)} images of the class {self._metainfo["classes"][label]!r} '
                    f'show an object on white that covers {low:g} to {high:g} of the image'
                    + ('.' if self.objects_per_class is None else f', but per_class={wanted}.')
                )
            kept += [items[name] for name in sorted(found)]
        return kept

    def read(self, path: str) -> tuple[np.ndarray, np.ndarray]:
        """Image (H, W, 3) BGR uint8 and object (H, W) bool of a file, of ``image_size``."""
        pixels = np.asarray(read_image(path))[:, :, ::-1]
        image = ResizeCenterCrop(self.image_size).transform(dict(img=pixels))['img']
        return image, object_on_white(image, self.white)

    def get_data_info(self, idx: int) -> dict:
        """The item before the pipeline."""
        info = super().get_data_info(idx)
        image, mask = self.read(info['img_path'])
        if self.scene_files:
            key = f'{self.subset_seed}/{composed(os.path.relpath(info["img_path"], self.img_prefix))}'
            digest = hashlib.sha256(key.encode(errors='surrogateescape')).digest()
            rng = np.random.default_rng(list(digest))
            scene = np.asarray(read_image(self.scene_files[rng.integers(len(self.scene_files))]))[:, :, ::-1]
            scene = ResizeCenterCrop(self.image_size).transform(dict(img=scene))['img']
            image, mask = paste(image, mask, scene, rng.uniform(*self.object_scale), rng)
        return dict(info, img=image, gt_mask=mask, img_shape=self.image_size, ori_shape=self.image_size)

    def extra_repr(self) -> list[str]:
        """Where the images are, and what the objects stand on."""
        return [*super().extra_repr(), f'Objects per class: \t{self.objects_per_class}', f'Scenes: \t{self.scenes}']


def object_on_white(image: np.ndarray, white: int = 235) -> np.ndarray:
    """What a fill of near-white pixels from the border of an image does not reach.

    Args:
        image (ndarray): (H, W, 3) uint8.
        white (int): Pixels whose channels are all above are near-white; regions connect at their sides.

    Returns:
        ndarray: (H, W) bool.
    """
    near_white = (image.min(axis=2) > white).astype(np.uint8)
    regions = cv2.connectedComponents(near_white, connectivity=4)[1]  # 0: not near-white
    border = np.unique(np.concatenate([regions[0], regions[-1], regions[:, 0], regions[:, -1]]))
    return ~np.isin(regions, border[border > 0])


def paste(
    image: np.ndarray, mask: np.ndarray, scene: np.ndarray, scale: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Put the object of an image, scaled, at a random place on a scene.

    Args:
        image, scene (ndarray): (H, W, 3) uint8.
        mask (ndarray): (H, W) bool, the object.
        scale (float): Side of the pasted image as a share of the scene's, in (0, 1].
        rng (Generator): Draws the place.

    Returns:
        tuple[ndarray, ndarray]: Image (H, W, 3) uint8 and object (H, W) bool.
    """
    height, width = scene.shape[:2]
    size = max(1, round(scale * width)), max(1, round(scale * height))
    small = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
    inside = np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
    x, y = int(rng.integers(width - size[0] + 1)), int(rng.integers(height - size[1] + 1))
    pasted, where = scene.copy(), np.zeros((height, width), bool)
    where[y : y + size[1], x : x + size[0]] = inside
    pasted[where] = small[inside]
    return pasted, where


def find_scenes(scenes: str, folders: Sequence[str] | None = None) -> list[str]:
    """Paths of all images in a folder, or in some of its sub-folders.

    Raises:
        MissingSetError: A folder does not exist, or there is no image.
    """
    root = Path(scenes).expanduser()
    parts = [root] if folders is None else [root / name for name in folders]
    missing = [str(part) for part in parts if not part.is_dir()]
    if missing:
        raise MissingSetError(f'scenes: {short_list(missing)} are not folders; set scenes to a folder of photos.')
    files = [f'{part}/{name}' for part in parts for name in find_images(part)]
    if not files:
        raise MissingSetError(f'scenes={scenes!r} has no images.')
    return files


def check_range(name: str, value: Sequence[float]) -> tuple[float, float]:
    """Two numbers 0 ≤ low ≤ high ≤ 1.

    Raises:
        ConfigError: Anything else.
    """
    numbers = isinstance(value, (list, tuple)) and all(
        isinstance(x, (int, float)) and not isinstance(x, bool) for x in value
    )
    if not (numbers and len(value) == 2 and 0 <= value[0] <= value[1] <= 1 and value[1] > 0):
        raise ConfigError(f'{name}={value!r} must be two numbers in [0, 1], the smaller one first.')
    return float(value[0]), float(value[1])
