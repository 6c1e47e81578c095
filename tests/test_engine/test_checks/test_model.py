"""The model, its weights and the device."""

import pytest
import torch
from mmengine.config import Config
from mmpretrain.registry import MODELS
from towers import MMPRETRAIN

from mmcfmask.engine.checks.model import (
    check_backbone,
    check_class_names,
    check_device,
    check_fill,
    check_has_weights,
    check_losses,
    check_parameter_groups,
    counterfactual_settings,
    makes_counterfactuals,
    shown_settings,
    slow_bfloat16,
    warn_of_random_weights,
    warn_of_unused_settings,
)
from mmcfmask.engine.config import load_config
from mmcfmask.errors import ConfigError, UserError
from mmcfmask.models import L2SP, Distillation, LossTerm


def test_tower_is_looked_for_before_the_model():
    for change, message in (
        (dict(model_name='ViT-B-17'), 'Unknown open_clip model .*ViT-B-16'),
        (dict(pretrained='shape'), "Unknown pretrained tag 'shape' .*Did you mean 'shapes'"),
        (dict(pretrained='gone.pt'), 'the file does not exist'),
    ):
        cfg = load_config('configs/shapes/cfmask.py', {f'model.backbone.{key}': value for key, value in change.items()})
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            check_backbone(cfg.model)


@pytest.mark.parametrize(
    'backbone, message',
    [
        (dict(type='TIMMBackbone', model_name='resnet81'), "model.backbone: unknown timm model 'resnet81'.*'resnet18'"),
        (
            dict(type='TIMMBackbone', model_name='resnet18', checkpoint_path='gone.pth'),
            "model.backbone: checkpoint_path='gone.pth': the file does not exist",
        ),
        (
            dict(type='ResNet', depth=50, init_cfg=dict(type='Pretrained', checkpoint='gone.pth')),
            "model.backbone.init_cfg.checkpoint='gone.pth': the file does not exist",
        ),
    ],
)
def test_weights_of_other_backbones_are_looked_for_before_the_model(backbone, message):
    with pytest.raises(UserError, match=message):
        check_backbone(dict(backbone=backbone))
    remote = dict(type='Pretrained', checkpoint='torchvision://resnet50')
    check_backbone(dict(backbone=dict(type='ResNet', init_cfg=remote), neck=None))


def test_fill_needs_two_images_in_every_batch():
    losses = [dict(type='CounterfactualDistillation')]
    model = dict(teacher=dict(type='OpenCLIPTeacher'), losses=losses, data_preprocessor=dict(fill='multi'))
    cfg = Config(dict(model=model, train_dataloader=dict(batch_size=4, drop_last=True)))
    check_fill(cfg)
    cfg.train_dataloader.drop_last = False
    with pytest.raises(ValueError, match='set train_dataloader.drop_last=True'):
        check_fill(cfg)
    cfg.train_dataloader.batch_size = 1
    with pytest.raises(
        ValueError, match="fill='multi' takes patches from other images .*batch_size=1: raise it to at least 2"
    ):
        check_fill(cfg)
    cfg.model.data_preprocessor.fill = 'none'
    check_fill(cfg)
    for other in ([], [dict(type='Distillation')]):  # no counterfactuals
        cfg.model = {**model, 'data_preprocessor': dict(fill='multi'), 'losses': other}
        check_fill(cfg)
    cfg.model = {**model, 'data_preprocessor': dict(fill='multi'), 'head': dict(distill='logits')}
    with pytest.raises(ValueError, match='raise it to at least 2'):
        check_fill(cfg)


