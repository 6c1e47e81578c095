import math

import pytest
import torch
from terms import NAMES, build, move_away, train_a_little

from mmcfmask.errors import ConfigError
from mmcfmask.models.losses.starft import BACKGROUNDS, spurious_divergence

CONTEXTS = ['a {} in the snow', 'a {} on a beach']


def test_divergence_equals_loop():
    torch.manual_seed(0)
    student, teacher, labels = 2 * torch.randn(5, 5), 2 * torch.randn(5, 5), [0, 1, 0, 2, 1]
    total = 0.0
    for i in range(5):
        others = [j for j in range(5) if labels[j] != labels[i]]
        p, q = ([math.exp(rows[i, j]) for j in others] for rows in (teacher, student))
        total += sum(a / sum(p) * math.log((a / sum(p)) / (b / sum(q))) for a, b in zip(p, q))
    found = spurious_divergence(student, teacher, torch.tensor(labels))
    assert found.item() == pytest.approx(total / 5, rel=1e-4)
    assert spurious_divergence(student, teacher, torch.zeros(5).long()) == 0  # no text of another label


def test_starft_step(tiny_pretrained, batch, clip):
    model = move_away(build(tiny_pretrained, dict(type='StarFT', contexts=CONTEXTS), cls_weight=0.0))
    term, (whole, tokenizer) = model.losses[0], clip
    torch.manual_seed(8)
    losses = model(*batch, mode='loss')
    assert set(losses) == {'loss_flyp', 'loss_starft'}
    torch.manual_seed(8)
    torch.randint(3, (4,))  # the prompts of FLYP
    labels = [0, 2, 2, 1]
    tokens = tokenizer([CONTEXTS[i].format(NAMES[y]) for i, y in zip(torch.randint(2, (4,)).tolist(), labels)])

    def unit(rows):
        return rows / rows.norm(dim=1, keepdim=True)

    with torch.no_grad():
        scale = whole.logit_scale.exp()
        teacher = scale * unit(whole.encode_image(batch[0])) @ unit(whole.encode_text(tokens)).T
        student = scale * unit(model.backbone(batch[0])[0]) @ unit(term.text.encode_text(tokens)).T
    expected = spurious_divergence(student, teacher, torch.tensor(labels))
    torch.testing.assert_close(losses['loss_starft'], 0.5 * expected, rtol=1e-3, atol=1e-5)
    assert expected > 0
    losses['loss_starft'].backward()
    assert term.text.text_projection.grad.abs().max() > 0 and model.backbone.visual.proj.grad.abs().max() > 0


def test_weight_falls_to_zero(tiny_pretrained, batch):
    model = move_away(build(tiny_pretrained, dict(type='StarFT', contexts=CONTEXTS), cls_weight=0.0))
    seen = []
    for progress in (0.0, 0.25, 1.0):
        model.losses[0].progress = progress
        torch.manual_seed(8)
        seen.append(model(*batch, mode='loss')['loss_starft'].item())
    assert seen[1] == pytest.approx(0.75 * seen[0], rel=1e-4) and seen[2] == 0 < seen[0]


def test_pretrained_texts_stay(tiny_pretrained, batch):
    model = build(tiny_pretrained, dict(type='StarFT', contexts=CONTEXTS), cls_weight=0.0)
    before = model.teacher.text.text_projection.clone()
    train_a_little(model, batch)
    assert torch.equal(model.teacher.text.text_projection, before)
    assert not torch.equal(model.losses[0].text.text_projection, before)
    assert not any('teacher' in name for name in model.state_dict())


def test_contexts_are_templates(tiny_pretrained):
    assert all(template.count('{}') == 1 for template in BACKGROUNDS) and len(set(BACKGROUNDS)) == len(BACKGROUNDS)
    with pytest.raises(
        ConfigError,
        match="contexts of StarFT: .* must be strings with a '{}' for the class name, but got 'in the snow'",
    ):
        build(tiny_pretrained, dict(type='StarFT', contexts=['in the snow']), cls_weight=0.0)
    with pytest.raises(ConfigError, match='StarFT: spurious_weight=-1 must not be negative'):
        build(tiny_pretrained, dict(type='StarFT', spurious_weight=-1), cls_weight=0.0)
