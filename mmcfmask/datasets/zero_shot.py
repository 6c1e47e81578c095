"""Data sets with classes of their own, for the zero-shot ability that fine-tuning kept."""

from __future__ import annotations

from pathlib import Path

from mmpretrain.registry import DATASETS

from ..errors import ConfigError
from .folder import FolderDataset
from .layouts import SETS, find_set


@DATASETS.register_module()
class ZeroShotDataset(FolderDataset):
    """Images of any classes in class folders, to be classified by their own class embeddings instead of the head.

    A :class:`mmcfmask.engine.test_loop.MultiSetTestLoop` makes the embeddings with the pretrained text tower, and
    classifies each image with the fine-tuned and with the pretrained image tower, for
    :class:`mmcfmask.evaluation.KeptZeroShot`.

    Args:
        data_root (str): Folder with the class folders in it or in ``test/``. With ``benchmark``, also a folder of all
            sets that holds it.
        benchmark (str, optional): 'cifar10', 'cifar100', 'food101' or 'cars': the set's folder is looked for, and its
            images are counted against what was published. Defaults to None: any set.
        class_weights (dict, optional): Class embeddings in the order of the labels, as of a head: ``dict(type='text',
            classnames=[…], templates=[…])`` or ``dict(type='file', path=…)``. ``classnames`` defaults to the names of
            the folders with spaces for underscores, ``templates`` to ``['a photo of a {}.']``. Defaults to both.
        **kwargs: Arguments of :class:`FolderDataset` except ``split_dir``.

    Raises:
        MissingSetError: The folder does not exist.
        ConfigError: An unknown benchmark; class embeddings of another type.
    """

    BENCHMARKS = ('cifar10', 'cifar100', 'food101', 'cars')
    TEMPLATES = ('a photo of a {}.',)

    def __init__(
        self, data_root: str, benchmark: str | None = None, class_weights: dict | None = None, **kwargs
    ) -> None:
        if benchmark is not None and benchmark not in self.BENCHMARKS:
            raise ConfigError(
                f'ZeroShotDataset: unknown benchmark={benchmark!r}, choose one of {", ".join(self.BENCHMARKS)}, or '
                'leave it out.'
            )
        weights = dict(class_weights or {})
        weights.setdefault('type', 'text')
        if weights['type'] not in ('text', 'file'):
            raise ConfigError(
                f"ZeroShotDataset: class_weights.type={weights['type']!r} must be 'text' or 'file': nothing may be "
                'trained on the set.'
            )
        self.class_weights = weights
        if benchmark is not None:
            data_root = str(find_set(benchmark, data_root))
            kwargs['metainfo'] = {**kwargs.get('metainfo', {}), 'protocol': SETS[benchmark].protocol}
        inside = (Path(data_root).expanduser() / 'test').is_dir()
        super().__init__(data_root, split_dir='test' if inside else '', **kwargs)

    def list_items(self, root: Path) -> list[dict]:
        """All items. Sets the class embeddings of the metainfo."""
        items = super().list_items(root)
        weights = dict(self.class_weights)
        if weights['type'] == 'text':
            weights.setdefault('classnames', [name.replace('_', ' ') for name in self._metainfo['classes']])
            weights.setdefault('templates', list(self.TEMPLATES))
        self._metainfo['class_weights'] = weights
        return items
