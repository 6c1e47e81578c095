import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from mmcfmask.evaluation import (
    area_under,
    average_precision,
    best_iou,
    blurred,
    deletion_and_insertion,
    mask_iou,
    object_patches,
    pointing_hits,
)


def example():
    torch.manual_seed(0)
    objects = torch.rand(4, 6, 9) < 0.3
    objects[3] = False
    return torch.rand(4, 2, 3), objects


def test_object_patches_equal_loop():
    _, objects = example()
    objects[1, :3, :3] = torch.tensor([[1, 1, 1], [1, 0, 0], [0, 0, 0]]).bool()  # 4 of 9 pixels
    objects[2, :3, :3] = torch.tensor([[1, 1, 1], [1, 1, 0], [0, 0, 0]]).bool()  # 5 of 9
    found = object_patches(objects, (2, 3))
    for b, i, j in itertools.product(range(4), range(2), range(3)):
        pixels = [objects[b, 3 * i + y, 3 * j + x].item() for y in range(3) for x in range(3)]
        assert found[b, i, j].item() == (sum(pixels) > 4.5)
    # Half of a patch is not more than half.
    assert not object_patches(torch.tensor([[[True, False], [True, False]]]), (1, 1)).any()


def slow_average_precision(relevance, patches):
    """Over all thresholds: the mean of the precision of the patches at or above each patch of the object."""
    pairs = list(zip(relevance.flatten().tolist(), patches.flatten().tolist()))
    precisions = []
    for value, hit in pairs:
        if hit:
            above = [other for score, other in pairs if score >= value]
            precisions.append(sum(above) / len(above))
    return sum(precisions) / len(precisions) if precisions else math.nan


def test_average_precision_equals_loop_also_with_ties():
    generator = torch.Generator().manual_seed(1)
    relevance = torch.rand(20, 4, 5, generator=generator)
    relevance[::2] = (relevance[::2] * 4).floor()  # many equal values
    patches = torch.rand(20, 4, 5, generator=generator) < 0.3
    patches[3] = False
    expected = torch.tensor([slow_average_precision(*pair) for pair in zip(relevance, patches)])
    assert expected[3].isnan() and len(set(expected[~expected.isnan()].tolist())) > 10
    torch.testing.assert_close(average_precision(relevance, patches), expected, equal_nan=True)


def test_iou_equals_loop():
    relevance, objects = example()
    mask = relevance > 0.4
    for b, value in enumerate(mask_iou(mask, objects)):
        both = either = 0
        for y in range(6):
            for x in range(9):
                a, o = mask[b, y // 3, x // 3].item(), objects[b, y, x].item()
                both, either = both + (a and o), either + (a or o)
        assert abs(value.item() - both / max(either, 1)) < 1e-6
    patches = torch.tensor([[[True, True], [False, False]]])
    mask = torch.tensor([[[True, False], [True, False]]])
    assert mask_iou(mask, patches).tolist() == [pytest.approx(1 / 3)]


def test_best_iou_equals_trying_every_mask():
    _, objects = example()
    every = [torch.tensor(bits).view(1, 2, 3).expand(4, -1, -1) for bits in itertools.product([False, True], repeat=6)]
    expected = torch.stack([mask_iou(mask, objects) for mask in every]).amax(dim=0)
    torch.testing.assert_close(best_iou((2, 3), objects), expected)


def test_pointing_equals_loop():
    relevance, objects = example()
    patches = object_patches(objects, (2, 3))
    for b, hit in enumerate(pointing_hits(relevance, patches)):
        i, j = max(((i, j) for i in range(2) for j in range(3)), key=lambda ij: relevance[b, ij[0], ij[1]].item())
        assert hit.item() == (objects[b, 3 * i : 3 * i + 3, 3 * j : 3 * j + 3].float().mean().item() > 0.5)


def test_blur_equals_loop():
    images = torch.rand(1, 2, 7, 8, generator=torch.Generator().manual_seed(2))
    sigma, radius = 1.2, 3
    found = blurred(images, sigma)
    weights = [math.exp(-(step**2) / (2 * sigma**2)) for step in range(-radius, radius + 1)]

    def mirror(index, size):
        return -index if index < 0 else 2 * (size - 1) - index if index >= size else index

    for channel, y, x in itertools.product(range(2), range(7), range(8)):
        total = sum(
            weights[i + radius] * weights[j + radius] * images[0, channel, mirror(y + i, 7), mirror(x + j, 8)].item()
            for i in range(-radius, radius + 1)
            for j in range(-radius, radius + 1)
        )
        assert found[0, channel, y, x].item() == pytest.approx(total / sum(weights) ** 2, abs=1e-5)


def test_deletion_and_insertion_equal_loop():
    torch.manual_seed(3)
    images, labels = torch.rand(2, 3, 16, 16), torch.tensor([1, 0])
    relevance, steps = torch.rand(2, 4, 4), 4
    weight = torch.randn(3, 3 * 16 * 16)

    def classify(inputs):
        return inputs.flatten(1) @ weight.T

    deletion, insertion = deletion_and_insertion(classify, images, labels, relevance, steps)
    assert deletion.shape == insertion.shape == (2, 5, 2)
    smooth = blurred(images, 4.0)
    for b in range(2):
        ranked = sorted(itertools.product(range(4), range(4)), key=lambda place: -relevance[b][place].item())
        for step in range(steps + 1):
            pair = dict(deleted=images[b].clone(), inserted=smooth[b].clone())
            for i, j in ranked[: 4 * step]:
                where = (slice(None), slice(4 * i, 4 * i + 4), slice(4 * j, 4 * j + 4))
                pair['deleted'][where] = smooth[b][where]
                pair['inserted'][where] = images[b][where]
            for found, image in (deletion, pair['deleted']), (insertion, pair['inserted']):
                logits = (weight @ image.flatten()).tolist()
                total = sum(math.exp(logit) for logit in logits)
                expected = math.exp(logits[labels[b]]) / total
                assert found[b, step, 0].item() == pytest.approx(expected, abs=1e-4)
                assert found[b, step, 1].item() == (max(logits) == logits[labels[b]])


def test_a_map_of_the_evidence_has_better_curves_than_its_opposite():
    images = F.pad(torch.ones(1, 3, 4, 4), (0, 12, 0, 12))  # one bright patch, which is the evidence
    relevance = torch.zeros(1, 4, 4)
    relevance[0, 0, 0] = 1

    def classify(inputs):
        bright = inputs.amax(dim=(1, 2, 3))
        return torch.stack([20 * bright, torch.full_like(bright, 15)], dim=1)

    areas = [
        [
            area_under(curve[..., 0]).item()
            for curve in deletion_and_insertion(classify, images, torch.zeros(1).long(), r)
        ]
        for r in (relevance, -relevance)
    ]
    assert areas[0][0] < areas[1][0] and areas[0][1] > areas[1][1]


def test_area_is_that_of_trapezoids():
    curves = torch.tensor([[0.0, 1.0, 0.5], [1.0, 1.0, 1.0]])
    torch.testing.assert_close(area_under(curves), torch.tensor([0.25 + 0.375, 1.0]))
