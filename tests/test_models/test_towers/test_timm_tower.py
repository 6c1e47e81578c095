"""TIMMBackbone with the pooling of the timm model."""

import pytest
import timm
import torch
from mmpretrain.registry import MODELS
from towers import TIMM

from mmcfmask.errors import ConfigError, MissingFileError
from mmcfmask.models.towers import timm_tower
from mmcfmask.models.towers.timm_tower import PooledTIMMBackbone, check_timm_model

VIT = dict(model_name='vit_base_patch16_224', **TIMM)


def test_weights_have_the_names_of_mmpretrain():
    theirs = MODELS.build(dict(type='TIMMBackbone', **VIT))
    assert PooledTIMMBackbone(**VIT).state_dict().keys() == theirs.state_dict().keys()


def test_a_file_with_a_classifier(tmp_path):
    model = timm.create_model(**{**VIT, 'num_classes': 7})
    torch.save(model.state_dict(), tmp_path / 'vit.pth')
    tower = PooledTIMMBackbone(**VIT, checkpoint_path=str(tmp_path / 'vit.pth'))
    before = {name: value.clone() for name, value in tower.timm_model.state_dict().items()}
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    assert tower.is_init  # mmengine draws no other weights
    with pytest.raises(MissingFileError, match="checkpoint_path='gone.pth': the file does not exist"):
        PooledTIMMBackbone(**VIT, checkpoint_path='gone.pth')


def test_weights_of_timm(monkeypatch):
    create = timm.create_model

    def load(name, pretrained, **kwargs):
        assert pretrained
        model = create(name, **kwargs)
        model.pretrained_cfg.update(mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.1))
        return model

    def fail(*args, **kwargs):
        raise OSError('no network')

    monkeypatch.setattr(timm_tower.timm, 'create_model', load)
    tower = PooledTIMMBackbone(**VIT, pretrained=True)
    assert (tower.mean, tower.std, tower.pretrained) == ((0.5, 0.4, 0.3), (0.2, 0.2, 0.1), 'vit_base_patch16_224')
    head = dict(type='CLIPDistillHead', num_classes=2)
    model = dict(type='CounterfactualClassifier', backbone=dict(type='TIMMBackbone', **VIT, pretrained=True), head=head)
    with pytest.raises(
        ConfigError, match=r"the weights 'vit_base_patch16_224' were trained with mean=\[127.5, 102.0, 76.5"
    ):
        MODELS.build(dict(model, data_preprocessor=dict(mean=[120.0] * 3, std=[60.0] * 3)))
    MODELS.build(dict(model, data_preprocessor=dict(mean=[127.5, 102.0, 76.5], std=[51.0, 51.0, 25.5])))
    monkeypatch.setattr(timm_tower.timm, 'create_model', fail)
    with pytest.raises(
        MissingFileError, match=r"weights of 'vit_base.*' are not on this machine .*set checkpoint_path"
    ):
        PooledTIMMBackbone(**VIT, pretrained=True)


def test_what_it_does_not_take():
    with pytest.raises(ConfigError, match="unknown timm model 'vit_base_patch17_224'. Did you mean"):
        PooledTIMMBackbone('vit_base_patch17_224')
    with pytest.raises(ConfigError, match='features_only=True gives several maps'):
        PooledTIMMBackbone('resnet18', features_only=True)
    check_timm_model('hf-hub:org/repo')
    check_timm_model('resnet18.a1_in1k')


def test_two_tokens_that_are_averaged():
    tower = PooledTIMMBackbone(**{**VIT, 'model_name': 'deit_tiny_distilled_patch16_224'})
    teacher = dict(teacher=dict(type='OpenCLIPTeacher'), losses=[dict(type='CounterfactualDistillation')])
    with pytest.raises(ConfigError, match="pools its tokens by 'the mean of class and distillation token'"):
        head = dict(type='CLIPDistillHead', num_classes=2)
        MODELS.build(dict(type='CounterfactualClassifier', backbone=tower, head=head, **teacher))
