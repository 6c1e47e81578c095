"""Student and teacher compute the same before anything was learned, in training, whatever the tower."""

import pytest
import torch
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from torch import nn
from towers import MMPRETRAIN, OPEN_CLIP, enlarge, register

from mmcfmask.errors import ConfigError
from mmcfmask.models import classifier as classifier_module
from mmcfmask.models.losses.base import check_tower
from mmcfmask.models.maker import PUBLISHED_VALUES
from mmcfmask.models.towers.modes import keep_pretrained_mode, take_class_token

MM = {
    'VisionTransformer': dict(drop_path_rate=0.5, drop_rate=0.2),
    'BEiTViT': dict(drop_path_rate=0.5),
    'DistilledVisionTransformer': {},
}


@pytest.fixture(scope='module', autouse=True)
def configs(tmp_path_factory):
    register(tmp_path_factory.mktemp('towers'))


def build(name, terms=('Distillation', 'CounterfactualDistillation'), **options):
    torch.manual_seed(1)
    if name in MM:
        backbone = dict(type=name, **MMPRETRAIN, **MM[name])
    else:
        backbone = dict(type='OpenCLIPBackbone', model_name=name)
    backbone = MODELS.build(backbone)
    enlarge(backbone)
    return MODELS.build(
        dict(
            type='CounterfactualClassifier',
            backbone=backbone,
            head=dict(type='CLIPDistillHead', num_classes=5),
            teacher=dict(type='OpenCLIPTeacher') if terms else None,
            losses=[dict(type=term) for term in terms],
            data_preprocessor=dict(mask='object', fill='single'),
            **options,
        )
    ).train()


def batch(model):
    torch.manual_seed(3)
    images = torch.randn(4, 3, *getattr(model.backbone, 'image_size', (32, 32)))
    return images, [DataSample().set_gt_label(label) for label in (0, 1, 2, 3)]


@pytest.mark.parametrize('name', [*OPEN_CLIP, *MM])
def test_distillation_starts_at_zero(name):
    model = build(name)
    losses = model(*batch(model), mode='loss')
    assert losses['loss_distill'] < 1e-9 and losses['loss_distill_2'] < 1e-9
    sum(losses.values()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)


@pytest.mark.parametrize('name', [*OPEN_CLIP, *MM])
def test_every_family_trains_with_all_variants(name):
    """Student and teacher see the same, so that their distance is 0 also where patches are hidden."""
    model = build(name, ['CounterfactualDistillation'])
    maker, data = model.data_preprocessor, batch(model)
    for (maker.mask, maker.fill), maker.value in PUBLISHED_VALUES.items():
        if maker.fill == 'none' and name in ('tiny-resnet', 'tiny-convnext', 'tiny-swin', 'tiny-fastvit'):
            with pytest.raises(ConfigError, match=r'fill="none" hides patches, but .* is no plain transformer'):
                check_tower(model, maker)
            continue
        check_tower(model, maker)
        losses = model(*data, mode='loss')
        assert losses['loss_distill'] < 1e-9, (maker.mask, maker.fill)
        losses['loss_cls'].backward()
        assert all(part.grad.isfinite().all() for part in model.parameters() if part.grad is not None)


def norms(model):
    return [module for module in model.backbone.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


@pytest.mark.parametrize('trained', [False, True])
@pytest.mark.parametrize('terms', [(), ('Distillation',)])
def test_statistics_of_batch_norms(trained, terms):
    model = build('tiny-fastvit', terms, train_batch_norm=trained)
    assert norms(model) and {norm.training for norm in norms(model)} == {trained}
    before = [norm.running_mean.clone() for norm in norms(model)]
    losses = model(*batch(model), mode='loss')
    changed = [not torch.equal(norm.running_mean, old) for norm, old in zip(norms(model), before)]
    assert all(changed) if trained else not any(changed)
    if terms:
        assert (losses['loss_distill'] > 1e-6) == trained
    assert not {norm.training for norm in norms(model.eval())} - {False}


def test_trained_batch_norms_of_several_processes_are_synchronised(monkeypatch):
    monkeypatch.setattr(classifier_module, 'get_world_size', lambda: 2)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    state = build('tiny-fastvit').state_dict()
    model = build('tiny-fastvit', train_batch_norm=True)
    assert all(isinstance(norm, nn.SyncBatchNorm) for norm in norms(model))
    assert model.state_dict().keys() == state.keys()
    assert not any(isinstance(norm, nn.SyncBatchNorm) for norm in norms(build('tiny-fastvit')))


def test_stochastic_depth_stays_where_nothing_is_compared():
    for terms, kept in ((), True), (('Distillation',), False):
        model = build('tiny-convnext', terms)
        paths = [module for module in model.backbone.modules() if type(module).__name__ == 'DropPath']
        assert paths and {path.training for path in paths} == {kept}
        assert model.training and model.head.training


def test_a_tower_without_them_stays_in_training():
    tower = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.0))
    keep_pretrained_mode(tower)
    assert tower.training and tower[1].training


def test_class_token_of_a_pair():
    token, distilled, early = torch.zeros(2, 3), torch.ones(2, 3), torch.rand(2, 3)
    assert take_class_token((early, (token, distilled)))[-1] is token
    assert take_class_token((early, token)) == (early, token)