def test_fill_of_terms_with_their_own_images():
    own = dict(type='ContextInvariance', counterfactual=dict(mask='context'))
    model = dict(losses=[dict(type='L2SP'), own], data_preprocessor=dict(fill='none'))
    cfg = Config(dict(model=model, train_dataloader=dict(batch_size=1, drop_last=True)))
    with pytest.raises(ConfigError, match=r"model.losses\[1\].counterfactual: fill='single' takes patches from other"):
        check_fill(cfg)
    cfg.train_dataloader = dict(batch_size=2, drop_last=False)
    with pytest.raises(ConfigError, match=r"counterfactual: fill='single' .* set train_dataloader.drop_last=True"):
        check_fill(cfg)
    cfg.train_dataloader.drop_last = True
    with pytest.raises(ConfigError, match=r'losses\[1\]: ContextInvariance compares two donors .* at least 3'):
        check_fill(cfg)
    cfg.model.losses[1].type = 'ContextDistillation'
    with pytest.raises(ConfigError, match=r'losses\[1\]: ContextDistillation compares two donors .* at least 3$'):
        check_fill(cfg)
    cfg.train_dataloader.batch_size = 3
    check_fill(cfg)
    own['type'], own['counterfactual'] = 'CounterfactualCrossEntropy', dict(mask='context', fill='none')
    check_fill(Config(dict(model=model, train_dataloader=dict(batch_size=1))))


def test_which_counterfactual_images_a_config_trains_on():
    ours, theirs = dict(mask='context', mask_share=0.4), dict(mask='random')
    distill, own = dict(type='CounterfactualDistillation'), dict(type='CounterfactualCrossEntropy', counterfactual=ours)
    for losses, keys in (
        ([], []),
        ([dict(type='L2SP')], []),
        ([distill], ['model.data_preprocessor']),
        ([dict(type='ContextInvariance')], ['model.data_preprocessor']),
        ([own], ['model.losses[0].counterfactual']),
        ([own, distill], ['model.data_preprocessor', 'model.losses[0].counterfactual']),
    ):
        model = dict(losses=losses, data_preprocessor=theirs)
        assert list(counterfactual_settings(model)) == keys and makes_counterfactuals(model) == bool(keys)
        assert shown_settings(model) == (ours if losses == [own] else theirs)


def test_teacher_and_terms_belong_together():
    ours, teacher = dict(type='CounterfactualClassifier'), dict(teacher=dict(type='OpenCLIPTeacher'))
    for losses in ([dict(type='FLYP')], []):
        check_losses(dict(ours, losses=losses))
        with pytest.raises(ConfigError, match='no term of model.losses uses model.teacher'):
            check_losses(dict(ours, **teacher, losses=losses))
    for name in ('CounterfactualDistillation', 'Distillation', 'L2SP', 'CARFT', 'LipsumFT'):
        check_losses(dict(ours, **teacher, losses=[dict(type='FLYP'), dict(type=name)]))
        with pytest.raises(ConfigError, match=f'{name} compares with a frozen teacher: set model.teacher='):
            check_losses(dict(ours, losses=[dict(type=name)]))
    check_losses(dict(type='ImageClassifier', **teacher))


@pytest.mark.parametrize('build', [check_losses, MODELS.build])
@pytest.mark.parametrize(
    'losses, message',
    [
        ([dict(type='FLYP'), dict(weight=1.0)], r'model.losses\[1\] has no type: it must be a dict\(type=…, …\)'),
        (['FLYP'], r'model.losses\[0\] has no type'),
        ([dict(type='CrossEntropyLoss')], r"losses\[0\].type='CrossEntropyLoss' is no loss term \(a class derived"),
        ([dict(type='ResNet', depth=50)], r"model.losses\[0\].type='ResNet' is no loss term"),
        ([dict(type=torch.nn.ReLU)], r"model.losses\[0\].type='ReLU' is no loss term"),
        (dict(type='FLYP'), r'model.losses must be a list, losses=\[dict\(type=…\), …\], but is a dict'),
    ],
)
def test_what_is_no_loss_term(build, losses, message):
    model = dict(
        type='CounterfactualClassifier',
        backbone=dict(type='OpenCLIPBackbone', model_name='tiny-vit'),
        head=dict(type='CLIPDistillHead', num_classes=5),
        losses=losses,
    )
    with pytest.raises(ConfigError, match=message):
        build(model)


def test_a_loss_term_may_be_a_class():
    ours = dict(type='CounterfactualClassifier', losses=[dict(type=L2SP)])
    check_losses(dict(ours, teacher=dict(type='OpenCLIPTeacher')))
    with pytest.raises(ConfigError, match='L2SP compares with a frozen teacher'):
        check_losses(ours)


