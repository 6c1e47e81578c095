"""The order in which a training reads its images."""

from collections import Counter

import numpy as np
import pytest
import torch
from mmpretrain.registry import DATA_SAMPLERS
from shards import make_folders, make_table, make_tars, rows, write_parquet

from mmcfmask.datasets import FolderDataset
from mmcfmask.datasets.shards import split_place
from mmcfmask.engine import ShardSampler
from mmcfmask.errors import ConfigError

SIZES = dict(cat=30, dog=31, emu=32)
SHARD = 10  # images of a shard; the last one has 3


@pytest.fixture
def dataset(tmp_path):
    mixed = sorted(rows(SIZES), key=lambda row: row[3])
    make_tars(tmp_path, [dict(key=f'{folder}/{name[:-4]}', png=content) for folder, name, _, content in mixed], SHARD)
    return FolderDataset(str(tmp_path))


def sampler(dataset, rank=0, processes=1, **kwargs):
    built = DATA_SAMPLERS.build(
        dict(type='ShardSampler', dataset=dataset, seed=3, **kwargs), default_args=dict(dataset=dataset)
    )
    built.rank, built.world_size = rank, processes
    built.num_samples = len(dataset) // processes
    return built


def shard(dataset, index):
    return split_place(dataset.get_data_info(index)['img_path'])[1]


@pytest.mark.parametrize('processes', [1, 2, 4])
def test_every_image_once_by_shards_of_its_own(dataset, processes):
    whole = []
    for rank in range(processes):
        own = list(sampler(dataset, rank, processes, buffer=20))
        assert len(own) == len(sampler(dataset, rank, processes)) == 93 // processes
        read = Counter(shard(dataset, index) for index in own)
        assert len(read) <= 93 // processes / SHARD + 2  # one in part at each end, and the short one
        whole += own
    assert len(set(whole)) == len(whole) >= 93 - processes + 1


def test_buffer_is_as_long_as_asked_for(dataset):
    """Independent: which shards are open, by the position in the epoch."""
    order = list(sampler(dataset, buffer=20))
    for start in range(0, 93, 20):
        assert len({shard(dataset, index) for index in order[start : start + 20]}) <= 4
    in_order = list(sampler(dataset, shuffle=False))
    paths = [dataset.get_data_info(index)['img_path'] for index in in_order]
    places = [split_place(path) for path in paths]
    assert [(file, sample.first) for _, file, sample in places] == sorted((file, s.first) for _, file, s in places)
    assert order != in_order and sorted(order) == sorted(in_order) == list(range(93))
    within = list(sampler(dataset, buffer=1))
    files = [shard(dataset, index) for index in within]
    changes = sum(one != other for one, other in zip(files, files[1:]))
    assert changes == 9 and files[0] != shard(dataset, in_order[0])  # ten shards, one after the other, in another order


def test_epochs_differ_and_seeds_count(dataset):
    first, second = sampler(dataset), sampler(dataset)
    second.set_epoch(1)
    assert list(first) == list(sampler(dataset)) != list(second)


def test_goes_on_in_the_middle_of_an_epoch(dataset):
    whole = list(sampler(dataset, multiple=8))
    assert len(whole) == 88
    again = sampler(dataset, multiple=8)
    again.start = 24
    assert list(again) == whole[24:] and list(again) == whole


def test_row_groups_are_read_one_after_the_other(tmp_path):
    pytest.importorskip('pyarrow', reason='pyarrow is not installed')
    images = rows(SIZES)
    table = make_table([row[2] for row in images], [row[3] for row in images])
    write_parquet(tmp_path / 'train.parquet', table, group=SHARD)
    dataset = FolderDataset(str(tmp_path), split_dir='train.parquet')
    groups = [split_place(dataset.get_data_info(index)['img_path'])[2].first for index in sampler(dataset, buffer=1)]
    assert np.count_nonzero(np.diff(groups)) == 9 and groups != sorted(groups)


def test_wrapped_sets_and_loader(dataset):
    twice = torch.utils.data.ConcatDataset([dataset, dataset])
    twice.get_data_info = lambda index: dataset.get_data_info(index % 93)
    assert sorted(ShardSampler(twice, seed=0)) == list(range(186))


def test_images_in_files_of_their_own(tmp_path):
    with pytest.raises(ConfigError, match=r'ShardSampler needs images in shards, but .*cat_0\.png is not in one'):
        ShardSampler(FolderDataset(str(make_folders(tmp_path))), seed=0)
