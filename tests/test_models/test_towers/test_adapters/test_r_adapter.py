"""R-Adapter, against weights with the update written out."""

import copy

import pytest
import torch
import torch.nn.functional as F
from adapted import TOWERS, classifier, draw_adapters, features, model, step
from torch import nn
from towers import build, register

from mmcfmask import relevance_map
from mmcfmask.engine.hooks import UnbiasedMovingAverage
from mmcfmask.models.towers.adapters import RAdapter, add_adapters, has_adapters, remove_adapters
from mmcfmask.models.towers.adapters.base import AdaptedLayer
from mmcfmask.models.towers.adapters.r_adapter import r_adapter
from mmcfmask.models.towers.backbone import OpenCLIPBackbone

KINDS = [dict(), dict(rank=3)]


@pytest.fixture(scope='module', autouse=True)
def families(tmp_path_factory):
    register(tmp_path_factory.mktemp('towers'))


def adapted_layers(tower):
    return {name: module for name, module in tower.named_modules() if isinstance(module, AdaptedLayer)}


def explicit_update(layer):
    """W of a layer, which acts on rows, entry by entry."""
    if layer.adapter_A is None:
        return layer.adapter_B.T
    up, down = layer.adapter_B, layer.adapter_A
    update = torch.zeros(len(up), len(up), dtype=up.dtype)
    for i in range(len(up)):
        for j in range(len(up)):
            for k in range(len(down)):
                update[j, i] += up[i, k] * down[k, j]
    return update


@pytest.mark.parametrize('rank', [None, 2])
def test_adapter_equals_autograd_of_the_written_out_weight(rank):
    """W_org (W + I) and b_org (W + I), of an output projection."""
    x, weight = torch.randn(2, 3, 5, dtype=torch.double, requires_grad=True), torch.randn(4, 5, dtype=torch.double)
    bias = torch.randn(4, dtype=torch.double)
    up = torch.randn(4, rank or 4, dtype=torch.double, requires_grad=True)
    down = torch.randn(rank, 4, dtype=torch.double, requires_grad=True) if rank else None
    update = (up if down is None else up @ down).T
    identity = torch.eye(4, dtype=torch.double)
    expected = x @ (weight.T @ (update + identity)) + bias @ (update + identity)
    got = r_adapter(F.linear(x, weight, bias), up, down)
    torch.testing.assert_close(got, expected)
    upstream = torch.randn(2, 3, 4, dtype=torch.double)
    inputs = [x, up] if down is None else [x, up, down]
    for one, other in zip(*(torch.autograd.grad(y, inputs, upstream) for y in (got, expected))):
        torch.testing.assert_close(one, other)


def test_dropping():
    """Every image has one γ for all its tokens; the mean over many draws is the output without dropping."""
    x, up = torch.randn(3, 2, 4, dtype=torch.double), torch.randn(4, 4, dtype=torch.double)
    torch.manual_seed(0)
    total, kept, draws = torch.zeros_like(x), 0, 4000
    for _ in range(draws):
        output = r_adapter(x, up, drop=0.25, training=True)
        total += output
        for image in range(3):
            with_adapter = x[image] + x[image] @ up.T / 0.75
            used = not torch.equal(output[image], x[image])
            torch.testing.assert_close(output[image], with_adapter if used else x[image])
            kept += used
    assert kept / (3 * draws) == pytest.approx(0.75, abs=0.02)
    whole = x + x @ up.T
    assert (total / draws - whole).norm() < 0.03 * whole.norm()
    assert torch.equal(r_adapter(x, up, drop=0.25, training=False), r_adapter(x, up))


def test_start():
    """An adapter behind each attention and each MLP, 0 at the start; the random factor differs between layers."""
    for options, size in (RAdapter(), 32 * 32), (RAdapter(rank=4), 2 * 32 * 4):
        tower = OpenCLIPBackbone('tiny-vit')
        add_adapters(tower, options)
        layers = adapted_layers(tower)
        assert {name.partition('resblocks.')[2] for name in layers} == {
            f'{block}.{layer}' for block in range(3) for layer in ('attn', 'mlp.c_proj')
        }
        trained = {name: weight for name, weight in tower.named_parameters() if weight.requires_grad}
        assert sum(weight.numel() for weight in trained.values()) == 6 * size
        assert all(not layer.adapter_B.any() for layer in layers.values())
    downs = [layer.adapter_A for layer in layers.values()]
    assert len({down.sum().item() for down in downs}) == 6
    assert all(0.9 / 32**0.5 < down.abs().max() <= 1 / 32**0.5 for down in downs)


