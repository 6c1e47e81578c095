"""Seeded hold-outs and subsets."""

import random

import pytest
from mmengine.config import Config
from trees import class_counts, image_paths, save_small_image

from mmcfmask.datasets import FolderDataset
from mmcfmask.datasets.holdout import follow_run, split_holdout
from mmcfmask.errors import ConfigError


@pytest.mark.parametrize('setting', [dict(size=7), dict(size=9), dict(fraction=0.2), dict(fraction=0.01)])
def test_holdout_parts_are_disjoint_and_complete(root, setting):
    train, held_out = (
        FolderDataset(str(root), holdout=dict(setting, seed=3, part=part)) for part in ('train', 'held_out')
    )
    assert not set(image_paths(train)) & set(image_paths(held_out))
    assert set(image_paths(train)) | set(image_paths(held_out)) == set(image_paths(FolderDataset(str(root))))


def test_holdout_is_stratified(root):
    assert sorted(class_counts(FolderDataset(str(root), holdout=dict(size=8, part='held_out')))) == [2, 3, 3]
    assert class_counts(FolderDataset(str(root), holdout=dict(size=18, part='held_out'))) == [5, 6, 7]
    assert class_counts(FolderDataset(str(root), holdout=dict(fraction=0.25, part='held_out'))) == [2, 3, 4]
    assert class_counts(FolderDataset(str(root), holdout=dict(fraction=0.25, part='train'))) == [8, 9, 10]


def test_holdout_depends_on_seed_and_names_only(root):
    first = image_paths(FolderDataset(str(root), holdout=dict(size=9, seed=0, part='held_out')))
    assert image_paths(FolderDataset(str(root), holdout=dict(size=9, seed=0, part='held_out'))) == first
    assert image_paths(FolderDataset(str(root), holdout=dict(size=9, seed=1, part='held_out'))) != first

    images = dict(cat=[f'cat/{i}' for i in range(10)], dog=[f'dog/{i}' for i in range(10)])
    shuffled = {folder: random.Random(5).sample(members, 10) for folder, members in reversed(images.items())}
    split = split_holdout(images, part='held_out', size=5)
    other = split_holdout(shuffled, part='held_out', size=5)
    assert {folder: sorted(members) for folder, members in other.items()} == split
    # The same on every machine and in every version.
    assert split == dict(cat=['cat/2', 'cat/4'], dog=['dog/0', 'dog/7', 'dog/8'])


def test_large_holdout_is_lowered_with_a_warning(tmp_path, log):
    """Published is 10,240; a sample of ImageNet with one image per class must still run."""
    for index in range(20):
        save_small_image(tmp_path / f'class{index}' / 'only.png')
    parts = [FolderDataset(str(tmp_path), holdout=dict(size=10240, part=part)) for part in ('train', 'held_out')]
    assert [len(part) for part in parts] == [10, 10]
    assert any('holdout.size=10240 is more than half of the 20 images: holds out 10' in message for message in log)
    assert any('no image to train on in 10 of 20 classes' in message for message in log)


@pytest.mark.parametrize(
    'setting, message',
    [
        (dict(part='train'), 'needs either size or fraction'),
        (dict(size=3, fraction=0.1, part='train'), 'needs either size or fraction'),
        (dict(size=0, part='train'), 'size=0'),
        (dict(fraction=1.5, part='train'), 'between 0 and 1'),
        (dict(size=3), "part=None must be 'train' or 'held_out'"),
        (dict(size=3, part='val'), "part='val'"),
        (dict(siez=3, part='train'), 'no setting siez'),
        (dict(size=3, part='test'), "part='test' needs holdout="),
        (dict(size=3, test=0.1, part='test'), 'test=0.1 must be a positive number of images'),
        (dict(fraction=0.1, test=3, part='test'), 'test=3 must lie between 0 and 1'),
        (dict(fraction=0.5, test=0.5, part='test'), 'leave nothing to train on'),
        (dict(fraction=True, part='train'), 'fraction=True must lie'),
        (dict(size=3, seed='ran', part='train'), "seed='ran' must be a whole number, or 'run'"),
        (dict(size=3, test=3, test_seed='run', part='train'), "test_seed='run' must be a whole number"),
    ],
)
def test_bad_holdout(root, setting, message):
    with pytest.raises(ValueError, match=message):
        FolderDataset(str(root), holdout=setting)


