import math

import pytest
import torch
from mmengine.model import ExponentialMovingAverage
from mmengine.runner.checkpoint import load_state_dict
from terms import NAMES, TEMPLATES, build, train_a_little

from mmcfmask.models.losses.flyp import contrast


def flyp(pretrained, **kwargs):
    return build(pretrained, dict(type='FLYP', **kwargs), teacher=False, cls_weight=0.0)


def test_flyp_step(tiny_pretrained, batch, clip):
    model = flyp(tiny_pretrained, weight=0.5)
    torch.manual_seed(8)
    losses = model(*batch, mode='loss')
    assert set(losses) == {'loss_flyp'}
    whole, tokenizer = clip
    torch.manual_seed(8)
    prompts = [TEMPLATES[i].format(NAMES[label]) for i, label in zip(torch.randint(3, (4,)).tolist(), (0, 2, 2, 1))]
    images, texts = whole.encode_image(batch[0]), whole.encode_text(tokenizer(prompts))
    similar = (
        whole.logit_scale.exp()
        * (images / images.norm(dim=1, keepdim=True))
        @ (texts / texts.norm(dim=1, keepdim=True)).T
    )
    total = 0
    for i in range(4):
        total = (
            total
            - (similar[i, i].exp() / similar[i].exp().sum()).log()
            - (similar[i, i].exp() / similar[:, i].exp().sum()).log()
        )
    torch.testing.assert_close(losses['loss_flyp'], 0.5 * total / 8)

    losses['loss_flyp'].backward()
    (0.5 * total / 8).backward()
    text = model.losses[0].text
    for ours, theirs in [
        (model.backbone.visual.proj, whole.visual.proj),
        (text.logit_scale, whole.logit_scale),
        (text.token_embedding.weight, whole.token_embedding.weight),
    ]:
        torch.testing.assert_close(ours.grad, theirs.grad)
    assert all(p.grad is None for p in model.head.parameters())


def test_a_sigmoid_model_is_trained_by_its_own_loss():
    torch.manual_seed(0)
    image, text = (torch.nn.functional.normalize(torch.randn(3, 4), dim=1) for _ in range(2))
    model = torch.nn.Module()
    model.logit_scale, model.logit_bias = torch.nn.Parameter(torch.tensor(1.5)), torch.nn.Parameter(torch.tensor(-2.0))
    total = 0.0
    for i in range(3):
        for j in range(3):
            sign = 1 if i == j else -1
            total += math.log(1 + math.exp(-sign * (math.exp(1.5) * (image[i] @ text[j]).item() - 2)))
    loss = contrast(image, text, model)
    assert loss.item() == pytest.approx(total / 3, rel=1e-5)
    loss.backward()
    assert model.logit_bias.grad != 0  # DDP waits for all gradients


def head_of(text, tokenizer):
    """The head that a text tower makes, by a loop."""
    rows = []
    with torch.no_grad():
        for name in NAMES:
            mean = torch.stack(
                [text.encode_text(tokenizer([template.format(name)]), normalize=True)[0] for template in TEMPLATES]
            ).mean(0)
            rows.append(text.logit_scale.exp() * mean / mean.norm())
    return torch.stack(rows)


def test_flyp_head_is_made_by_the_text_tower_as_it_is(tiny_pretrained, batch, monkeypatch):
    model = flyp(tiny_pretrained)
    start = model.head.fc.weight.clone()
    train_a_little(model, batch)
    assert torch.equal(model.head.fc.weight, start)  # no part of training
    loss = model.losses[0]
    expected = head_of(loss.text, loss.tokenizer)
    assert (expected - start).abs().max() > 1e-2

    torch.testing.assert_close(model.state_dict()['head.fc.weight'], expected)  # saving
    train_a_little(model, batch)
    expected = head_of(loss.text, loss.tokenizer)
    torch.testing.assert_close(model.eval().head.fc.weight, expected)  # evaluation
    monkeypatch.setattr('mmcfmask.models.losses.flyp.text_class_weights', None)  # not again for the same text tower
    model.eval(), model.state_dict()

    tested = build(None, teacher=False)
    tested.load_state_dict(model.state_dict())  # strict: the text tower in it is no surprise
    assert not any('losses' in name for name in tested.state_dict())
    torch.testing.assert_close(tested.eval()(batch[0]), model(batch[0]))


def test_flyp_checkpoint_loads_without_a_warning_and_resumes(tiny_pretrained, batch, capsys):
    model = flyp(tiny_pretrained)
    train_a_little(model, batch)
    state = model.state_dict()
    load_state_dict(build(None, teacher=False), state)  # mmengine's
    assert 'unexpected' not in capsys.readouterr().out
    again = flyp(tiny_pretrained)
    load_state_dict(again, state)
    assert torch.equal(again.losses[0].text.token_embedding.weight, model.losses[0].text.token_embedding.weight)


def test_flyp_average_has_the_head_of_its_own_text_tower(tiny_pretrained, batch):
    model = flyp(tiny_pretrained)
    average = ExponentialMovingAverage(model, momentum=0.5)
    for _ in range(3):
        train_a_little(model, batch, steps=1)
        average.update_parameters(model)
    loss, averaged = model.losses[0], average.module.losses[0]
    assert (loss.text.text_projection - averaged.text.text_projection).abs().max() > 1e-4
    torch.testing.assert_close(
        average.state_dict()['module.head.fc.weight'], head_of(averaged.text, averaged.tokenizer)
    )
    torch.testing.assert_close(model.state_dict()['head.fc.weight'], head_of(loss.text, loss.tokenizer))