def test_settings_without_a_distillation_are_named(monkeypatch):
    said = []
    monkeypatch.setattr('mmcfmask.engine.checks.model.print_log', lambda text, *args, **kwargs: said.append(text))
    settings = dict(head=dict(distill='feature', distill_weight=3.0), data_preprocessor=dict(mask='object', mean=[1.0]))
    warn_of_unused_settings(dict(settings, losses=[dict(type='CounterfactualDistillation')]))
    warn_of_unused_settings(dict(head=dict(cls_weight=1.0), data_preprocessor=dict(mean=[1.0])))
    assert not said
    warn_of_unused_settings(dict(settings, losses=[dict(type='Distillation')]))
    (mask,) = said
    assert mask.startswith('model.data_preprocessor.mask has no effect, because model.losses has no dict(type=')
    warn_of_unused_settings(dict(settings))
    assert said[1:] == [
        'model.head.distill, model.head.distill_weight have no effect, because model.losses has no '
        "dict(type='Distillation')",
        mask,
    ]


def test_settings_beside_images_of_a_term_are_named(monkeypatch):
    said = []
    monkeypatch.setattr('mmcfmask.engine.checks.model.print_log', lambda text, *args, **kwargs: said.append(text))
    model = dict(losses=[dict(type='ContextInvariance')], data_preprocessor=dict(mask='context', mask_share=0.4))
    warn_of_unused_settings(model)
    assert not said
    model['losses'][0]['counterfactual'] = dict(mask='context')
    warn_of_unused_settings(model)
    assert len(said) == 1 and said[0].startswith(
        'model.data_preprocessor.mask, model.data_preprocessor.mask_share have'
    )


def test_a_term_of_a_user_may_use_all_settings(monkeypatch):
    class Own(LossTerm):
        pass

    class OwnDistillation(Distillation):
        pass

    said = []
    monkeypatch.setattr('mmcfmask.engine.checks.model.print_log', lambda text, *args, **kwargs: said.append(text))
    settings = dict(head=dict(distill='feature'), data_preprocessor=dict(mask='object'))
    for own in (Own, OwnDistillation):
        warn_of_unused_settings(dict(settings, losses=[dict(type=L2SP), dict(type=own)]))
    assert not said
    warn_of_unused_settings(dict(settings, losses=[dict(type=L2SP)]))
    assert len(said) == 2


def test_random_start_is_named(monkeypatch):
    said = []
    monkeypatch.setattr('mmcfmask.engine.checks.model.print_log', lambda text, *args, **kwargs: said.append(text))
    loaded = dict(type='Pretrained', checkpoint='x')
    ours, timm = dict(type='OpenCLIPBackbone', model_name='ViT-B-16'), dict(type='TIMMBackbone', model_name='resnet18')
    head = dict(class_weights=dict(type='prototype'))
    for tower in (
        dict(ours, pretrained='openai'),
        dict(ours, model_name='hf-hub:org/clip'),
        dict(ours, init_cfg=loaded),
        dict(type='VisionTransformer', init_cfg=[dict(type='Kaiming', layer='Conv2d'), loaded]),
        dict(timm, pretrained=True),
        dict(timm, checkpoint_path='x'),
    ):
        cfg = Config(dict(model=dict(backbone=tower, head=head)))
        warn_of_random_weights(cfg)
        check_has_weights(cfg)
    assert not said
    for tower, name, key in (
        (ours, 'ViT-B-16', 'pretrained'),
        (timm, 'resnet18', 'init_cfg'),
        (dict(type='ResNet', depth=50), 'ResNet', 'init_cfg'),
        (dict(type='ResNet', depth=50, init_cfg=dict(type='Kaiming', layer='Conv2d')), 'ResNet', 'init_cfg'),
    ):
        cfg = Config(dict(model=dict(backbone=tower, head=head)))
        warn_of_random_weights(cfg)
        assert f'{name} starts from random weights, because model.backbone.{key} is not set' in said.pop()
        with pytest.raises(ConfigError, match=f'random weights: give a checkpoint, or set model.backbone.{key}'):
            check_has_weights(cfg)


