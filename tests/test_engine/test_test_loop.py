"""Evaluation on several sets, with a model whose answers are known."""

import os
import re

import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import default_collate
from oracle import config, loader, save_image, write_tree
from torch.utils.data import DataLoader, Dataset

from mmcfmask.datasets import MissingSetError
from mmcfmask.engine.build import build_runner
from mmcfmask.engine.test_loop import ChainedLoaders, choose_shifts, split_metrics
from mmcfmask.errors import StorageError

SUBSET = tuple((index,) for index in range(3, 1000, 50))  # 20 classes of 1000, as ImageNet-R and -A are 200


MANY = ((0, 10), (5,), (700, 701, 999), (2,))  # as ObjectNet: several outputs mean one class


@pytest.fixture(scope='module')
def trees(tmp_path_factory):
    root = tmp_path_factory.mktemp('trees')
    write_tree(root / 'subset', SUBSET, 2)
    write_tree(root / 'many', MANY, 3)
    write_tree(root / 'wrong', SUBSET, 2, wrong=0.4)
    return root


def sets(trees, batch_size=7):
    return {
        'id': loader(trees / 'subset', batch_size, SUBSET),
        'subset': loader(trees / 'wrong', batch_size, SUBSET),
        'many': loader(trees / 'many', batch_size, MANY),
    }


def run(cfg):
    runner = build_runner(Config(cfg))
    return runner.test(), runner.test_loop


def test_knows_the_answers(trees, tmp_path):
    """100 on every set, though outputs that the sets do not have are higher on every image."""
    loaders = {'id': loader(trees / 'subset', 7, SUBSET), 'many': loader(trees / 'many', 7, MANY)}
    metrics, _ = run(config(loaders, tmp_path, dict(distracted=(1, 500, 998))))
    assert {name: value for name, value in metrics.items() if name.split('/')[1] in ('top1', 'mean_per_class')} == {
        'id/top1': 100,
        'id/mean_per_class': 100,
        'many/top1': 100,
        'many/mean_per_class': 100,
        'ood_average/top1': 100,
    }
    assert 'many/top5' not in metrics and metrics['id/top5'] == 100


def test_scores_of_a_head_without_logits(trees, tmp_path):
    loaders = {'id': loader(trees / 'subset', 7, SUBSET), 'many': loader(trees / 'many', 7, MANY)}
    metrics, _ = run(config(loaders, tmp_path, dict(scores_only=True, distracted=(1,))))
    assert metrics['id/top1'] == metrics['many/top1'] == 100


def test_set_of_other_classes_without_groups_is_refused(trees, tmp_path):
    """A 1000-way argmax on a set of 20 classes, whose labels are 0..19, scores about nothing: it must not run."""
    loaders = {'id': loader(trees / 'subset', 7, SUBSET), 'shift': loader(trees / 'subset', 7)}
    with pytest.raises(
        ValueError, match=r"test_dataloader\['shift'\] has 20 classes .* but model.head.num_classes=1000"
    ):
        run(config(loaders, tmp_path))
    loaders['shift'] = loader(trees / 'subset', 7, SUBSET[:19])
    with pytest.raises(ValueError, match=r"test_dataloader\['shift'\] has 20 classes, but 19 label_groups"):
        run(config(loaders, tmp_path))
    loaders['shift'] = loader(trees / 'subset', 7, (*SUBSET[:19], (1000,)))
    with pytest.raises(
        ValueError, match=r"test_dataloader\['shift'\] does not fit .* names the outputs 1000, but the head has 1000"
    ):
        run(config(loaders, tmp_path))


def test_sets_of_other_folders_are_refused(tmp_path):
    """As many folders, but labels are their order: 'ant' would be scored as the class of 'bee'."""

    def tree(*names, **settings):
        for index, name in enumerate(names):
            save_image(tmp_path / '-'.join(names) / name / '0.png', index)
        return loader(tmp_path / '-'.join(names), **settings)

    def test(**shift):
        return run(
            config(
                dict(id=tree('bee', 'cat'), shift=tree('ant', 'bee', **shift)), tmp_path / 'run', dict(num_classes=2)
            )
        )

    with pytest.raises(
        ValueError,
        match=r"class 0 is the folder 'ant' in the dataset of test_dataloader\['shift'\], but 'bee' in "
        r"test_dataloader\['id'\]: .*FolderShiftDataset",
    ):
        test()
    with pytest.raises(ValueError, match="class 0 is the folder 'ant'"):
        test(classes=['bee', 'cat'])  # names to show change nothing
    test(folders=['bee', 'ant'])