@pytest.mark.parametrize('size', [1, 7, 50, 500])
def test_holdout_is_proportional_to_the_classes(size):
    """Within one image of each class's share, and in sum what was asked for."""
    rng = random.Random(size)
    images = {f'c{label}': [f'c{label}/{i}' for i in range(rng.randint(2, 60))] for label in range(40)}
    total = sum(map(len, images.values()))
    held_out = split_holdout(images, part='held_out', size=size)
    assert sum(map(len, held_out.values())) == size
    assert all(abs(len(held_out[folder]) - size * len(names) / total) < 1 for folder, names in images.items())


@pytest.mark.parametrize('setting', [dict(fraction=0.1, test=0.1), dict(fraction=0.25, test=0.4), dict(size=6, test=9)])
def test_three_parts(root, setting):
    """The test part is cut first, by its own seed; the seed of the hold-out splits the rest anew."""

    def parts(**seeds):
        return {
            part: set(image_paths(FolderDataset(str(root), holdout=dict(setting, **seeds, part=part))))
            for part in ('train', 'held_out', 'test')
        }

    first, second = parts(), parts(seed=1)
    for found in (first, second):
        assert sum(map(len, found.values())) == 36 and len(set.union(*found.values())) == 36
    assert first['test'] == second['test'] != parts(test_seed=1)['test']
    assert first['held_out'] != second['held_out'] and first['train'] != second['train']
    both = dict(size=setting['size']) if 'size' in setting else dict(fraction=setting['fraction'] + setting['test'])
    if 'fraction' in setting:  # training images are those of a hold-out without a test part
        assert first['train'] == set(image_paths(FolderDataset(str(root), holdout=dict(both, part='train'))))


def test_seed_of_the_run(root):
    follows = dict(fraction=0.25, seed='run', part='train')
    cfg = Config(
        dict(
            train_dataloader=dict(
                dataset=dict(type='ConcatDataset', datasets=[dict(holdout=follows), dict(holdout=None)])
            ),
            model=dict(head=dict(class_weights=dict(dataset=dict(holdout=dict(follows, seed=5), subset_seed='run')))),
        )
    )
    with pytest.raises(
        ConfigError,
        match="holdout.seed='run' stands for the seed of the run, but the run has none: set randomness.seed",
    ):
        follow_run(cfg, None)
    assert follow_run(cfg, 7) and not follow_run(cfg, 8)
    assert cfg.train_dataloader.dataset.datasets[0].holdout.seed == 7 and cfg.model.head.class_weights.dataset == dict(
        holdout=dict(follows, seed=5), subset_seed=7
    )
    with pytest.raises(ConfigError, match="subset_seed='run' stands for the seed of the run, but the run has none"):
        follow_run(dict(subset_seed='run'), None)
    with pytest.raises(
        ConfigError, match="'run' stands for the seed of a run, but there is no run here: give a number"
    ):
        FolderDataset(str(root), holdout=follows)
    with pytest.raises(ConfigError, match="'run' stands for the seed of a run, but there is no run here"):
        FolderDataset(str(root), per_class=2, subset_seed='run')


def test_holdout_that_leaves_nothing(tmp_path, log):
    for name in ('a', 'b'):
        save_small_image(tmp_path / name / '0.png')
    with pytest.raises(ConfigError, match='leaves no image to train on: no class has more than 1'):
        FolderDataset(str(tmp_path), holdout=dict(fraction=0.2, part='train'))
    save_small_image(tmp_path / 'a' / '1.png')
    assert class_counts(FolderDataset(str(tmp_path), holdout=dict(fraction=0.2, part='train'))) == [1, 0]
    assert 'no image to train on in 1 of 2 classes: b' in log[0]


def test_per_class(root):
    small, large = (FolderDataset(str(root), per_class=number) for number in (4, 8))
    assert class_counts(small) == [4, 4, 4] and class_counts(large) == [8, 8, 8]
    assert set(image_paths(small)) < set(image_paths(large))
    assert image_paths(FolderDataset(str(root), per_class=4, subset_seed=1)) != image_paths(small)
    held_out = FolderDataset(str(root), holdout=dict(fraction=0.5, part='held_out'))
    both = FolderDataset(str(root), holdout=dict(fraction=0.5, part='held_out'), per_class=2)
    assert class_counts(both) == [2, 2, 2] and set(image_paths(both)) < set(image_paths(held_out))
    with pytest.raises(ValueError, match=r'per_class=11, but 1 classes have fewer images: cat \(10\)'):
        FolderDataset(str(root), per_class=11)
    with pytest.raises(ValueError, match='at least 1'):
        FolderDataset(str(root), per_class=0)