@pytest.mark.parametrize('options', KINDS)
@pytest.mark.parametrize('kind, name', TOWERS)
def test_towers(kind, name, options):
    """The adapted tower starts as the plain one, and computes what weights with the adapter multiplied by hand compute;
    its map of relevance is theirs too. Merged, it is a plain tower with these weights."""
    plain = build(kind, name)
    for part, weight in plain.named_parameters():
        if part.endswith('gamma'):  # 1e-6 in ConvNeXt
            nn.init.ones_(weight)
    images = torch.randn(3, 3, *(2 * [getattr(plain, 'image_size', (32, 32))[0]]), dtype=torch.double)
    adapted = copy.deepcopy(plain)
    add_adapters(adapted, RAdapter(**options))
    assert has_adapters(adapted) and not has_adapters(plain)
    torch.testing.assert_close(features(adapted, images), features(plain, images))

    draw_adapters(adapted, 0.1)
    explicit = copy.deepcopy(plain)
    with torch.no_grad():
        for path, layer in adapted_layers(adapted).items():
            target = explicit.get_submodule(path)
            target = getattr(target, 'out_proj', target)
            product = explicit_update(layer) + torch.eye(len(target.weight), dtype=torch.double)
            target.weight.copy_((target.weight.T @ product).T)
            if target.bias is not None:
                target.bias.copy_(target.bias @ product)
    expected = features(explicit, images)
    torch.testing.assert_close(features(adapted, images), expected)
    with torch.no_grad():
        torch.testing.assert_close(features(adapted, images), expected)
    assert (expected - features(plain, images)).norm() > 0.01 * expected.norm()

    maps = [relevance_map(classifier(tower), images, torch.zeros(3, dtype=torch.long)) for tower in (adapted, explicit)]
    torch.testing.assert_close(*maps)

    remove_adapters(adapted, merge=True)
    assert [type(module) for module in adapted.modules()] == [type(module) for module in plain.modules()]
    merged, by_hand = adapted.state_dict(), explicit.state_dict()
    assert merged.keys() == by_hand.keys()
    for part, weight in by_hand.items():
        torch.testing.assert_close(merged[part], weight)
    torch.testing.assert_close(features(adapted, images), expected)


@pytest.mark.parametrize('backbone', [{}, dict(lean=False), dict(grad_checkpointing=True), dict(recompute=True)])
@pytest.mark.parametrize('rank', [None, 2])
def test_step_equals_that_of_all_weights(tiny_pretrained, backbone, rank):
    """Losses are those of a student with merged weights, and gradients follow by the chain rule from those of its
    weights G and biases g: of Wᵀ they are G W_orgᵀ + g b_orgᵀ, and Wᵀ = B A."""
    adapted = draw_adapters(model(tiny_pretrained, r_adapter=dict(rank=rank, drop=0.0), **backbone).double(), 0.1)
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
    for name, layer in adapted_layers(adapted.backbone).items():
        full, plain = (getattr(part, 'out_proj', part) for part in (merged.backbone.get_submodule(name), layer))
        dense = full.weight.grad @ plain.weight.T + torch.outer(full.bias.grad, plain.bias)
        if rank is None:
            torch.testing.assert_close(layer.adapter_B.grad, dense, msg=name)
        else:
            torch.testing.assert_close(layer.adapter_B.grad, dense @ layer.adapter_A.T, msg=name)
            torch.testing.assert_close(layer.adapter_A.grad, layer.adapter_B.T @ dense, msg=name)
    torch.testing.assert_close(adapted.head.fc.weight.grad, merged.head.fc.weight.grad)


def test_a_dropped_step_is_the_same_in_every_form_of_the_tower(tiny_pretrained):
    """The fast path, the stock tower and recomputed activations draw the same γ."""
    results = []
    for backbone in ({}, dict(lean=False), dict(grad_checkpointing=True), dict(recompute=True)):
        student = model(tiny_pretrained, teacher=False, r_adapter=dict(drop=0.5), **backbone).double()
        draw_adapters(student, 0.1)
        loss = step(student)['loss_cls']
        loss.backward()
        results.append((loss, *(layer.adapter_B.grad for layer in adapted_layers(student.backbone).values())))
    assert step(student.eval())['loss_cls'] != results[0][0]
    for result in results[1:]:
        for ours, expected in zip(result, results[0]):
            torch.testing.assert_close(ours, expected)


