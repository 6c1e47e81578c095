"""Images corrupted as for ImageNet-C when they are read, by the package ``imagecorruptions-imaug`` (an extra)."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from mmcv.transforms import BaseTransform
from mmpretrain.registry import DATASETS, TRANSFORMS
from PIL import Image

from ..errors import ConfigError, MissingPackageError
from ..ranges import Seed
from .imagenet_shifts import ImageNetDataset, check_corruptions
from .layouts import SEVERITIES

PACKAGE = 'imagecorruptions-imaug'
INSTALL = "pip install 'mmcfmask[corruptions]'"


def find_corruptions() -> dict[str, Callable]:
    """The functions of the package by the name of their corruption: image (PIL) and severity to pixels in [0, 255].

    Raises:
        MissingPackageError: The package is not installed, or it is the original, which has the same module name.
    """
    try:
        from imagecorruptions import corruption_dict
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == 'imagecorruptions':
            raise MissingPackageError(f'corrupted images need the package {PACKAGE}: {INSTALL}') from None
        # The original does not even load with recent versions of what it needs.
        raise MissingPackageError(f'{_other_package()} ({error})') from None
    if 'seed' not in inspect.signature(corruption_dict['glass_blur']).parameters:
        raise MissingPackageError(_other_package())
    return corruption_dict


def _other_package() -> str:
    return (
        f'the installed module imagecorruptions is not that of {PACKAGE}: pip uninstall imagecorruptions {PACKAGE}, '
        f'then {INSTALL}'
    )


@TRANSFORMS.register_module()
class Corrupt(BaseTransform):
    """Corrupt an image as for ImageNet-C (Hendrycks & Dietterich, ICLR 2019), with the package
    ``imagecorruptions-imaug``: ``pip install 'mmcfmask[corruptions]'``.

    The random numbers follow from ``seed``, the pixels, the corruption and the severity. So the same image gives the
    same result in every epoch, process and folder. For tests: as an augmentation it would not vary.

    Changes ``img``, (H, W, 3) uint8 BGR. Place it after the crop: ImageNet-C corrupts images of 224 x 224 pixels, and
    blur, fog and others depend on the size. docs/evaluation.md lists what differs from the published ImageNet-C.

    Args:
        corruption (str, optional): One of the 15, such as 'fog'. Defaults to None: ``results['corruption']``, which
            :class:`CorruptedImageNetDataset` gives.
        severity (int, optional): 1 to 5. Defaults to None: ``results['severity']``.
        seed (int): Another seed gives other noise. Defaults to 0.

    Raises:
        MissingPackageError: The package is not installed.
        ConfigError: Unknown corruption or severity, only one of the two, items without them, or an image that is not
            uint8 with 3 channels or smaller than 32 pixels; the message names its file.
    """

    def __init__(self, corruption: str | None = None, severity: int | None = None, seed: Seed = 0) -> None:
        if (corruption is None) != (severity is None):
            raise ConfigError(
                f'Corrupt: corruption={corruption!r}, severity={severity!r}: give both, or neither if the dataset does'
            )
        if corruption is not None:
            check_corruptions('Corrupt', [corruption], [severity])
        self.functions = find_corruptions()
        self.corruption, self.severity, self.seed = corruption, severity, seed

    def transform(self, results: dict) -> dict:
        """Corrupt ``results['img']``."""
        image, where = results['img'], f'Corrupt: {results.get("img_path", "an image")}'
        name = results.get('corruption') if self.corruption is None else self.corruption
        severity = results.get('severity') if self.severity is None else self.severity
        if name is None or severity is None:
            raise ConfigError(
                f'{where} has no corruption and severity: set both in the transform, '
                "dict(type='Corrupt', corruption='fog', severity=3), or use a CorruptedImageNetDataset"
            )
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or min(image.shape[:2]) < 32:
            raise ConfigError(
                f'{where}: it takes uint8 colour images of at least 32x32 pixels, not {image.dtype} of shape '
                f'{image.shape}'
            )
        results['img'] = corrupt(image, name, severity, self.seed, self.functions[name])
        return results

    def __repr__(self) -> str:
        try:
            package = f'{PACKAGE} {version(PACKAGE)}'
        except PackageNotFoundError:
            package = PACKAGE
        chosen = '' if self.corruption is None else f'corruption={self.corruption!r}, severity={self.severity}, '
        return f'{type(self).__name__}({chosen}seed={self.seed}; {package})'


def corrupt(image: np.ndarray, name: str, severity: int, seed: int, function: Callable) -> np.ndarray:
    """(H, W, 3) uint8 BGR, corrupted by one of the functions of :func:`find_corruptions`; the same for equal arguments.

    Values are cut off to whole numbers, as in the published code.
    """
    key = f'{seed} {name} {severity} {image.shape}'.encode() + np.ascontiguousarray(image).tobytes()
    number = int.from_bytes(hashlib.blake2b(key, digest_size=4).digest(), 'little')
    # Two functions have a generator of their own, all others use NumPy's global one.
    own = dict(seed=number) if 'seed' in inspect.signature(function).parameters else {}
    with _numpy_seed(number):
        corrupted = function(Image.fromarray(np.ascontiguousarray(image[:, :, ::-1])), severity, **own)
    return np.ascontiguousarray(np.uint8(corrupted)[:, :, ::-1])


@contextmanager
def _numpy_seed(number: int) -> Iterator[None]:
    """Seed NumPy's global generator inside the context, and leave it to others as it was."""
    state = np.random.get_state()
    np.random.seed(number)
    try:
        yield
    finally:
        np.random.set_state(state)


