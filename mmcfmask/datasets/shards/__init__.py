"""Images in shards: tar files as WebDataset has them, and Parquet or Arrow files of Hugging Face ``datasets``.

An index of all samples makes them a data set with random access, so samplers, hold-outs and checks work as on folders.
"""

from . import storage as storage  # registers how images in shards are read
from .samples import file_of, join_place, split_place
from .tree import SUFFIXES, Folders, Shards, find_shards, open_tree

__all__ = ['SUFFIXES', 'Folders', 'Shards', 'file_of', 'find_shards', 'join_place', 'open_tree', 'split_place']
