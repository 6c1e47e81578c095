import itertools

import torch

from mmcfmask.evaluation import best_iou, mask_iou, pointing_hits


def example():
    torch.manual_seed(0)
    objects = torch.rand(4, 6, 9) < 0.3
    objects[3] = False
    return torch.rand(4, 2, 3), objects


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


def test_best_iou_equals_trying_every_mask():
    _, objects = example()
    every = [torch.tensor(bits).view(1, 2, 3).expand(4, -1, -1) for bits in itertools.product([False, True], repeat=6)]
    expected = torch.stack([mask_iou(mask, objects) for mask in every]).amax(dim=0)
    torch.testing.assert_close(best_iou((2, 3), objects), expected)


def test_pointing_equals_loop():
    relevance, objects = example()
    for b, hit in enumerate(pointing_hits(relevance, objects)):
        i, j = max(((i, j) for i in range(2) for j in range(3)), key=lambda ij: relevance[b, ij[0], ij[1]].item())
        assert hit.item() == objects[b, 3 * i : 3 * i + 3, 3 * j : 3 * j + 3].any().item()