def test_metrics_and_ood_average(trees, tmp_path):
    metrics, loop = run(config(sets(trees), tmp_path))
    assert 0 < metrics['subset/top1'] < 100
    assert metrics['ood_average/top1'] == (metrics['subset/top1'] + metrics['many/top1']) / 2 and loop.averaged == [
        'subset',
        'many',
    ]
    for name, images in (('id', 40), ('subset', 40), ('many', 12)):
        result = loop.results[name]
        assert (
            result['metrics']['top1'] == metrics[f'{name}/top1']
            and sum(result['details']['per_class_count'].values()) == images
        )
        speed = result['speed']
        assert speed['images_per_second'] > 0 and 0 < speed['forward'] < images / speed['images_per_second']
        assert speed['data'] + speed['forward'] + speed['metric'] <= images / speed['images_per_second'] + 1e-6
    (log,) = tmp_path.glob('*/*.log')
    assert re.search(
        r'many: \d+\.\d s, [\d.]+ images/s \(data [\d.]+ s, forward [\d.]+ s, metric [\d.]+ s\)', log.read_text()
    )


def test_independent_of_batch_size_and_workers(trees, tmp_path):
    whole = run(config(sets(trees, 64), tmp_path / '64'))[0]
    for name, settings in {
        '1': dict(batch_size=1),
        '7': dict(batch_size=7),
        'w': dict(batch_size=7, num_workers=2),
    }.items():
        loaders = sets(trees)
        for part in loaders.values():
            part.update(settings, persistent_workers='num_workers' in settings)
        assert run(config(loaders, tmp_path / name))[0] == whole


class Priority(Dataset):
    """Of the process that reads it."""

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return os.nice(0)


@pytest.mark.skipif(torch.cuda.is_available(), reason='a GPU leaves the cores to the workers')
def test_workers_give_way_to_the_forward_pass(trees, tmp_path):
    own = dict(type='default_collate')  # any registered function
    loaders = {
        'id': loader(trees / 'subset', 7, SUBSET),
        'many': {**loader(trees / 'many', 7, MANY), 'worker_init_fn': own},
    }
    loaders = build_runner(Config(config(loaders, tmp_path))).test_loop.loaders
    (priority,) = DataLoader(Priority(), None, num_workers=1, worker_init_fn=loaders['id'].worker_init_fn)
    assert priority == 19 and os.nice(0) < 19
    assert loaders['many'].worker_init_fn.func is default_collate


def test_own_metrics_of_a_set(trees, tmp_path):
    evaluator = dict(type='ShiftAccuracy', evaluators=dict(many=[dict(type='ShiftAccuracy', keep_predictions=True)]))
    metrics, loop = run(config(sets(trees), tmp_path, evaluator=evaluator))
    assert (
        len(loop.results['many']['details']['predictions']) == 12
        and loop.results['id']['details']['predictions'] is None
    )
    with pytest.raises(ValueError, match='has no metric for id'):
        run(config(sets(trees), tmp_path, evaluator=dict(evaluators=dict(many=dict(type='ShiftAccuracy')))))


def test_missing_sets(trees, tmp_path):
    loaders = {**sets(trees), 'gone': loader(tmp_path / 'gone', 7, SUBSET)}
    with pytest.raises(MissingSetError, match=r"test_dataloader\['gone'\]: there is no .*gone: get it from the shop"):
        run(config(loaders, tmp_path))
    metrics, loop = run(config(loaders, tmp_path, skip_missing=True))
    assert (
        list(loop.missing) == ['gone']
        and 'get it from the shop' in loop.missing['gone']
        and loop.averaged == ['subset', 'many']
    )
    assert not any(name.startswith('gone') for name in metrics)
    with pytest.raises(MissingSetError, match='gone'):  # named sets only may be missing
        run(config(loaders, tmp_path, skip_missing=['id']))
    _, loop = run(config(loaders, tmp_path, id_set='gone', skip_missing=True))
    assert list(loop.results) == ['id', 'subset', 'many']
    with pytest.raises(MissingSetError, match='none of the sets was found:\ngone: there is no .*\nlost: there is no'):
        run(config({'gone': loader(tmp_path / 'gone'), 'lost': loader(tmp_path / 'lost')}, tmp_path, skip_missing=True))


