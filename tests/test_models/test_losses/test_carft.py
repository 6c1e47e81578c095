import math

import pytest
import torch
from terms import NAMES, TEMPLATES, build, dot, move_away, unit

from mmcfmask.models.losses import context_divergence


def test_context_divergence_equals_loop():
    student, teacher, contexts = torch.randn(3, 5), torch.randn(3, 5), torch.nn.functional.normalize(torch.randn(4, 5))
    total = 0.0
    for z, z0 in zip(student.tolist(), teacher.tolist()):
        p, p0 = ([math.exp(20 * dot(unit(f), c)) for c in contexts.tolist()] for f in (z, z0))
        p, p0 = [x / sum(p) for x in p], [x / sum(p0) for x in p0]
        total += sum(x0 * math.log(x0 / x) for x0, x in zip(p0, p))  # the expectation is the teacher's
    assert context_divergence(student, teacher, contexts, 20.0).item() == pytest.approx(total / 3, rel=1e-4)
    assert context_divergence(3 * student, student, contexts, 20.0).item() == pytest.approx(
        0, abs=1e-5
    )  # cosines: no length


def test_carft_step(tiny_pretrained, batch, clip):
    model = move_away(build(tiny_pretrained, dict(type='CARFT', weight=0.7)))
    losses = model(*batch, mode='loss')
    whole, tokenizer = clip
    with torch.no_grad():
        contexts = []
        for template in TEMPLATES:
            mean = torch.stack(
                [whole.encode_text(tokenizer([template.format(name)]), normalize=True)[0] for name in NAMES]
            ).mean(0)
            contexts.append(mean / mean.norm())
        old = whole.encode_image(batch[0], normalize=True) @ torch.stack(contexts).T
        new = torch.nn.functional.normalize(model.extract_feat(batch[0])[-1]) @ torch.stack(contexts).T
    scale = whole.logit_scale.exp()
    p0, p = (scale * old).softmax(1), (scale * new).softmax(1)
    torch.testing.assert_close(losses['loss_carft'], 0.7 * (p0 * (p0.log() - p.log())).sum(1).mean())
    assert losses['loss_carft'].requires_grad and losses['loss_carft'] > 1e-4


def test_two_of_one_type_add_up(tiny_pretrained, batch):
    settings = (
        dict(type='CARFT', templates=['a {}.', '{} in the rain']),
        dict(type='CARFT', templates=['{}', 'a sketch of the {}.']),
    )
    first, second = (move_away(build(tiny_pretrained, cfg))(*batch, mode='loss')['loss_carft'] for cfg in settings)
    both = move_away(build(tiny_pretrained, *settings))(*batch, mode='loss')
    assert first != second and set(both) == {'loss_cls', 'loss_carft', 'loss_carft_2'}
    torch.testing.assert_close([both['loss_carft'], both['loss_carft_2']], [first, second])
