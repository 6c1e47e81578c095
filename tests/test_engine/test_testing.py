"""Models for tests and for inference, from a config and a checkpoint."""

import mmcv
import pytest
import torch
from mmengine.config import Config
from mmpretrain import ImageClassificationInferencer, get_model
from mmpretrain.registry import DATASETS

from mmcfmask.engine.config import load_config
from mmcfmask.engine.testing import (
    add_gate,
    add_relevance_crop,
    inference_config,
    name_method,
    skip_pretrained_weights,
)
from mmcfmask.errors import ConfigError


def test_config_for_the_inference_of_mmpretrain(tmp_path):
    """Its inferencer gives what the classifier gives, of the pretrained weights and of a checkpoint."""
    cfg = inference_config('configs/shapes/cfmask.py')
    dataset = DATASETS.build({**cfg.test_dataloader.dataset, 'size': 20, 'pipeline': []})
    for index in range(4):
        mmcv.imwrite(dataset.get_data_info(index)['img'][..., ::-1], str(tmp_path / f'{index}.png'))
    model = get_model(cfg)
    assert model.teacher is None
    with torch.no_grad():
        model.head.fc.weight.copy_(model.head.fc.weight.roll(1, 0))  # other answers than those of the start
    classes, checkpoint = dataset.metainfo['classes'], str(tmp_path / 'rolled.pth')
    torch.save(dict(state_dict=model.state_dict(), meta=dict(dataset_meta=dict(classes=classes))), checkpoint)
    images = sorted(map(str, tmp_path.glob('*.png')))
    start, rolled = (
        ImageClassificationInferencer(inference_config('configs/shapes/cfmask.py', weights))(images)
        for weights in (None, checkpoint)
    )
    labels = [dataset.get_data_info(index)['gt_label'] for index in range(4)]
    assert sum(result['pred_label'] == label for result, label in zip(start, labels)) >= 3
    assert [result['pred_label'] for result in rolled] == [(result['pred_label'] + 1) % 10 for result in start]
    assert [result['pred_class'] for result in rolled] == [classes[result['pred_label']] for result in rolled]


def test_knn_gate_of_the_training_and_validation_images():
    path = 'configs/shapes/cfmask.py'
    cfg = load_config(path, {'train_dataloader.num_workers': 3, 'train_dataloader.dataset.size': 80})
    add_gate(cfg)
    assert cfg.model.knn_gate == dict(dataset=cfg.train_dataloader.dataset, held_out=cfg.val_dataloader.dataset)
    own = dict(level=0.1, dataset=dict(type='ShapesDataset'))
    cfg = load_config(path, {'model.knn_gate': own, 'model.knn_gate.held_out.size': 60})
    add_gate(cfg)
    assert cfg.model.knn_gate == dict(
        level=0.1, dataset=dict(type='ShapesDataset'), held_out=dict(cfg.val_dataloader.dataset, size=60)
    )
    skip_pretrained_weights(cfg.model)
    assert 'knn_gate' not in cfg.model
    cfg = load_config(path, {'model.knn_gate.a': 1.2, 'model.knn_gate.type': 'VRF'}, complete=False)
    add_gate(cfg, 'VRF')
    assert cfg.model.knn_gate.type == 'VRF' and cfg.model.knn_gate.a == 1.2
    assert cfg.model.knn_gate.dataset == cfg.train_dataloader.dataset
    with pytest.raises(ConfigError, match="the k-NN gate was asked for, but model.knn_gate.type='VRF': leave one"):
        add_gate(cfg)
    with pytest.raises(ValueError, match='the k-NN gate needs .* but the config has no train_dataloader.dataset'):
        add_gate(load_config('configs/shapes/zeroshot.py', {}))
    with pytest.raises(ConfigError, match="gate needs a CounterfactualClassifier, but model.type='ImageClassifier'"):
        add_gate(Config(dict(model=dict(type='ImageClassifier'))))


def test_relevance_crop():
    cfg = load_config('configs/shapes/cfmask.py', {})
    add_relevance_crop(cfg, 0.8)
    assert cfg.model.crop_scale == 0.8
    with pytest.raises(
        ValueError, match="the relevance crop needs a CounterfactualClassifier, but model.type='ImageClassifier'"
    ):
        add_relevance_crop(Config(dict(model=dict(type='ImageClassifier'))), 0.8)


def test_name_says_what_was_tested():
    probe = dict(head=dict(class_weights=dict(type='linear_probe')))
    for model, meta, name in (
        (dict(), {}, 'ft'),
        (dict(knn_gate=dict(level=0.1)), {}, 'ft + k-NN gate'),
        (dict(knn_gate=None, crop_scale=0.9), {}, 'ft + relevance crop'),
        (dict(knn_gate=dict(level=0.1), crop_scale=0.9), {}, 'ft + k-NN gate and relevance crop'),
        (dict(knn_gate=dict(type='VRF')), {}, 'ft + VRF'),
        (probe, {}, 'ft'),
        (dict(), dict(wise_ft_alpha=0.0), 'ft + WiSE-FT'),
        (dict(knn_gate=dict()), dict(soup='greedy'), 'ft + greedy soup'),
        (dict(), None, 'zero-shot'),
        (dict(crop_scale=0.9), None, 'zero-shot + relevance crop'),
        (probe, None, 'LP'),
    ):
        assert name_method('configs/pacs/ft.py', model, None if meta is None else dict(meta=meta)) == name


def test_backbones_of_timm_load_nothing_beside_a_checkpoint():
    model = Config(dict(backbone=dict(type='TIMMBackbone', model_name='x', pretrained=True, checkpoint_path='y')))
    skip_pretrained_weights(model)
    assert model.backbone == dict(type='TIMMBackbone', model_name='x', pretrained=False)
