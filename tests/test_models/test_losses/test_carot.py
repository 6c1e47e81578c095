import copy

import pytest
import torch
from mmengine.model import ExponentialMovingAverage
from terms import NAMES, TEMPLATES, build, train_a_little
from torch import nn

from mmcfmask.errors import ConfigError
from mmcfmask.models.losses.carot import (
    average_momentum,
    find_projection,
    move_average,
    orthogonality,
)


def test_orthogonality_equals_loop():
    projection = torch.randn(5, 3)
    total = 0.0
    for i in range(3):
        for j in range(3):
            inner = sum(projection[k, i].item() * projection[k, j].item() for k in range(5))
            total += (inner - (i == j)) ** 2
    assert orthogonality(projection).item() == pytest.approx(total**0.5, rel=1e-5)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        torch.testing.assert_close(orthogonality(projection), orthogonality(projection.double()).float())
    flat, _ = torch.linalg.qr(torch.randn(5, 3))
    assert orthogonality(flat).item() == pytest.approx(0, abs=1e-5)


def test_momentum_rises_and_stays():
    found = [average_momentum(progress, 0.05, 0.9, 0.2) for progress in (0.0, 0.05, 0.1, 0.2, 0.7)]
    assert found == pytest.approx([0.05, 0.2625, 0.475, 0.9, 0.9])
    assert average_momentum(0.0, 0.1, 0.9, 0.0) == 0.9


def test_average_equals_the_formula():
    average, current = nn.Linear(3, 2), nn.Linear(3, 2)
    expected = 0.3 * average.weight + 0.7 * current.weight
    move_average(average, current, 0.3)
    torch.testing.assert_close(average.weight, expected)


def test_step_of_the_image_part(tiny_pretrained, batch):
    model = build(tiny_pretrained, dict(type='CaRotImage', orthogonality=0.3, distillation=0.7), teacher=False)
    start = copy.deepcopy(model.backbone), copy.deepcopy(model.head)
    train_a_little(model, batch)
    losses = model(*batch, mode='loss')
    assert set(losses) == {'loss_cls', 'loss_orthogonality', 'loss_self_distillation'}
    proj = model.backbone.visual.proj
    torch.testing.assert_close(
        losses['loss_orthogonality'], 0.3 * (proj.T @ proj - torch.eye(proj.shape[1])).square().sum().sqrt()
    )
    with torch.no_grad():
        target = start[1](start[0](batch[0])).softmax(dim=1)
        logits = model.head(model.backbone(batch[0])).log_softmax(dim=1)
    expected = -sum((target[i] * logits[i]).sum() for i in range(4)) / 4
    torch.testing.assert_close(losses['loss_self_distillation'], 0.7 * expected, rtol=1e-4, atol=1e-4)


def test_the_average_moves_when_it_is_due_and_is_in_the_checkpoint(tiny_pretrained, batch):
    settings = dict(type='CaRotImage', momentum=(0.25, 0.5), warm_up=0.5, interval=0.25)
    model = build(tiny_pretrained, settings, teacher=False)
    term = model.losses[0]
    expected = model.head.fc.weight.detach().clone()
    for done in range(1, 9):  # of 8 steps: it moves after the steps 1, 3, 5 and 7
        with torch.no_grad():
            for parameter in model.backbone.parameters():
                parameter.mul_(1.01)
            model.head.fc.weight.add_(0.1)
        term.after_step(model, done, 8)
        if done % 2:
            m = {1: 0.25, 3: 0.375, 5: 0.5, 7: 0.5}[done]
            expected = m * expected + (1 - m) * model.head.fc.weight.detach()
        torch.testing.assert_close(term.average.head.fc.weight, expected)
    assert not any(parameter.requires_grad for parameter in term.average.parameters())
    assert not term.average.training
    state = model.state_dict()
    again = build(tiny_pretrained, settings, teacher=False)
    again.load_state_dict(state)
    assert torch.equal(again.losses[0].average.backbone.visual.proj, term.average.backbone.visual.proj)
    tested = build(None, teacher=False)
    tested.load_state_dict(state)  # strict: a test ignores the average
    ExponentialMovingAverage(model, momentum=0.5).update_parameters(model)
    torch.testing.assert_close(term.average.head.fc.weight, expected)  # which an average of weights leaves alone


def test_step_with_both_towers(tiny_pretrained, batch, clip):
    model = build(tiny_pretrained, dict(type='CaRot'), teacher=False, cls_weight=0.0)
    train_a_little(model, batch)
    torch.manual_seed(8)
    losses = model(*batch, mode='loss')
    assert set(losses) == {'loss_flyp', 'loss_orthogonality', 'loss_self_distillation'}
    whole, tokenizer = clip
    torch.manual_seed(8)
    tokens = tokenizer([TEMPLATES[i].format(NAMES[y]) for i, y in zip(torch.randint(3, (4,)).tolist(), (0, 2, 2, 1))])

    def similar(image, text):
        with torch.no_grad():
            images, texts = image(batch[0]), text.encode_text(tokens)
            images, texts = (rows / rows.norm(dim=1, keepdim=True) for rows in (images, texts))
            return text.logit_scale.exp() * images @ texts.T

    teacher = similar(whole.encode_image, whole)  # the average has not moved
    student = similar(lambda images: model.backbone(images)[0], model.losses[0].text)
    total = 0.0
    for i in range(4):
        total -= (teacher[i].softmax(0) * student[i].log_softmax(0)).sum()
        total -= (teacher[:, i].softmax(0) * student[:, i].log_softmax(0)).sum()
    torch.testing.assert_close(losses['loss_self_distillation'], 1.5 * total / 4, rtol=1e-4, atol=1e-4)
    model.losses[0].after_step(model, 1, 100)
    text, average = model.losses[0].text, model.losses[0].average_text
    torch.testing.assert_close(
        average.text_projection, 0.05 * whole.text_projection + 0.95 * text.text_projection.detach()
    )


def test_projections_of_towers(tiny_pretrained):
    model = build(tiny_pretrained)
    assert find_projection(model) is model.backbone.visual.proj
    for path in ('attnpool.c_proj', 'head.proj', 'attn_pool.proj'):
        visual, leaf = nn.Module(), nn.Linear(6, 4)
        owner = nn.Module()
        owner.add_module(path.split('.')[1], leaf)
        visual.add_module(path.split('.')[0], owner)
        fake = nn.Module()
        fake.neck, fake.backbone = None, nn.Module()
        fake.backbone.visual = visual
        assert torch.equal(find_projection(fake), leaf.weight.T)
    model.backbone.visual.proj = None
    with pytest.raises(ConfigError, match='VisionTransformer ends without a linear projection: set orthogonality=0'):
        find_projection(model)
    with pytest.raises(ConfigError, match='CaRotImage: orthogonality=-1 and distillation=1.5 must not be negative'):
        build(tiny_pretrained, dict(type='CaRotImage', orthogonality=-1), teacher=False)
