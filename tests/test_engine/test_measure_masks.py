"""Tables of relevance maps, against single maps measured one image at a time."""

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmpretrain.registry import DATASETS

from mmcfmask.counterfactual import patch_mask, relevance_map
from mmcfmask.engine.config import load_config
from mmcfmask.engine.mask_quality import MAPS, RANDOM, THRESHOLDS, describe_map, find_sets, measure_masks
from mmcfmask.engine.testing import build_model
from mmcfmask.errors import UserError
from mmcfmask.evaluation import area_under, average_precision, deletion_and_insertion, mask_iou, object_patches

CONFIG = 'configs/shapes/cfmask.py'
SMALL = [
    'train_dataloader.dataset.size=6',
    *(f'test_dataloader.{name}.dataset.size=4' for name in ('test', 'v2', 'r', 'sketch', 'a')),
]


def test_table_equals_maps_measured_one_by_one():
    options = [*SMALL, "model.data_preprocessor.relevance=dict(outliers=2.0, smooth='median')"]
    results = measure_masks(
        load_config(CONFIG, options), value=0.2, batch_size=4, compare=list(MAPS), shares=[0.25], sets=['train']
    )
    own = describe_map(dict(outliers=2.0, smooth='median'))
    assert own == "outliers=2.0, smooth='median'" and list(results) == ['train']
    assert list(results['train'].maps) == [*MAPS, own] and results['train'].images == 6

    cfg = load_config(CONFIG, options)
    model = build_model(cfg.model)
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    for name, relevance in {**MAPS, own: dict(outliers=2.0, smooth='median')}.items():
        rows, thresholds = [], []
        for i in range(6):
            item = dataset[i]
            inputs = model.data_preprocessor(dict(inputs=[item['inputs']]))['inputs']
            found = relevance_map(model, inputs, item['data_samples'].gt_label, **relevance)
            objects = torch.from_numpy(dataset.get_data_info(i)['gt_mask'])[None]
            truth = object_patches(objects, (8, 8))
            mask = patch_mask(found, 'object', 0.2)
            rows.append(
                [
                    average_precision(found, truth).item(),
                    100 * truth.flatten()[found.argmax()].item(),
                    mask_iou(mask, truth).item(),
                    mask.float().mean().item(),
                    mask_iou(mask, objects).item(),
                    mask_iou(patch_mask(found, 'object', share=0.25), truth).item(),
                ]
            )
            thresholds.append([mask_iou(patch_mask(found, 'object', t), truth).item() for t in THRESHOLDS])
        row = results['train'].maps[name]
        measured = [row[key] for key in ('ap', 'pointing', 'iou', 'masked', 'pixel_iou', 'iou_top_0.25')]
        np.testing.assert_allclose(measured, np.nanmean(rows, axis=0), rtol=1e-4, atol=1e-5)
        means = np.mean(thresholds, axis=0)
        assert row['threshold_iou'] == pytest.approx(means.max(), abs=1e-5)
        assert row['threshold'] in [t for t, mean in zip(THRESHOLDS, means) if mean > means.max() - 1e-5]


def test_by_default_only_the_map_of_the_config():
    results = measure_masks(load_config(CONFIG, SMALL), sets=['test', 'a'])
    assert list(results) == ['test', 'a'] and list(results['a'].maps) == ['published']
    better = [*SMALL, "model.data_preprocessor.relevance=dict(outliers=6.0, smooth='mean')"]
    results = measure_masks(load_config(CONFIG, better), sets=['test'])
    assert list(results['test'].maps) == ['outliers-mean'] and not results['test'].curves


def test_curves_equal_maps_measured_one_by_one():
    results = measure_masks(load_config(CONFIG, SMALL), steps=2, sets=['train'], num=3, seed=5, batch_size=2)['train']
    chosen = sorted(np.random.default_rng(5).permutation(6)[:3].tolist())
    cfg = load_config(CONFIG, SMALL)
    model = build_model(cfg.model)
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    curves = []
    for i in chosen:
        item = dataset[i]
        inputs = model.data_preprocessor(dict(inputs=[item['inputs']]))['inputs']
        labels = item['data_samples'].gt_label
        with torch.no_grad():
            curves.append(
                torch.stack(deletion_and_insertion(model, inputs, labels, relevance_map(model, inputs, labels), 2))
            )
    expected = torch.stack(curves).mean(dim=(0, 2))  # (deletion or insertion, step, probability or top-1)
    assert results.images == 3 and list(results.maps) == ['published', RANDOM]
    for curve, wanted in zip(results.curves['published'], expected):
        np.testing.assert_allclose(curve, wanted, atol=1e-5)
    row, areas = results.maps['published'], area_under(expected.mT)
    measured = [[row['deletion'], row['deletion_top1']], [row['insertion'], row['insertion_top1']]]
    np.testing.assert_allclose(measured, areas, atol=1e-5)


def test_bfloat16_is_near_float32():
    full, half = (measure_masks(load_config(CONFIG, SMALL), sets=['train'], amp=amp)['train'] for amp in (False, True))
    assert full.maps != half.maps
    assert full.maps['published']['ap'] == pytest.approx(half.maps['published']['ap'], abs=0.05)


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(value=float('nan')), '--value: the threshold of the object mask'),
        (dict(shares=[0.3, 1.5]), '--share: the share of patches'),
        (dict(compare=['outlier-mean']), '--maps: .*outlier-mean.*outliers-mean'),
        (dict(sets=['tset']), r'--sets: .*tset.*test.*; the config has train, test, v2'),
    ],
)
def test_mistakes_are_named(settings, message, monkeypatch):
    monkeypatch.setattr('mmcfmask.engine.mask_quality.build_model', None)
    with pytest.raises(UserError, match=message):
        measure_masks(load_config(CONFIG, SMALL), **settings)


def test_sets_without_objects_need_curves(tmp_path, tiny_pretrained_224):
    from PIL import Image

    for label in ('dog', 'elephant', 'giraffe', 'guitar', 'horse', 'house', 'person'):
        (tmp_path / 'photo' / label).mkdir(parents=True)
        for i in range(10):
            Image.effect_noise((60, 50), 90 + i).convert('RGB').save(tmp_path / 'photo' / label / f'{i}.png')
    options = [
        f'data_root={tmp_path}',
        "model.backbone.model_name='tiny-vit-224'",
        f'model.backbone.pretrained={tiny_pretrained_224}',
        'model.head.class_weights=None',
    ]
    with pytest.raises(UserError, match=r'no set of the config has gt_mask \(PACSDataset\)'):
        measure_masks(load_config('configs/pacs/zeroshot_vitb16.py', options), sets=['photo'])
    results = measure_masks(load_config('configs/pacs/zeroshot_vitb16.py', options), sets=['photo'], steps=1, num=2)
    row = results['photo'].maps['published']
    assert set(row) == {'deletion', 'insertion', 'deletion_top1', 'insertion_top1'}
    assert row['deletion'] == pytest.approx(row['insertion'])  # one step: from the image to the blurred one, and back


def test_sets_by_name():
    one, two, train = (dict(dataset=dict(type=name)) for name in ('One', 'Two', 'Train'))
    assert find_sets(Config(dict(test_dataloader=one)), None) == {'test': one['dataset']}
    several = Config(dict(train_dataloader=train, test_dataloader=dict(train=one, a=two)))
    assert list(find_sets(several, None)) == ['train', 'test/train', 'a'] and list(find_sets(several, ['a'])) == ['a']