@pytest.mark.parametrize(
    'key, part, message',
    [
        (
            'head',
            dict(class_weights=dict(type='text', classnames='gone.txt')),
            "model.head.class_weights: .*'gone.txt'",
        ),
        ('head', dict(class_weights=dict(type='text', templates=['a photo'])), 'model.head.class_weights: .*templates'),
        ('losses', [dict(type='L2SP'), dict(type='FLYP', templates='clip')], r"model.losses\[1\]: .*templates='clip'"),
    ],
)
def test_prompts_are_checked_before_the_model(key, part, message):
    cfg = load_config('configs/shapes/ft.py')
    check_class_names(cfg.model)
    cfg.model[key] = part
    with pytest.raises(UserError, match=message):
        check_class_names(cfg.model)


def test_slow_bfloat16_is_named(monkeypatch):
    float32 = dict(model=dict(), optim_wrapper=dict(type='OptimWrapper'), test_cfg=dict(amp=False))
    asked = {
        '--amp: ': [dict(optim_wrapper=dict(type='AutocastOptimWrapper')), dict(test_cfg=dict(amp=True))],
        "model.teacher.precision='bf16': ": [dict(model=dict(teacher=dict(type='OpenCLIPTeacher', precision='bf16')))],
    }
    for fast in (True, False):
        monkeypatch.setattr('mmcfmask.engine.checks.model.multiplies_bfloat16', lambda device, fast=fast: fast)
        assert slow_bfloat16(Config(float32), 'cpu') is None
        for begin, changes in asked.items():
            for change in changes:
                said = slow_bfloat16(Config({**float32, **change}), 'cpu')
                assert said is None if fast else said.startswith(begin)


def test_settings_for_parameters_that_are_not_there():
    model = torch.nn.ModuleDict(dict(backbone=torch.nn.Linear(1, 1)))

    def check(**keys):
        check_parameter_groups(Config(dict(optim_wrapper=dict(paramwise_cfg=dict(custom_keys=keys)))), model)

    check_parameter_groups(Config(dict(optim_wrapper=None)), model)
    check(**{'backbone': dict(lr_mult=0.1), '.bias': dict(decay_mult=0.0)})
    with pytest.raises(
        ConfigError,
        match="optim_wrapper.paramwise_cfg.custom_keys: no parameter of the model has 'bakcbone' in its name. Did you "
        "mean 'backbone'",
    ):
        check(backbone=dict(lr_mult=0.1), bakcbone=dict(lr_mult=0.1))


def test_layers_that_a_backbone_does_not_know():
    by_layer = dict(optim_wrapper=dict(constructor='LearningRateDecayOptimWrapperConstructor'))
    head = dict(type='CLIPDistillHead', num_classes=3)
    swin = dict(embed_dims=8, depths=[1] * 4, num_heads=[1] * 4)
    for backbone, known in (
        (dict(type='OpenCLIPBackbone', model_name='tiny-vit'), True),
        (dict(type='ResNet', depth=50, base_channels=4), True),
        (dict(type='SwinTransformer', arch=swin), True),
        (dict(type='ConvNeXt', arch=dict(depths=[1] * 4, channels=[4] * 4)), True),
        *(
            (dict(type=kind, **MMPRETRAIN), True)
            for kind in ('VisionTransformer', 'DistilledVisionTransformer', 'BEiTViT', 'ViTEVA02')
        ),
        (dict(type='ResNet', depth=18, base_channels=4), False),
        (dict(type='MobileNetV3', arch='small_050'), False),
    ):
        model = MODELS.build(dict(type='CounterfactualClassifier', backbone=backbone, head=head))
        check_parameter_groups(Config(dict(optim_wrapper=dict(constructor=None))), model)
        if known:
            check_parameter_groups(Config(by_layer), model)
            continue
        with pytest.raises(
            ConfigError, match=f"constructor='Learning.*': {backbone['type']} does not say which of its parameters are"
        ):
            check_parameter_groups(Config(by_layer), model)


def test_float16_autocast_needs_a_gpu(monkeypatch):
    cfg = Config(dict(optim_wrapper=dict(type='AmpOptimWrapper')))
    monkeypatch.setattr('mmcfmask.engine.checks.model.get_device', lambda: 'cpu')
    with pytest.raises(ConfigError, match='AmpOptimWrapper.* needs a GPU: use --amp'):
        check_device(cfg)
    check_device(Config(dict(optim_wrapper=dict(type='AutocastOptimWrapper'))))
    monkeypatch.setattr('mmcfmask.engine.checks.model.get_device', lambda: 'cuda')
    check_device(cfg)
