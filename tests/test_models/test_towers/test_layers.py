"""Layers of a tower: their depths, learning rates by layer, and frozen stages."""

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from mmpretrain.registry import MODELS
from torch import nn
from towers import OPEN_CLIP, TIMM, register

from mmcfmask.errors import ConfigError
from mmcfmask.models.towers.features import build_tower
from mmcfmask.models.towers.layers import layer_depths

VIT = dict(type='OpenCLIPBackbone', model_name='tiny-vit')
# Depths by hand: of the stem, of the blocks in order, and of what follows.
DEPTHS = {
    'tiny-vit': {
        0: ['class_embedding', 'positional_embedding', 'conv1.weight', 'ln_pre.bias'],
        1: ['transformer.resblocks.0.ln_1.weight', 'transformer.resblocks.0.mlp.c_fc.bias'],
        3: ['transformer.resblocks.2.attn.in_proj_bias'],
        4: ['ln_post.weight', 'proj'],
    },
    'tiny-coca': {0: ['conv1.weight'], 2: ['transformer.resblocks.1.ln_2.bias'], 3: ['attn_pool.query', 'proj']},
    'tiny-resnet': {
        0: ['conv1.weight', 'bn1.weight', 'conv3.weight', 'bn3.bias'],
        1: ['layer1.0.conv1.weight'],
        3: ['layer3.0.downsample.0.weight'],
        4: ['layer4.0.bn3.weight'],
        5: ['attnpool.positional_embedding', 'attnpool.c_proj.weight'],
    },
    'tiny-convnext': {
        0: ['trunk.stem.0.weight'],
        1: ['trunk.stages.0.blocks.0.conv_dw.weight'],
        3: ['trunk.stages.2.downsample.0.weight', 'trunk.stages.2.blocks.0.norm.bias'],
        4: ['trunk.stages.3.blocks.0.gamma'],
        5: ['head.proj.weight'],
    },
    'tiny-map-pool': {
        0: ['trunk.pos_embed', 'trunk.patch_embed.proj.weight'],
        2: ['trunk.blocks.1.norm1.weight'],
        3: ['trunk.attn_pool.latent', 'head.proj.weight'],
    },
}


@pytest.fixture(scope='module', autouse=True)
def configs(tmp_path_factory):
    register(tmp_path_factory.mktemp('towers'))


def build(backbone, losses=(), **options):
    torch.manual_seed(1)
    return MODELS.build(
        dict(
            type='CounterfactualClassifier',
            backbone=backbone,
            head=dict(type='CLIPDistillHead', num_classes=3),
            teacher=dict(type='OpenCLIPTeacher') if losses else None,
            losses=[dict(type=loss) for loss in losses],
            **options,
        )
    )


def tower(name, **options):
    return MODELS.build(dict(type='OpenCLIPBackbone', model_name=name, **options))


@pytest.mark.parametrize('name', DEPTHS)
def test_depths(name):
    backbone = tower(name)
    parameters = {parameter for parameter, _ in backbone.named_parameters()}
    count = max(DEPTHS[name]) + 1
    for depth, names in DEPTHS[name].items():
        for parameter in names:
            assert f'visual.{parameter}' in parameters
            assert backbone.get_layer_depth(f'visual.{parameter}') == (depth, count), parameter
            assert backbone.get_layer_depth(f'backbone.visual.{parameter}', 'backbone.') == (depth, count)
    for other in ('head.fc.weight', 'neck.proj', 'losses.0.weight'):
        assert backbone.get_layer_depth(other, 'backbone.') == (count - 1, count)


@pytest.mark.parametrize('name', OPEN_CLIP)
def test_every_tower_has_its_layers_in_order(name):
    """No gap, and what the forward pass uses first is not deeper."""
    backbone = tower(name)
    depths = [backbone.get_layer_depth(parameter)[0] for parameter, _ in backbone.named_parameters()]
    assert set(depths) == set(range(backbone.get_layer_depth('')[1]))


def test_depths_of_a_timm_backbone():
    backbone = build_tower(dict(type='TIMMBackbone', model_name='vit_base_patch16_224', **TIMM))
    assert backbone.get_layer_depth('timm_model.cls_token') == (0, 4)
    assert backbone.get_layer_depth('backbone.timm_model.blocks.1.mlp.fc1.bias', 'backbone.') == (2, 4)
    assert backbone.get_layer_depth('head.fc.weight', 'backbone.') == (3, 4)


def optimizer(model, **paramwise):
    return build_optim_wrapper(
        model,
        dict(
            optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.1),
            constructor='mmpretrain.LearningRateDecayOptimWrapperConstructor',
            paramwise_cfg=paramwise,
        ),
    ).optimizer


