import math

import numpy as np
import pytest
import torch

from mmcfmask.evaluation import (
    class_scores,
    confidence,
    label_rank,
    negative_log_likelihood,
    per_class_accuracy,
    restrict_logits,
)
from mmcfmask.evaluation.accuracy import check_groups, mixture_scores

GROUPS = ((2,), (7, 0, 5), (4, 9))  # of ten outputs; 1, 3, 6 and 8 take no part


def naive(logits, labels, groups):
    """(pred, rank, nll, confidence, hit) of one image, in plain Python."""
    groups = groups or [[index] for index in range(len(logits))]
    scores = [max(logits[index] for index in group) for group in groups]
    order = sorted(range(len(groups)), key=lambda label: -scores[label])  # stable
    part = sorted({index for group in groups for index in group})
    highest = max(logits[index] for index in part)
    exps = {index: math.exp(logits[index] - highest) for index in part}
    total = sum(exps.values())
    right = {index for label in labels for index in groups[label]}
    top = max(part, key=lambda index: exps[index])
    return (
        order[0],
        min(order.index(label) for label in labels),
        -math.log(sum(exps[index] for index in right) / total),
        exps[top] / total,
        top in right,
    )


@pytest.mark.parametrize('groups', [None, GROUPS, tuple((index,) for index in (9, 1, 4))])
@pytest.mark.parametrize('several', [False, True])
def test_equal_to_plain_python(groups, several):
    logits = torch.randn(64, 10) * 3
    num = 10 if groups is None else 3
    labels = [[i % num, *([(i + 1) % num] if several and i % 3 == 0 else [])] for i in range(64)]
    mask = torch.zeros(64, num, dtype=torch.bool)
    for row, members in zip(mask, labels):
        row[members] = True
    given = mask if several else mask.int().argmax(dim=1)
    scores = class_scores(logits, groups)
    rank, nll = label_rank(scores, given), negative_log_likelihood(logits, given, groups)
    sure, hit = confidence(logits, given, groups)
    for i in range(64):
        pred, expected_rank, expected_nll, expected_sure, expected_hit = naive(logits[i].tolist(), labels[i], groups)
        assert scores[i].argmax() == pred and rank[i] == expected_rank and bool(hit[i]) == expected_hit
        assert nll[i].item() == pytest.approx(expected_nll, rel=1e-9) and sure[i].item() == pytest.approx(
            expected_sure, rel=1e-9
        )


def test_restrict_then_decide():
    """The output that is highest over all 1000 does not matter if the set does not have its class."""
    groups = tuple((index,) for index in range(0, 1000, 5))  # 200 of 1000
    logits = torch.zeros(1, 1000)
    logits[0, 1], logits[0, 15] = 10.0, 5.0
    label = torch.tensor([3])  # output 15
    assert logits.argmax() == 1
    assert class_scores(logits, groups).argmax() == 3 and label_rank(class_scores(logits, groups), label) == 0
    assert torch.isinf(restrict_logits(logits, groups)[0, 1])
    restricted = math.log(1 + 199 * math.exp(-5))
    assert negative_log_likelihood(logits, label, groups).item() == pytest.approx(restricted)
    assert confidence(logits, label, groups)[0].item() == pytest.approx(math.exp(-restricted))


def test_any_output_of_the_group_is_right():
    logits = torch.tensor([[0.0, 3.0, 1.0, 2.0]])
    groups = ((0,), (2, 3))  # output 1 takes no part
    assert class_scores(logits, groups).tolist() == [[0.0, 2.0]]
    total = 1 + math.exp(1) + math.exp(2)
    assert negative_log_likelihood(logits, torch.tensor([1]), groups).item() == pytest.approx(
        -math.log((total - 1) / total)
    )
    sure, hit = confidence(logits, torch.tensor([1]), groups)
    assert sure.item() == pytest.approx(math.exp(2) / total) and hit.item()


def test_equal_scores_are_not_all_right():
    """A model that says the same of every class is right on one class in K, whatever the label."""
    scores = torch.zeros(8, 8)
    assert label_rank(scores, torch.arange(8)).tolist() == list(range(8))
    assert (label_rank(scores, torch.arange(8)) == 0).tolist() == (scores.argmax(dim=1) == torch.arange(8)).tolist()


def test_wrong_groups():
    with pytest.raises(ValueError, match='class 1 has no output'):
        check_groups(((0,), ()), 10)
    with pytest.raises(ValueError, match=r'class 0 names the outputs 10, -1, but the head has 10 \(0 to 9\)'):
        check_groups(((0, 10, -1), (1,)), 10)


def test_usable_with_gradients_after_inference():
    groups = ((0,), (1, 2))
    with torch.inference_mode():
        class_scores(torch.randn(1, 3), groups)
    logits = torch.randn(2, 3, requires_grad=True)
    negative_log_likelihood(logits, torch.tensor([0, 1]), groups).sum().backward()
    assert logits.grad.abs().sum() > 0


def test_per_class():
    labels = np.array([[0, -1], [0, -1], [2, -1], [2, 0]])
    assert per_class_accuracy(np.array([True, False, True, True]), labels) == {
        0: (pytest.approx(200 / 3), 3),
        2: (100.0, 2),
    }


@pytest.mark.parametrize('groups', [None, ((4,), (0, 2), (3,))])
def test_mixture_equals_loop(groups):
    """Every model's softmax is over the outputs that take part, so that a model sure of another class keeps its say."""
    torch.manual_seed(0)
    logits, weights = 3 * torch.randn(6, 2, 5), torch.rand(6, 2)
    logits[0, 0, 1] = 50.0  # sure of an output in no group
    weights[1] = torch.tensor([0.0, 1.0])
    outputs = range(5) if groups is None else [output for group in groups for output in group]
    found = mixture_scores(logits, weights, groups)
    assert found.isfinite().all() and found.shape == (6, 5)
    for row, parts, shares in zip(found.tolist(), logits.tolist(), weights.tolist()):
        for output in outputs:
            p = sum(
                share * math.exp(part[output]) / sum(math.exp(part[other]) for other in outputs)
                for part, share in zip(parts, shares)
            )
            assert math.exp(row[output]) == pytest.approx(p, rel=1e-4, abs=1e-9)