def test_dropping_is_off_where_passes_are_compared(tiny_pretrained):
    """Distillation starts at 0, and a loss term that compares passes refuses to be beside dropped adapters."""
    student = model(tiny_pretrained, r_adapter=dict(drop=0.0))
    assert step(student)['loss_distill'] == 0
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert step(student)['loss_distill'] == 0
    with pytest.raises(ValueError, match='CounterfactualDistillation compares passes.*r_adapter drops.*set its drop=0'):
        model(tiny_pretrained, r_adapter={})
    student = draw_adapters(model(tiny_pretrained, teacher=False, r_adapter={}))
    images = torch.randn(2, 3, 32, 32)
    torch.manual_seed(0)
    dropped = [features(student.train().backbone, images) for _ in range(4)]
    whole = [features(student.eval().backbone, images) for _ in range(2)]
    assert torch.equal(*whole) and len({output.sum().item() for output in (*dropped, whole[0])}) == 5


def test_training_changes_adapters_and_head_alone(tiny_pretrained):
    """The teacher is the frozen tower; the average moves the adapters as a loop over them does, and nothing frozen."""
    student = model(tiny_pretrained, r_adapter=dict(drop=0.0))
    before = {name: weight.clone() for name, weight in student.named_parameters()}
    frozen = {name: weight for name, weight in student.backbone.named_parameters() if not weight.requires_grad}
    taught = dict(student.teacher.backbone.named_parameters())
    assert taught.keys() == frozen.keys() and all(taught[name] is weight for name, weight in frozen.items())
    optimizer, average = torch.optim.AdamW(student.parameters(), lr=1e-2), UnbiasedMovingAverage(student, momentum=0.25)
    seen = []
    for _ in range(3):
        optimizer.zero_grad()
        sum(step(student).values()).backward()
        optimizer.step()
        average.update_parameters(student)
        seen.append({name: weight.clone() for name, weight in student.named_parameters()})
    changed = {name for name, weight in student.named_parameters() if not torch.equal(weight, before[name])}
    assert changed == {name for name in before if 'adapter_' in name or name.startswith('head.')}
    factors = [0.75**2, 0.75, 1.0]
    for name, weight in average.module.named_parameters():
        if name in changed:
            expected = sum(factor * state[name] for factor, state in zip(factors, seen)) / sum(factors)
            torch.testing.assert_close(weight, expected)
        else:
            assert torch.equal(weight, before[name]), name


def test_checkpoint_holds_adapters_and_head(tiny_pretrained):
    trained = draw_adapters(model(tiny_pretrained, r_adapter=dict(drop=0.0)))
    state = trained.state_dict()
    fixed = 'backbone.adapter_base', 'head.', 'data_preprocessor.'
    assert all(name.endswith('adapter_B') or name.startswith(fixed) for name in state)
    other = model(tiny_pretrained, r_adapter=dict(drop=0.0))
    assert other.load_state_dict(state).missing_keys == []
    for (name, weight), expected in zip(other.named_parameters(), trained.parameters()):
        assert torch.equal(weight, expected), name
    with pytest.raises(ValueError, match='belong to other pretrained weights'):
        model(None, r_adapter=dict(drop=0.0)).load_state_dict(state)
    with pytest.raises(ValueError, match='weights of a whole tower, but the model has adapters'):
        other.load_state_dict(model(tiny_pretrained).state_dict())


@pytest.mark.parametrize(
    'backbone, message',
    [
        (
            dict(r_adapter=dict(rank=0)),
            'model.backbone.r_adapter: rank=0 must be a whole number of at least 1',
        ),
        (dict(r_adapter=dict(drop=1.0)), r'drop=1.0 must lie in \[0, 1\)'),
        (dict(r_adapter=dict(rank=33)), 'model.backbone.r_adapter: rank=33 is larger than the rank of every adapted'),
        (dict(r_adapter={}, lora={}), 'has lora and r_adapter: a tower has adapters of one kind'),
        (dict(r_adapter={}, frozen=True), 'leave out frozen=True, or the adapters'),
    ],
)
def test_wrong_options(backbone, message):
    with pytest.raises(ValueError, match=message):
        model(None, teacher=False, **backbone)