@pytest.mark.parametrize(
    'backbone',
    [
        VIT,
        dict(type='OpenCLIPBackbone', model_name='tiny-resnet'),
        dict(type='OpenCLIPBackbone', model_name='tiny-fastvit'),
        dict(type='TIMMBackbone', model_name='vit_base_patch16_224', **TIMM),
    ],
)
def test_learning_rates_by_layer(backbone):
    model = build(backbone, ['Distillation'])
    groups = optimizer(model, layer_decay_rate=0.5).param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert len(groups) == len(names)
    for group in groups:
        depth, count = model.get_layer_depth(names[id(group['params'][0])])
        assert group['lr'] == 0.5 ** (count - 1 - depth)
    assert {group['lr'] for group in groups} == {0.5**power for power in range(count)}


def test_no_decay_of_norms_and_biases():
    model = build(VIT)
    for groups in (
        optimizer(model, flat_decay_mult=0.0).param_groups,
        build_optim_wrapper(
            model,
            dict(
                optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.1),
                paramwise_cfg=dict(flat_decay_mult=0.0),
            ),
        ).optimizer.param_groups,
    ):
        decays = {1: set(), 2: set()}
        for group in groups:
            for parameter in group['params']:
                decays[min(parameter.ndim, 2)].add(group['weight_decay'])
        assert decays == {1: {0.0}, 2: {0.1}}  # norms, biases and the class embedding; all else


@pytest.mark.parametrize(
    'name, stages, frozen, trained',
    [
        ('tiny-vit', 0, ['conv1.weight', 'ln_pre.bias'], ['transformer.resblocks.0.ln_1.weight']),
        ('tiny-vit', 1, ['class_embedding', 'transformer.resblocks.0.attn.in_proj_bias'], ['proj', 'ln_post.bias']),
        (
            'tiny-resnet',
            2,
            ['conv3.weight', 'layer2.0.conv1.weight'],
            ['layer3.0.conv1.weight', 'attnpool.c_proj.bias'],
        ),
        (
            'tiny-convnext',
            3,
            ['trunk.stem.0.weight', 'trunk.stages.2.downsample.0.bias'],
            ['trunk.stages.3.blocks.0.gamma'],
        ),
    ],
)
def test_frozen_stages(name, stages, frozen, trained):
    backbone = tower(name, frozen_stages=stages)
    parameters = dict(backbone.named_parameters())
    assert not any(parameters[f'visual.{parameter}'].requires_grad for parameter in frozen)
    assert all(parameters[f'visual.{parameter}'].requires_grad for parameter in trained)
    free = {parameter for parameter in parameters if parameters[parameter].requires_grad}
    assert free == {
        parameter for parameter in parameters if layer_depths(backbone, stages=True).get(parameter, 99) > stages
    }


def test_frozen_stages_of_a_timm_backbone():
    backbone = build_tower(dict(type='TIMMBackbone', model_name='resnet18', frozen_stages=1, stem_width=8)).train()
    model = backbone.timm_model
    for module, trains in ((model.bn1, False), (model.layer1[0].bn1, False), (model.layer2, True)):
        assert module.training == trains and {part.requires_grad for part in module.parameters()} == {trains}


def test_a_training_with_frozen_stages():
    """The frozen stages keep weights and statistics, the others learn, and relevance is what it was."""
    from mmpretrain.structures import DataSample

    model = build(
        dict(type='OpenCLIPBackbone', model_name='tiny-resnet', frozen_stages=2),
        ['CounterfactualDistillation'],
        train_batch_norm=True,
    ).train()
    visual = model.backbone.visual
    assert not visual.layer2.training and not visual.bn1.training and visual.layer3[0].bn1.training
    before = {name: value.clone() for name, value in visual.state_dict().items()}
    step = torch.optim.SGD([part for part in model.parameters() if part.requires_grad], lr=0.1)
    batch = torch.randn(4, 3, 64, 64), [DataSample().set_gt_label(label) for label in (0, 1, 2, 0)]
    sum(model(*batch, mode='loss').values()).backward()
    step.step()
    changed = {
        name.split('.')[0] for name, value in visual.state_dict().items() if not torch.equal(value, before[name])
    }
    assert changed == {'layer3', 'layer4', 'attnpool'}


def test_relevance_of_a_partly_frozen_tower(tiny_pretrained):
    from mmcfmask.counterfactual import relevance_map

    images, labels = torch.randn(2, 3, 32, 32), torch.tensor([0, 2])
    maps = [
        relevance_map(build(dict(VIT, pretrained=tiny_pretrained, frozen_stages=stages)).eval(), images, labels)
        for stages in (-1, 1)
    ]
    assert maps[0].max() > 0
    torch.testing.assert_close(*maps)


def test_what_cannot_be_frozen():
    with pytest.raises(ConfigError, match='frozen_stages=4: this tower has 3 stages .* To freeze all of it set frozen'):
        tower('tiny-vit', frozen_stages=4)
    with pytest.raises(ConfigError, match='Linear does not say which of its parameters are of one layer'):
        layer_depths(nn.Linear(1, 1))
