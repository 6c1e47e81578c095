"""LoRA, against weights with the update written out."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from adapted import TOWERS, classifier, draw_adapters, features, model, step
from mmpretrain.registry import MODELS
from torch import nn
from towers import build, register

from mmcfmask import relevance_map
from mmcfmask.models.towers.adapters import LoRA, add_adapters, copy_without_adapters, has_adapters, remove_adapters
from mmcfmask.models.towers.adapters.base import find_layers
from mmcfmask.models.towers.adapters.lora import lora_linear, low_rank_update


@pytest.fixture(scope='module', autouse=True)
def families(tmp_path_factory):
    register(tmp_path_factory.mktemp('towers'))


def explicit_update(down, up, scale, parts):
    """s B A of every part, entry by entry."""
    rank, rows = up.shape[1], len(up) // parts
    update = torch.zeros(len(up), down.shape[1], dtype=down.dtype)
    for part in range(parts):
        for i in range(rows):
            for j in range(down.shape[1]):
                for k in range(rank):
                    update[part * rows + i, j] += scale * up[part * rows + i, k] * down[part * rank + k, j]
    return update


@pytest.mark.parametrize('parts', [1, 3])
def test_update_equals_loop(parts):
    down, up = torch.randn(parts * 2, 5, dtype=torch.double), torch.randn(parts * 4, 2, dtype=torch.double)
    torch.testing.assert_close(low_rank_update(down, up, 0.7), explicit_update(down, up, 0.7, parts))


@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('parts', [1, 3])
def test_linear_equals_autograd_of_the_written_out_weight(parts, bias):
    x = torch.randn(2, 3, 5, dtype=torch.double, requires_grad=True)
    weight = torch.randn(parts * 4, 5, dtype=torch.double)
    bias = torch.randn(parts * 4, dtype=torch.double) if bias else None
    down = torch.randn(parts * 2, 5, dtype=torch.double, requires_grad=True)
    up = torch.randn(parts * 4, 2, dtype=torch.double, requires_grad=True)
    upstream = torch.randn(2, 3, parts * 4, dtype=torch.double)
    expected = F.linear(x, weight + explicit_update(down, up, 0.7, parts), bias)
    got = lora_linear(x, weight, bias, down, up, 0.7)
    torch.testing.assert_close(got, expected)
    for one, other in zip(*(torch.autograd.grad(y, (x, down, up), upstream) for y in (got, expected))):
        torch.testing.assert_close(one, other)


def test_linear_layer_equals_peft():
    peft = pytest.importorskip('peft')

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.mlp = nn.Linear(6, 4)

    ours = Net()
    theirs = peft.get_peft_model(
        copy.deepcopy(ours), peft.LoraConfig(r=2, lora_alpha=3, target_modules=['mlp'], lora_dropout=0.0)
    ).base_model.model.mlp
    add_adapters(ours, LoRA(2, alpha=3.0))
    with torch.no_grad():
        for mine, adapter in (ours.mlp.lora_A, theirs.lora_A), (ours.mlp.lora_B, theirs.lora_B):
            adapter['default'].weight.copy_(mine.normal_())
    x, upstream = torch.randn(5, 6), torch.randn(5, 4)
    results = ours.mlp(x), theirs(x)
    torch.testing.assert_close(*results)
    for result in results:
        result.backward(upstream)
    torch.testing.assert_close(ours.mlp.lora_A.grad, theirs.lora_A['default'].weight.grad)
    torch.testing.assert_close(ours.mlp.lora_B.grad, theirs.lora_B['default'].weight.grad)


def test_start_is_as_published():
    """B is 0; A is uniform as peft and nn.Linear draw it, and differs between layers."""
    tower = MODELS.build(dict(type='OpenCLIPBackbone', model_name='tiny-vit'))
    add_adapters(tower, LoRA(4))
    adapters = {name: weight for name, weight in tower.named_parameters() if weight.requires_grad}
    assert all(name.endswith(('lora_A', 'lora_B')) for name in adapters)
    downs = [weight for name, weight in adapters.items() if name.endswith('lora_A')]
    assert all(not weight.any() for name, weight in adapters.items() if name.endswith('lora_B'))
    for down in downs:
        bound = 1 / math.sqrt(down.shape[1])
        assert 0.9 * bound < down.abs().max() <= bound
    assert len({down.sum().item() for down in downs}) == len(downs) == 3 * 4


@pytest.mark.parametrize('kind, name', TOWERS)
def test_towers(kind, name):
    """The adapted tower starts as the plain one, and computes what weights with the update added by hand compute; its
    map of relevance is theirs too."""
    plain = build(kind, name)
    for part, weight in plain.named_parameters():
        if part.endswith('gamma'):  # 1e-6 in ConvNeXt
            nn.init.ones_(weight)
    images = torch.randn(3, 3, *(2 * [getattr(plain, 'image_size', (32, 32))[0]]), dtype=torch.double)
    adapted = copy.deepcopy(plain)
    add_adapters(adapted, LoRA(3, alpha=1.5))
    assert has_adapters(adapted) and not has_adapters(plain)
    torch.testing.assert_close(features(adapted, images), features(plain, images))

    draw_adapters(adapted)
    state = dict(adapted.state_dict())
    adapters = {key for key in state if 'lora_' in key or key == 'adapter_base'}
    for key in adapters:
        layer, _, part = key.rpartition('.')
        if part == 'lora_A':
            down, up = state[key], state[f'{layer}.lora_B']
            weight = f'{layer}.in_proj_weight' if f'{layer}.in_proj_weight' in state else f'{layer}.weight'
            state[weight] = state[weight] + explicit_update(down, up, 0.5, len(down) // 3)
    explicit = copy.deepcopy(plain)
    explicit.load_state_dict({key: value for key, value in state.items() if key not in adapters})
    expected = features(explicit, images)
    torch.testing.assert_close(features(adapted, images), expected)
    with torch.no_grad():
        torch.testing.assert_close(features(adapted, images), expected)
    assert (expected - features(plain, images)).norm() > 0.01 * expected.norm()

    maps = [relevance_map(classifier(tower), images, torch.zeros(3, dtype=torch.long)) for tower in (adapted, explicit)]
    torch.testing.assert_close(*maps)

    before = features(adapted, images)
    remove_adapters(adapted, merge=True)
    assert adapted.state_dict().keys() == plain.state_dict().keys()
    assert [type(module) for module in adapted.modules()] == [type(module) for module in plain.modules()]
    assert torch.equal(features(adapted, images), before)  # a layer computes with the merged weight already


@pytest.mark.parametrize('backbone', [{}, dict(lean=False), dict(grad_checkpointing=True), dict(recompute=True)])
def test_step_equals_that_of_all_weights(tiny_pretrained, backbone):
    """Losses are those of a student with merged weights, and gradients follow by the chain rule from those of its
    weights: ∂/∂A = s Bᵀ ∂/∂W and ∂/∂B = s ∂/∂W Aᵀ."""
    adapted = draw_adapters(model(tiny_pretrained, lora=dict(rank=2, alpha=3.0), **backbone).double(), 0.1)
    merged = model(tiny_pretrained, **backbone).double()
    state = copy.deepcopy(adapted)
    remove_adapters(state, merge=True)
    merged.load_state_dict(state.state_dict())
    ours, theirs = step(adapted), step(merged)
    for name in ('loss_cls', 'loss_distill'):
        torch.testing.assert_close(ours[name], theirs[name])
    assert theirs['loss_distill'] > 1e-3
    for losses in (ours, theirs):
        sum(losses.values()).backward()
    for name, layer in find_adapted(adapted.backbone).items():
        full = merged.backbone.get_submodule(name)
        dense = full.in_proj_weight.grad if isinstance(full, nn.MultiheadAttention) else full.weight.grad
        parts = 3 if isinstance(full, nn.MultiheadAttention) else 1
        downs, ups, rows = layer.lora_A.chunk(parts), layer.lora_B.chunk(parts), dense.chunk(parts)
        expected_down = torch.cat([1.5 * up.T @ row for up, row in zip(ups, rows)])
        expected_up = torch.cat([1.5 * row @ down.T for down, row in zip(downs, rows)])
        torch.testing.assert_close(layer.lora_A.grad, expected_down, msg=name)
        torch.testing.assert_close(layer.lora_B.grad, expected_up, msg=name)
    torch.testing.assert_close(adapted.head.fc.weight.grad, merged.head.fc.weight.grad)


def find_adapted(tower):
    return {name: module for name, module in tower.named_modules() if hasattr(module, 'lora_A')}


def test_training_changes_adapters_and_head_alone(tiny_pretrained):
    student = model(tiny_pretrained, lora=dict(rank=2))
    frozen = {name: weight for name, weight in student.backbone.named_parameters() if 'lora_' not in name}
    taught = dict(student.teacher.backbone.named_parameters())
    assert taught.keys() == frozen.keys() and all(taught[name] is weight for name, weight in frozen.items())
    before = {name: weight.clone() for name, weight in student.named_parameters()}
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-2, weight_decay=0.1)
    assert step(student)['loss_distill'] == 0
    for _ in range(3):
        optimizer.zero_grad()
        losses = step(student)
        sum(losses.values()).backward()
        optimizer.step()
    assert losses['loss_distill'] > 0
    changed = {name for name, weight in student.named_parameters() if not torch.equal(weight, before[name])}
    assert changed == {name for name in before if 'lora_' in name or name.startswith('head.')}
    assert len(optimizer.state) == len(changed)  # moments of nothing else


def test_teacher_that_shares_weights_does_not_round_them(tiny_pretrained):
    student = model(tiny_pretrained, lora=dict(rank=2))
    with torch.autocast('cpu', dtype=torch.bfloat16):
        losses = step(student)
    assert losses['loss_distill'] == 0
    sum(losses.values()).backward()
    assert {weight.dtype for weight in student.parameters()} == {torch.float32}
    assert all(layer.lora_B.grad.any() for layer in find_adapted(student.backbone).values())


def test_another_teacher_keeps_its_own_weights(tiny_pretrained):
    tower = MODELS.build(dict(type='OpenCLIPBackbone', model_name='tiny-vit', pretrained=tiny_pretrained))
    copied = copy_without_adapters(tower)
    assert all(one is not other for one, other in zip(copied.parameters(), tower.parameters()))


def test_checkpoint_holds_adapters_and_head(tiny_pretrained):
    trained = draw_adapters(model(tiny_pretrained, lora=dict(rank=2)))
    state = trained.state_dict()
    fixed = 'backbone.adapter_base', 'head.', 'data_preprocessor.'
    assert all('lora_' in name or name.startswith(fixed) for name in state)
    other = model(tiny_pretrained, lora=dict(rank=2))
    assert other.load_state_dict(state).missing_keys == []
    for (name, weight), expected in zip(other.named_parameters(), trained.parameters()):
        assert torch.equal(weight, expected), name
    with pytest.raises(ValueError, match='the model has none: set model.backbone.lora'):
        model(tiny_pretrained).load_state_dict(state)
    with pytest.raises(ValueError, match='weights of a whole tower, but the model has adapters'):
        other.load_state_dict(model(tiny_pretrained).state_dict())
    with pytest.raises(ValueError, match='belong to other pretrained weights'):
        model(None, lora=dict(rank=2)).load_state_dict(state)


def test_layers_of_targets():
    tower = MODELS.build(dict(type='OpenCLIPBackbone', model_name='tiny-vit'))
    block = {'attn', 'attn.out_proj', 'mlp.c_fc', 'mlp.c_proj'}

    def names(targets=None):
        return {name.removeprefix('visual.transformer.resblocks.') for name in find_layers(tower, targets)}

    assert names() == {f'{index}.{layer}' for index in range(3) for layer in block}
    assert names(['attn']) == {f'{index}.{layer}' for index in range(3) for layer in ('attn', 'attn.out_proj')}
    assert names(['resblocks.2', 'c_fc']) == {'0.mlp.c_fc', '1.mlp.c_fc', *(f'2.{layer}' for layer in block)}


@pytest.mark.parametrize(
    'lora, message',
    [
        (dict(rank=0), 'model.backbone.lora: rank=0 must be a whole number of at least 1'),
        (dict(alpha=0.0), 'model.backbone.lora: alpha=0.0 must be above 0'),
        (dict(targets='attn'), r"targets='attn' must be a list of names"),
        (dict(targets=['attn', 'mpl']), r"has 'mpl' in its name. Did you mean 'mlp'.*Parts of names: attn, c_fc"),
        (dict(rank=33), 'rank=33 is larger than the rank of every adapted weight, at most 32'),
    ],
)
def test_wrong_options(lora, message):
    with pytest.raises(ValueError, match=message):
        model(None, lora=lora)


def test_what_adapters_cannot_be_added_to():
    with pytest.raises(ValueError, match='ModifiedResNet has no attention or MLP.*leave out the adapters'):
        model(None, lora={}, name='tiny-resnet', teacher=False)
    with pytest.raises(ValueError, match='leave out frozen=True, or the adapters'):
        model(None, lora={}, frozen=True, teacher=False)
    config = dict(
        type='CounterfactualClassifier',
        backbone=dict(type='OpenCLIPBackbone', model_name='tiny-vit', lora=dict(rank=2)),
        head=dict(type='CLIPDistillHead', num_classes=5),
        teacher=dict(type='OpenCLIPTeacher'),
        losses=[dict(type='L2SP')],
    )
    with pytest.raises(ValueError, match='L2SP holds the weights.*leave out one of them'):
        MODELS.build(config)


def test_mmpretrain_backbone_with_a_neck():
    """The projection of the neck is frozen, as the tower is."""
    torch.manual_seed(0)
    arch = dict(embed_dims=32, num_layers=2, num_heads=4, feedforward_channels=64)
    backbone = dict(type='VisionTransformer', arch=arch, img_size=32, patch_size=8, pre_norm=True)
    student = MODELS.build(
        dict(
            type='CounterfactualClassifier',
            backbone=dict(**backbone, lora=dict(rank=2)),
            neck=dict(type='CLIPProjection', in_channels=32, out_channels=16),
            head=dict(type='CLIPDistillHead', num_classes=5),
            teacher=dict(type='OpenCLIPTeacher'),
            losses=[dict(type='CounterfactualDistillation')],
        )
    ).train()
    losses = step(student)
    assert losses['loss_distill'] == 0
    sum(losses.values()).backward()
    trained = {name for name, weight in student.named_parameters() if weight.grad is not None}
    assert trained == {name for name in dict(student.named_parameters()) if 'lora_' in name or name.startswith('head.')}
    assert not any(name.startswith('neck.') for name in student.state_dict())
