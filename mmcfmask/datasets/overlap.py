"""Which images a data set holds, to find those that another one holds too, however the configs are written."""

from __future__ import annotations

import copy
import hashlib
import os
from collections.abc import Iterable, Iterator
from functools import lru_cache

from mmengine.dataset import BaseDataset
from mmengine.registry import DefaultScope
from mmpretrain.registry import DATASETS

from .cache import CachedDataset
from .folder import FolderDataset
from .shards import join_place, split_place

# Settings of a FolderDataset that remove images or change how they are read, but add none.
NARROWING = (
    'pipeline',
    'test_mode',
    'lazy_init',
    'serialize_data',
    'skip_unreadable',
    'per_class',
    'per_group',
    'fraction',
    'subset_seed',
    'indices',
    'classes',
    'max_refetch',
)


def identify_images(cfg: dict) -> Iterator[str]:
    """A key for every image of a data set's config: the real path of its file, or a digest of its pixels in memory.

    Looks through lists, concatenations and wrappers that repeat or select images. Reads no image file.
    """
    with DefaultScope.overwrite_default_scope('mmpretrain'):  # mmengine's wrappers look there for what they wrap
        dataset = _build(cfg)
    if hasattr(dataset, 'image_keys'):
        return iter(dataset.image_keys())
    if isinstance(dataset, FolderDataset):
        return real_paths(item['img_path'] for item in dataset.data_list)
    infos = (dataset.get_data_info(index) for index in range(len(dataset)))
    return (
        next(real_paths([info['img_path']])) if info.get('img_path') else hashlib.sha256(info['img']).hexdigest()
        for info in infos
        if info.get('img_path') or 'img' in info
    )


def _build(cfg: dict):
    """Build the data set of a config without its pipeline."""
    cfg = _without_pipelines(cfg)
    plain = _is_a(BaseDataset, cfg)
    dataset = DATASETS.build(dict(cfg, lazy_init=True) if plain else cfg)
    if isinstance(dataset, FolderDataset):
        dataset.serialize_data = False
    if plain and not hasattr(dataset, 'image_keys'):
        dataset.full_init()
    return dataset


def _without_pipelines(node):
    """A copy of a config that neither transforms images, nor checks whether they are readable, nor caches them."""
    if isinstance(node, dict):
        if 'type' in node and _is_a(CachedDataset, node):
            return _without_pipelines(node['dataset'])
        left_out = ('skip_unreadable', 'pipeline')
        kept = {key: _without_pipelines(value) for key, value in node.items() if key not in left_out}
        return dict(kept, pipeline=[]) if 'pipeline' in node else kept
    return [_without_pipelines(item) for item in node] if isinstance(node, (list, tuple)) else copy.copy(node)


def real_paths(paths: Iterable[str]) -> Iterator[str]:
    """``os.path.realpath`` of each path, or of the shard in it; lists every folder once in place of asking for every
    file."""
    folders: dict[str, tuple[str, set[str]]] = {}
    for path in paths:
        if place := split_place(path) if '://' in path else None:
            yield join_place(_real_path(place[1]), place[2])
            continue
        folder, name = os.path.split(path)
        if folder not in folders:
            try:
                with os.scandir(folder or '.') as entries:
                    links = {entry.name for entry in entries if entry.is_symlink()}
            except OSError:  # missing: reported when it is read
                links = set()
            folders[folder] = os.path.realpath(folder), links
        real, links = folders[folder]
        yield os.path.realpath(path) if name in links else f'{real}/{name}'


_real_path = lru_cache(os.path.realpath)


def are_known_disjoint(one: dict, other: dict) -> bool:
    """Whether two configs are different parts of one hold-out, so disjoint without listing their images."""
    if not all(_is_a(FolderDataset, cfg) for cfg in (one, other)) or one['type'] != other['type']:
        return False
    keys = {*one, *other} - {*NARROWING, 'holdout', 'data_root'}
    roots = {os.path.realpath(os.path.expanduser(cfg.get('data_root') or '')) for cfg in (one, other)}
    if len(roots) > 1 or any(one.get(key) != other.get(key) for key in keys):
        return False
    splits = [{'seed': 0, 'test_seed': 0, **(cfg.get('holdout') or {})} for cfg in (one, other)]
    parts = {split.pop('part', None) for split in splits}
    return len(parts) == 2 and splits[0] == splits[1]


def _is_a(base: type, cfg: dict) -> bool:
    kind = DATASETS.get(cfg['type']) if isinstance(cfg['type'], str) else cfg['type']
    return isinstance(kind, type) and issubclass(kind, base)
