"""Leave-one-domain-out in DomainBed's layout."""

import pytest
import trees

from mmcfmask.datasets import DomainDataset, MissingSetError
from mmcfmask.datasets.published import BENCHMARKS, DOMAIN_IMAGES
from mmcfmask.errors import ConfigError

CLASSES = ('bird', 'car', 'chair', 'dog', 'person')


@pytest.fixture
def root(tmp_path):
    trees.make_domains(tmp_path / 'VLCS')
    return tmp_path


def domains_of(dataset):
    return {path.split('/')[-3] for path in trees.image_paths(dataset)}


def test_one_domain_is_left_out(root):
    others = DomainDataset(str(root), 'vlcs', left_out='SUN09')
    away = DomainDataset(str(root / 'VLCS'), 'vlcs', left_out='sun 09', use='left_out')
    everything = DomainDataset(str(root), 'vlcs')
    assert domains_of(others) == {'Caltech101', 'LabelMe', 'VOC2007'} and domains_of(away) == {'SUN09'}
    assert set(trees.image_paths(others)) | set(trees.image_paths(away)) == set(trees.image_paths(everything))
    assert (len(others), len(away), len(everything)) == (150, 50, 200)
    for dataset in (others, away):
        assert dataset.metainfo['classes'] == dataset.metainfo['folders'] == CLASSES
        for index in range(len(dataset)):
            item = dataset.get_data_info(index)
            *_, domain, folder, _ = item['img_path'].split('/')
            assert CLASSES[item['gt_label']] == folder and dataset.metainfo['group_names'][item['group']] == domain
    assert others.metainfo['protocol'] == dict(
        images=1415 + 2656 + 3376, num_classes=5, source=BENCHMARKS['vlcs'].source
    )


def test_every_domain_is_split_alike(root):
    """Hold-outs are disjoint, and stratified by domain and class."""
    split = dict(fraction=0.2, seed=0, test=0.1)
    parts = {
        part: DomainDataset(str(root), 'vlcs', left_out='SUN09', holdout=dict(**split, part=part))
        for part in ('train', 'held_out', 'test')
    }
    paths = [path for dataset in parts.values() for path in trees.image_paths(dataset)]
    assert len(paths) == len(set(paths)) == 150
    for part, count in dict(train=7, held_out=2, test=1).items():
        places = [path.rpartition('/')[0] for path in trees.image_paths(parts[part])]
        assert {place: places.count(place) for place in places} == dict.fromkeys(places, count) and len(
            set(places)
        ) == 15
    assert parts['train'].metainfo['protocol']['images'] is None


def test_published_counts():
    for name, images in DOMAIN_IMAGES.items():
        if None not in images.values():
            assert sum(images.values()) == BENCHMARKS[name].images, name


def test_names_of_folders_may_differ(tmp_path):
    for domain in ('Art', 'Clipart', 'Product', 'RealWorld'):
        trees.make_tree(tmp_path / 'office_home' / domain, ['Bed', 'Bike'])
    dataset = DomainDataset(str(tmp_path), 'office-home', left_out='Real World', use='left_out')
    assert domains_of(dataset) == {'RealWorld'} and dataset.metainfo['group_names'] == ('Real World',)


def test_errors(root):
    with pytest.raises(ConfigError, match="unknown benchmark='office home', .*Did you mean 'office-home'"):
        DomainDataset(str(root), 'office home')
    with pytest.raises(
        ConfigError, match="vlcs has no domain left_out='SUN10', but Caltech101, .*Did you mean 'SUN09'"
    ):
        DomainDataset(str(root), 'vlcs', left_out='SUN10')
    for options in (dict(use='left_out'), dict(use='rest', left_out='SUN09')):
        with pytest.raises(ConfigError, match="use is 'others', or 'left_out' with the name of a domain"):
            DomainDataset(str(root), 'vlcs', **options)
    with pytest.raises(ConfigError, match='holdout takes a fraction of each domain, not a size'):
        DomainDataset(str(root), 'vlcs', holdout=dict(size=10, part='train'))
    with pytest.raises(MissingSetError, match='Terra Incognita was not found'):
        DomainDataset(str(root), 'terra-incognita')
    (root / 'VLCS' / 'VOC2007' / 'dog').rename(root / 'VLCS' / 'VOC2007' / 'dogs')
    with pytest.raises(ConfigError, match='VOC2007: 1 of 5 class folders are missing: dog; .*not known classes: dogs'):
        DomainDataset(str(root), 'vlcs')
    (root / 'VLCS' / 'SUN09').rename(root / 'VLCS' / 'SUN')
    with pytest.raises(
        MissingSetError, match='no folder of the domain SUN09; there are Caltech101, LabelMe, SUN, VOC2007'
    ):
        DomainDataset(str(root), 'vlcs')