@DATASETS.register_module()
class CorruptedImageNetDataset(ImageNetDataset):
    """A small ImageNet-C, made when it is read: images of ImageNet, each once per corruption and severity.

    The pipeline must have a :class:`Corrupt` after the crop, which does it, and end in ``PackInputs(meta_keys=(…,
    'corruption', 'severity'))`` for :class:`mmcfmask.evaluation.CorruptionError`. Items also have ``corruption`` (str)
    and ``severity`` (int). Numbers are not comparable with the published ImageNet-C (docs/evaluation.md).

    Args:
        data_root (str): Folder of ImageNet, or one that holds it.
        split_dir (str): As of :class:`ImageNetDataset`: 'val', or '' for a folder of the 1000 class folders.
        corruptions (Sequence[str], optional): A selection of the 15. Defaults to all.
        severities (Sequence[int]): A selection of 1 to 5. Defaults to all.
        **kwargs: Arguments of :class:`ImageNetDataset`; ``per_class`` and ``holdout`` select the same images under
            every corruption.

    Raises:
        MissingPackageError: The package ``imagecorruptions-imaug`` is not installed.
        ConfigError: Unknown corruptions or severities, or a pipeline without :class:`Corrupt`.

    Examples:
        >>> pipeline = [load, *crop, dict(type='Corrupt'), dict(type='PackInputs', meta_keys=('corruption', ...))]
        >>> images = CorruptedImageNetDataset('data/imagenet', 'val', ['fog'], severities=[3], pipeline=pipeline)
    """

    def __init__(
        self,
        data_root: str,
        split_dir: str = '',
        corruptions: Sequence[str] | None = None,
        severities: Sequence[int] = SEVERITIES,
        pipeline: Sequence = (),
        **kwargs,
    ) -> None:
        self.corruptions, self.severities = check_corruptions(type(self).__name__, corruptions, severities)
        find_corruptions()
        super().__init__(data_root, split_dir, pipeline=pipeline, **kwargs)
        steps = self.pipeline.transforms
        if steps and not any(isinstance(step, Corrupt) and step.corruption is None for step in steps):
            raise ConfigError(
                f"{type(self).__name__}: its pipeline must have a dict(type='Corrupt') after the crop, without a "
                'corruption and severity of its own: the images would be clean, and count as corrupted.'
            )

    def list_items(self, root: Path) -> list[dict]:
        """The items of :class:`ImageNetDataset`, once per corruption and severity, in the order of the arguments."""
        items = super().list_items(root)
        places = [(name, severity) for name in self.corruptions for severity in self.severities]
        self.num_listed *= len(places)
        protocol = self._metainfo.get('protocol')
        if protocol:
            self._metainfo['protocol'] = dict(protocol, images=protocol['images'] * len(places))
        note = f'made here by {PACKAGE}, not the published ImageNet-C'
        self._metainfo['notes'] = [*self._metainfo.get('notes', ()), note]
        return [dict(item, corruption=name, severity=severity) for name, severity in places for item in items]
