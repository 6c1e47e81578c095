import pytest
import torch
from terms import build, move_away

from mmcfmask.models.losses import l2_sp


def test_l2_sp_equals_loop():
    weights, start = ([torch.randn(2, 3), torch.randn(4)] for _ in range(2))
    total = sum(
        (a - b) ** 2 for w, w0 in zip(weights, start) for a, b in zip(w.flatten().tolist(), w0.flatten().tolist())
    )
    assert l2_sp(weights, start).item() == pytest.approx(total / 2, rel=1e-5)


def test_l2sp_step(tiny_pretrained, batch):
    pretrained = build(tiny_pretrained)
    for head in ('pretrained', 'zero'):
        model = move_away(build(tiny_pretrained, dict(type='L2SP', alpha=0.3, beta=0.2, head=head)))
        losses = model(*batch, mode='loss')
        assert set(losses) == {'loss_cls', 'loss_l2sp'}
        tower = sum(
            (a - b).square().sum() for a, b in zip(model.backbone.parameters(), pretrained.backbone.parameters())
        )
        kept = [0 * p for p in pretrained.head.parameters()] if head == 'zero' else pretrained.head.parameters()
        classifier = sum((a - b).square().sum() for a, b in zip(model.head.parameters(), kept))
        torch.testing.assert_close(losses['loss_l2sp'], 0.15 * tower + 0.1 * classifier)
        losses['loss_l2sp'].backward()
        torch.testing.assert_close(
            model.backbone.visual.proj.grad, 0.3 * (model.backbone.visual.proj - pretrained.backbone.visual.proj)
        )
