"""Waterbirds from training to metrics.json, and its published zero-shot model on real images."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from trees import make_waterbirds, save_image

from mmcfmask.engine.config import load_config
from mmcfmask.engine.run_test import run_test
from mmcfmask.engine.run_training import run_training
from mmcfmask.engine.run_wise_ft import run_wise_ft
from mmcfmask.errors import ConfigError

CONFIGS = Path(__file__).parents[2] / 'configs' / 'waterbirds'
REAL = Path(os.environ.get('MMCFMASK_TEST_DATA', '/nowhere'))


@pytest.fixture
def options(tmp_path, tiny_pretrained):
    make_waterbirds(tmp_path / 'waterbirds', image=lambda path: save_image(path, seed=int(path.stem[-4:])))
    np.save(tmp_path / 'text.npy', np.random.default_rng(0).normal(size=(1000, 16)))
    return {
        'data_root': str(tmp_path / 'waterbirds'),
        'image_size': 32,
        'model.backbone.model_name': 'tiny-vit',
        'model.backbone.pretrained': tiny_pretrained,
        'model.head.class_weights.path': str(tmp_path / 'text.npy'),
        'test_dataloader.test.num_workers': 0,
    }


TRAINING = {
    'train_dataloader.batch_size': 4,
    'total_batch_size': 4,
    **{f'{mode}_dataloader.num_workers': 0 for mode in ('train', 'val')},
    **{f'{mode}_dataloader.persistent_workers': False for mode in ('train', 'val')},
}


@pytest.mark.parametrize('chosen_by', ['accuracy/top1', 'accuracy/worst_group'])
def test_metrics_say_what_chose_the_checkpoint(tmp_path, options, chosen_by):
    config, run = CONFIGS / 'ft_vitb16.py', tmp_path / 'run'
    run_training(config, {**options, **TRAINING, 'default_hooks.checkpoint.save_best': chosen_by}, work_dir=run)
    metrics = run_test(config, run / 'best.pth', options, out=tmp_path / 'metrics.json', work_dir=tmp_path / 'test')
    assert metrics['selected_by'] == chosen_by and json.loads((tmp_path / 'metrics.json').read_text()) == metrics
    assert metrics['ood_average'] is None and metrics['id_set'] == 'test'
    part = metrics['sets']['test']
    assert part['metrics']['worst_group'] == min(group['accuracy'] for group in part['groups'].values())
    assert [(group['count'], group['train_count']) for group in part['groups'].values()] == [
        (4, 6),
        (4, 3),
        (3, 2),
        (3, 5),
    ]
    assert part['notes'] == ['incomplete: 14 of 5,794 images']
    last = run_test(config, run / 'epoch_1.pth', options, work_dir=tmp_path / 'test')
    assert last['selected_by'] is None
    run_wise_ft(config, run / 'best.pth', options, alphas=[0.5], save=0.5, work_dir=run)
    line, middle = (json.loads((run / 'wise_ft' / name).read_text()) for name in ('wise_ft.json', 'metrics.json'))
    assert middle['selected_by'] == chosen_by and 'groups' not in line['sets']['test']
    assert set(middle['sets']['test']['groups']) == set(part['groups'])
    again = run_test(config, run / 'wise_ft' / 'wise_ft_0.5.pth', options, work_dir=tmp_path / 'test')
    assert again['selected_by'] == chosen_by and again['metrics'] == pytest.approx(middle['metrics'], abs=1e-4)


def test_linear_probe_follows_the_part_of_the_training_images():
    options = {'train_dataloader.dataset.fraction': 0.33, 'data_root': 'birds'}
    cfg = load_config(str(CONFIGS / 'lpft_vitb16.py'), options)
    start = cfg.model.head.class_weights
    assert start.dataset == cfg.train_dataloader.dataset and start.dataset.fraction == 0.33
    assert start.held_out == cfg.val_dataloader.dataset and start.held_out.data_root == 'birds'


def test_missing_file_is_found_before_the_run(tmp_path, options):
    (tmp_path / 'waterbirds' / 'metadata.csv').unlink()
    with pytest.raises(FileNotFoundError, match='train_dataloader.dataset: there is no file .*metadata.csv'):
        run_training(CONFIGS / 'ft_vitb16.py', options, work_dir=tmp_path / 'run')
    with pytest.raises(FileNotFoundError, match='test_dataloader.test.dataset: there is no file .*metadata.csv'):
        run_test(CONFIGS / 'zeroshot_vitb16.py', options=options, work_dir=tmp_path / 'run')


@pytest.mark.parametrize(
    'rows, message',
    [
        ([[0], [1], [2]], 'model.head: class_weights.rows gives 3 classes, but num_classes=2'),
        ('birds', "model.head: class_weights.rows='birds' is unknown"),
        ([[0], []], 'model.head: class_weights.rows: class 1 is'),
    ],
)
def test_rows_are_checked_before_the_run(tmp_path, options, rows, message):
    with pytest.raises(ConfigError, match=message):
        run_training(
            CONFIGS / 'ft_vitb16.py', {**options, 'model.head.class_weights.rows': rows}, work_dir=tmp_path / 'run'
        )


def test_pipeline_without_the_group(tmp_path, options):
    pipeline = [dict(type='LoadImageFromFile'), dict(type='ResizeCenterCrop', image_size=32), dict(type='PackInputs')]
    with pytest.raises(ConfigError, match="has no group: .* meta_keys=\\('sample_idx', 'img_path', 'group'\\)"):
        run_test(CONFIGS / 'zeroshot_vitb16.py', options={**options, 'pipeline': pipeline}, work_dir=tmp_path / 'run')


@pytest.mark.slow
@pytest.mark.skipif(not (REAL / 'waterbirds').is_dir(), reason='needs $MMCFMASK_TEST_DATA/waterbirds and weights')
def test_real_zero_shot(tmp_path):
    """CLIP ViT-B/16 at 112 pixels with text embeddings, on 1,600 test images."""
    options = {
        'data_root': str(REAL / 'waterbirds'),
        'image_size': 112,
        'model.backbone.pretrained': str(REAL / 'vitb16.pt'),
        'model.head.class_weights.path': str(REAL / 'imagenet_text_photo.npy'),
    }
    run = run_test(CONFIGS / 'zeroshot_vitb16.py', options=options, work_dir=tmp_path)
    metrics = run['sets']['test']['metrics']
    assert metrics['worst_group'] == pytest.approx(23.75, abs=0.5)
    assert metrics['top1'] == pytest.approx(61.9, abs=0.5) and metrics['group_average'] == pytest.approx(88.5, abs=0.5)
