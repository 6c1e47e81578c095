import math

import pytest
import torch

from mmcfmask.models.losses import feature_distillation, knowledge_distillation, soft_cross_entropy


def test_feature_distillation_equals_loop():
    a, b = torch.randn(3, 4), torch.randn(3, 4)
    total = sum((a[i, j].item() - b[i, j].item()) ** 2 for i in range(3) for j in range(4))
    assert feature_distillation(a, b).item() == pytest.approx(total / 12, rel=1e-5)
    assert feature_distillation(a.bfloat16(), b.bfloat16()).dtype == torch.float32


def test_knowledge_distillation_equals_loop():
    student, teacher, temperature = torch.randn(3, 4) * 5, torch.randn(3, 4) * 5, 10.0
    total = 0.0
    for s, t in zip(student.tolist(), teacher.tolist()):
        p = [math.exp(x / temperature) for x in t]
        q = [math.exp(x / temperature) for x in s]
        p, q = [x / sum(p) for x in p], [x / sum(q) for x in q]
        total += sum(x * math.log(x / y) for x, y in zip(p, q))
    assert knowledge_distillation(student, teacher, temperature).item() == pytest.approx(
        temperature**2 * total / 3, rel=1e-4
    )
    assert knowledge_distillation(teacher, teacher, temperature).item() == pytest.approx(0, abs=1e-5)


def test_soft_cross_entropy_equals_loop():
    logits, shares = torch.randn(4, 3) * 5, torch.rand(4, 3).softmax(dim=1)
    total = 0.0
    for row, weights in zip(logits.tolist(), shares.tolist()):
        norm = math.log(sum(math.exp(value / 7) for value in row))
        total -= sum(weight * (value / 7 - norm) for value, weight in zip(row, weights))
    assert soft_cross_entropy(logits, shares, 7.0).item() == pytest.approx(total / 4, rel=1e-5)
    assert soft_cross_entropy(logits.bfloat16(), shares.bfloat16()).dtype == torch.float32