def test_other_errors_of_a_set_are_no_missing_set(trees, tmp_path):
    (tmp_path / 'empty' / 'class0').mkdir(parents=True)
    with pytest.raises(ValueError, match='no images in the 1 class folders'):
        run(config({**sets(trees), 'empty': loader(tmp_path / 'empty')}, tmp_path, skip_missing=True))


def test_choice_of_shifts(trees, tmp_path):
    metrics, loop = run(config(sets(trees), tmp_path, shifts=['many']))
    assert set(loop.results) == {'id', 'many'} and metrics['ood_average/top1'] == metrics['many/top1']
    metrics, loop = run(config(sets(trees), tmp_path, shifts=[]))
    assert set(loop.results) == {'id'} and 'ood_average/top1' not in metrics
    with pytest.raises(
        ValueError, match=r"test_dataloader: '../esc' becomes the name of a file or folder, so it must be a plain name"
    ):
        run(config({**sets(trees), '../esc': loader(trees / 'many')}, tmp_path))
    with pytest.raises(ValueError, match="no such shift: 'mny'; the shifts of this config are subset, many"):
        run(config(sets(trees), tmp_path, shifts=['mny']))
    with pytest.raises(ValueError, match="'id' is the in-distribution set, which always runs"):
        choose_shifts(sets(trees), 'id', ['id', 'many'])
    with pytest.raises(ValueError, match="id_set='test' is not among the test sets id, subset, many"):
        run(config(sets(trees), tmp_path, id_set='test'))
    with pytest.raises(ValueError, match='dict.<name of set>'):
        run(config(loader(trees / 'subset'), tmp_path))


def test_batches_may_not_be_dropped(trees, tmp_path):
    loaders = sets(trees)
    loaders['many']['drop_last'] = True
    with pytest.raises(ValueError, match=r"test_dataloader\['many'\].drop_last=True would leave out images"):
        run(config(loaders, tmp_path))


def test_unreadable_image_is_named(trees, tmp_path):
    write_tree(tmp_path / 'set', SUBSET, 1)
    path = tmp_path / 'set' / 'class0004' / '0.png'
    path.write_bytes(path.read_bytes()[:-25])
    for workers in (0, 1):
        with pytest.raises(StorageError, match='class0004/0.png cannot be read as an image'):
            run(config({'id': loader(tmp_path / 'set', 4, SUBSET, workers)}, tmp_path / 'run'))


class Loader:
    """Says when it is started, and hands out its batches."""

    def __init__(self, name, size, log, num_workers=2):
        self.name, self.size, self.log, self.num_workers, self.dataset = name, size, log, num_workers, name

    def __len__(self):
        return self.size

    def __iter__(self):
        self.log.append(f'start {self.name}')
        return iter([f'{self.name}{i}' for i in range(self.size)])


def test_next_set_starts_while_the_last_batches_of_this_one_are_read():
    log = []
    sequence = ChainedLoaders({'a': Loader('a', 4, log), 'b': Loader('b', 1, log), 'c': Loader('c', 2, log, 0)})
    assert len(sequence) == 7
    for name, batches in sequence:
        assert sequence.dataset == name
        for batch in batches:
            log.append(batch)
    # With the second of four batches in hand, the last two are being read by a's two workers.
    assert log == ['start a', 'a0', 'start b', 'a1', 'a2', 'a3', 'start c', 'b0', 'c0', 'c1']


def test_bfloat16(trees, tmp_path):
    dtypes = []

    runner = build_runner(Config(config(sets(trees), tmp_path, amp=True)))
    forward = runner.model.forward

    def watching(*args, **kwargs):
        dtypes.append(torch.is_autocast_enabled('cpu') and torch.get_autocast_dtype('cpu'))
        return forward(*args, **kwargs)

    runner.model.forward = watching
    runner.test()
    assert set(dtypes) == {torch.bfloat16}


def test_metrics_that_are_no_numbers():
    numbers, others = split_metrics(
        {'r/top1': torch.tensor(3), 'r/nll': 0.5, 'r/confusion': torch.eye(2), 'r/name': 'x'}
    )
    assert numbers == {'r/top1': 3.0, 'r/nll': 0.5} and others == {
        'r/confusion': [[1.0, 0.0], [0.0, 1.0]],
        'r/name': 'x',
    }
