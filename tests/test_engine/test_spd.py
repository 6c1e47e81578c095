"""Adam with selective projection decay, against the algorithm written with numbers."""

import math

import pytest
import torch
from mmpretrain.registry import OPTIMIZERS
from torch import nn

from mmcfmask.engine import AdamSPD
from mmcfmask.engine.spd import project
from mmcfmask.errors import ConfigError


def slow_adam_spd(weights, gradients, lr, betas, eps, strength):
    """The weights, a list of numbers, after the steps with these gradients, and how often they were projected."""
    start, first, second = list(weights), [0.0] * len(weights), [0.0] * len(weights)
    projected = 0
    for step, gradient in enumerate(gradients, 1):
        before = list(weights)
        for i, slope in enumerate(gradient):
            first[i] = betas[0] * first[i] + (1 - betas[0]) * slope
            second[i] = betas[1] * second[i] + (1 - betas[1]) * slope**2
            mean, variance = first[i] / (1 - betas[0] ** step), second[i] / (1 - betas[1] ** step)
            weights[i] = before[i] - lr * mean / (math.sqrt(variance) + eps)
        if sum(slope * (old - origin) for slope, old, origin in zip(gradient, before, start)) > 0:
            now, then = (
                math.sqrt(sum((value - origin) ** 2 for value, origin in zip(place, start)))
                for place in (weights, before)
            )
            ratio = min(max((now - then) / now, 0.0), 1.0)
            projected += ratio > 0
            weights = [value - strength * ratio * (value - origin) for value, origin in zip(weights, start)]
    return weights, projected


@pytest.mark.parametrize('strength', [0.0, 0.3, 1.0])
def test_equals_numbers(strength):
    torch.manual_seed(0)
    tensors = [nn.Parameter(torch.randn(3, 2).double()), nn.Parameter(torch.randn(4).double())]
    starts = [tensor.flatten().tolist() for tensor in tensors]
    settings = dict(lr=0.1, betas=(0.9, 0.99), eps=1e-8)
    optimizer = AdamSPD(tensors, **settings, spd=strength)
    gradients = [[], []]
    for _ in range(30):
        for tensor, seen in zip(tensors, gradients):
            tensor.grad = torch.randn_like(tensor)
            seen.append(tensor.grad.flatten().tolist())
        optimizer.step()
    for tensor, start, seen in zip(tensors, starts, gradients):
        expected, projected = slow_adam_spd(start, seen, **settings, strength=strength)
        assert tensor.flatten().tolist() == pytest.approx(expected, rel=1e-9) and projected >= 3


def test_projection_goes_back_to_the_sphere_where_the_gradient_asks_for_it():
    start, before, moved = torch.zeros(2), torch.tensor([1.0, 0.0]), torch.tensor([1.5, 2.0])
    against = project(moved, start, before.norm(), torch.tensor(0.5), 1.0)
    torch.testing.assert_close(against, torch.tensor([0.6, 0.8]))  # the direction of θ′, the distance of θ
    for inner, strength in ((-0.5, 1.0), (0.0, 1.0), (0.5, 0.0)):
        assert torch.equal(project(moved, start, before.norm(), torch.tensor(inner), strength), moved)
    nearer = torch.tensor([0.5, 0.0])
    assert torch.equal(project(nearer, start, before.norm(), torch.tensor(0.5), 1.0), nearer)
    assert torch.equal(project(start, start, before.norm(), torch.tensor(0.5), 1.0), start)  # no 0 / 0


def test_without_projection_it_is_torchs_adam():
    torch.manual_seed(0)
    one, other = nn.Linear(4, 3), nn.Linear(4, 3)
    other.load_state_dict(one.state_dict())
    optimizers = AdamSPD(one.parameters(), lr=0.1, spd=0.0), torch.optim.Adam(other.parameters(), lr=0.1)
    for _ in range(5):
        images = torch.randn(8, 4)
        for layer, optimizer in zip((one, other), optimizers):
            optimizer.zero_grad()
            assert optimizer.step(lambda layer=layer, images=images: backward(layer, images)) > 0
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters()))


def backward(layer, images):
    loss = layer(images).square().mean()
    loss.backward()
    return loss


def test_a_resumed_run_equals_an_uninterrupted_one():
    """θ₀ is not the checkpoint: the optimizer is built on the pretrained weights."""
    torch.manual_seed(0)
    pretrained, steps = nn.Linear(4, 3).state_dict(), torch.randn(12, 8, 4)

    def fresh():
        layer = nn.Linear(4, 3)
        layer.load_state_dict(pretrained)
        layer.add_module('frozen', nn.Linear(2, 2).requires_grad_(False))
        return layer, AdamSPD(layer.parameters(), lr=0.1)

    def run(layer, optimizer, batches):
        for images in batches:
            optimizer.zero_grad()
            backward(layer, images)
            optimizer.step()
        return layer.weight.detach().clone()

    whole = run(*fresh(), steps)
    half, optimizer = fresh()
    run(half, optimizer, steps[:6])
    resumed, other = fresh()
    resumed.load_state_dict(half.state_dict())
    other.load_state_dict(optimizer.state_dict())
    assert torch.equal(run(resumed, other, steps[6:]), whole)


def test_from_a_config_and_its_errors():
    weights = [nn.Parameter(torch.zeros(2))]
    built = OPTIMIZERS.build(dict(type='AdamSPD', params=weights, lr=1e-3, spd=0.5, fused=True))
    assert isinstance(built, AdamSPD) and built.strength == 0.5 and built.defaults['fused']
    with pytest.raises(ConfigError, match=r'in place of weight decay: set weight_decay=0 \(it is 0.1\)'):
        AdamSPD(weights, weight_decay=0.1)
    weights[0].full_tensor = None  # as a part of a tensor that FSDP2 has split
    with pytest.raises(ConfigError, match='whole tensors of weights, which FSDP splits: train with DDP'):
        AdamSPD(weights)
