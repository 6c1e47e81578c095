from mmengine.registry import DefaultScope
from mmpretrain.registry import DATASETS
from shards import make_folders

from mmcfmask.datasets.wrappers import inner_configs, inner_datasets
from mmcfmask.evaluation import describe_set


def test_finds_what_reads_images(tmp_path):
    one, two = (
        dict(type='FolderDataset', data_root=str(make_folders(tmp_path / name)), pipeline=[dict(type='PackInputs')])
        for name in 'ab'
    )
    joined = dict(
        type='CachedDataset',
        cache_dir='gone',
        dataset=dict(type='ConcatDataset', datasets=[one, dict(type='RepeatDataset', times=2, dataset=two)]),
    )
    assert list(inner_configs(joined)) == [one, two] and list(inner_configs(one)) == [one]
    assert list(inner_configs(dict(type='Mine', datasets='a name'))) == [dict(type='Mine', datasets='a name')]
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        built = DATASETS.build(joined['dataset'])
    assert [dataset.data_root for dataset in inner_datasets(built)] == [one['data_root'], two['data_root']]
    described = describe_set(built)
    assert described['root'] == one['data_root'] and described['images'] == 54 and described['classes'] == 3
    assert described['transform'] == describe_set(next(inner_datasets(built)))['transform'] != []
