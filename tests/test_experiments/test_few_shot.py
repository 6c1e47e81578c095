"""Studies with several numbers of training images per class. Nothing trains."""

import copy
import json

import pytest
from mmpretrain.registry import DATASETS
from rich.console import Console
from test_plan import ROOT, SHAPES
from trees import make_waterbirds

from mmcfmask.datasets.holdout import follow_run
from mmcfmask.errors import ConfigError
from mmcfmask.reporting.runs import FORMAT

PACS = str(ROOT / 'configs' / 'pacs' / '{config}_vitb16.py')


def test_every_number_is_a_data_set_of_its_own(study, labels, tmp_path):
    methods = {'Zero-shot': 'zeroshot', 'FT': 'ft', 'W': dict(wise_ft='FT'), 'LP': dict(config='lp', datasets=['b'])}
    planned = study(methods, per_class=[1, 4], datasets={'a': SHAPES, 'b': SHAPES})
    assert labels(planned)[:4] == [
        'a-1-per-class Zero-shot',
        'a-1-per-class FT (seed 0)',
        'a-1-per-class W (seed 0)',
        'a-4-per-class Zero-shot',
    ]
    assert [label for label in labels(planned) if 'LP' in label] == [
        'b-1-per-class LP (seed 0)',
        'b-4-per-class LP (seed 0)',
    ]
    jobs = {job.label: job for job in planned.jobs}
    assert jobs['a-4-per-class FT (seed 0)'].product == tmp_path / 'a-4-per-class' / 'ft' / 'seed0' / 'metrics.json'
    assert jobs['a-1-per-class FT (seed 0)'].key != jobs['a-4-per-class FT (seed 0)'].key
    assert jobs['a-1-per-class Zero-shot'].key == jobs['a-4-per-class Zero-shot'].key  # it sees no training image
    alone = study({'FT': SHAPES.format(config='ft')}, per_class=[2], datasets={})
    assert labels(alone) == ['2-per-class FT (seed 0)']


def test_head_and_training_see_the_same_images_of_the_seed(study):
    """A linear probe, class means and the training; the held-out images stay."""
    methods = {'FT': 'ft', 'LP-FT': 'lpft', 'Zero-shot': 'zeroshot'}
    parts = ('train_dataloader', 'val_dataloader', 'model.head.class_weights')
    options = {f'{part}.dataset.holdout.seed': 'run' for part in parts}
    planned = study(methods, per_class=[4], datasets={'pacs': PACS}, cfg_options=options)
    for method in ('FT', 'LP-FT'):
        cfg = copy.deepcopy(planned.plan.configs['pacs-4-per-class', method])
        assert cfg.train_dataloader.dataset.per_class == 4 and cfg.train_dataloader.dataset.subset_seed == 'run'
        assert cfg.model.head.class_weights.dataset == cfg.train_dataloader.dataset
        assert 'per_class' not in cfg.val_dataloader.dataset
        assert (cfg.train_dataloader.batch_size, cfg.total_batch_size) == (28, 28)  # 7 classes
        follow_run(cfg, 5)
        assert cfg.train_dataloader.dataset.subset_seed == cfg.model.head.class_weights.dataset.subset_seed == 5
    assert planned.plan.configs['pacs-4-per-class', 'FT'].model.head.class_weights.per_class == 4
    zero_shot = planned.plan.configs['pacs-4-per-class', 'Zero-shot'].model.head.class_weights
    assert zero_shot.per_class == zero_shot.dataset.per_class == 4
    large = study(methods, per_class=[90], datasets={'pacs': PACS}).plan.configs['pacs-90-per-class', 'FT']
    assert large.model.head.class_weights.per_class == 60 and large.model.head.class_weights.dataset.per_class == 90


@pytest.mark.parametrize(
    'number, batch, total, expected',
    [
        (1, 64, 64, (10, 10)),
        (4, 64, 64, (40, 40)),
        (16, 64, 64, (64, 64)),
        (4, 16, 64, (16, 32)),
        (4, 16, None, (16, None)),
    ],
)
def test_a_batch_is_no_larger_than_the_training_set(study, number, batch, total, expected):
    options = {'train_dataloader.batch_size': batch, 'total_batch_size': total}
    cfg = study({'FT': 'ft'}, per_class=[number], cfg_options=options).plan.configs[f'shapes-{number}-per-class', 'FT']
    assert (cfg.train_dataloader.batch_size, cfg.total_batch_size) == expected
    assert len(DATASETS.build(dict(cfg.train_dataloader.dataset, subset_seed=0))) == 10 * number >= expected[0]


def test_csv_sets(study, tmp_path):
    make_waterbirds(tmp_path / 'birds')
    config = str(ROOT / 'configs' / 'waterbirds' / '{config}_vitb16.py')
    options = {'data_root': str(tmp_path / 'birds')}
    planned = study({'FT': 'ft'}, per_class=[3], datasets={'birds': dict(config=config, cfg_options=options)})
    cfg = planned.plan.configs['birds-3-per-class', 'FT']
    follow_run(cfg, 1)
    assert sorted(DATASETS.build(cfg.train_dataloader.dataset).get_gt_labels()) == [0] * 3 + [1] * 3


@pytest.mark.parametrize('key', ['per_class', 'subset_seed'])
def test_only_the_study_chooses_the_training_images(study, key):
    entry = dict(config='ft', cfg_options={f'train_dataloader.dataset.{key}': 1})
    message = rf"methods\['FT'\]: .*per_class of the study chooses .*, but so does train_dataloader.dataset.{key}"
    with pytest.raises(ConfigError, match=message):
        study({'FT': entry}, per_class=[1, 2])


def test_tables_and_curves(study, tmp_path):
    planned = study({'FT': 'ft', 'FD': 'fd'}, per_class=[1, 4], seeds=[0, 1])
    values = iter(range(40, 80))
    for job in planned.jobs[:-1]:
        job.prepare()
        top1 = float(next(values))
        sets = {'test': dict(metrics=dict(top1=top1), notes=[]), 'a': dict(metrics=dict(top1=top1 / 2), notes=[])}
        content = dict(format=FORMAT, method='x', seed=None, id_set='test', sets=sets)
        job.product.write_text(json.dumps(content))
    planned.write_results(Console(quiet=True))
    assert (tmp_path / 'shapes-1-per-class' / 'results.md').is_file()
    lines = (tmp_path / 'few_shot_shapes.md').read_text().splitlines()
    assert '| FT | 40.5 ± 0.7 | 44.5 ± 0.7 |' in lines and '| FD | 42.5 ± 0.7 | 46.0 |' in lines
    assert '| FD | 21.2 ± 0.4 | 23.0 |' in lines  # the average over shifts
    assert (tmp_path / 'few_shot_shapes.png').stat().st_size > 1000
