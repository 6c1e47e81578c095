"""How an image in a shard is read: a storage of mmengine, for paths such as ``tar:///data/0.tar#1536+9120#cat/7.jpg``.

Whatever reads image files reads such paths: this package, and the loaders of mmcv and mmpretrain.
"""

from __future__ import annotations

from mmengine.fileio import BaseStorageBackend, register_backend

from ...errors import StorageError
from .samples import split_place
from .tables import read_cell
from .tars import read_member


class ShardStorage(BaseStorageBackend):
    """Reads the bytes of one image in a shard (:func:`mmcfmask.datasets.shards.samples.join_place`)."""

    def get(self, filepath: str) -> bytes:
        """The bytes of an image.

        Raises:
            StorageError: The path is not one of an image in a shard, or the shard has changed.
        """
        place = split_place(str(filepath))
        if place is None:
            raise StorageError('it is not the path of an image in a shard')
        kind, file, sample = place
        return (read_member if kind == 'tar' else read_cell)(file, sample.first, sample.second)

    def get_text(self, filepath: str) -> str:
        """The bytes as text."""
        return self.get(filepath).decode()


register_backend('shards', ShardStorage, prefixes=('tar', 'parquet', 'arrow'), force=True)
