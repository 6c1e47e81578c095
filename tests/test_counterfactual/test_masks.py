import pytest
import torch

from mmcfmask.counterfactual import exact_random_mask, patch_mask


@pytest.mark.parametrize('kind', ['object', 'context'])
@pytest.mark.parametrize('value', [0.0, 0.3, 0.6, 1.0])
def test_threshold_equals_loop(kind, value):
    relevance = torch.rand(3, 4, 5) ** 2
    relevance[1] = 0  # an image without any relevance has no object
    mask = patch_mask(relevance, kind, value)
    for b in range(3):
        top = max(relevance[b, i, j].item() for i in range(4) for j in range(5))
        for i in range(4):
            for j in range(5):
                is_object = relevance[b, i, j].item() / (top + 1e-8) > value
                assert mask[b, i, j].item() == (is_object if kind == 'object' else not is_object)


def test_object_and_context_are_complements():
    relevance = torch.rand(3, 4, 4)
    assert torch.equal(patch_mask(relevance, 'object', 0.4), ~patch_mask(relevance, 'context', 0.4))


def test_random_rate_and_reproducibility():
    relevance = torch.zeros(200, 8, 8)
    mask = patch_mask(relevance, 'random', 0.3, torch.Generator().manual_seed(5))
    assert mask.dtype == torch.bool and abs(mask.float().mean().item() - 0.3) < 0.02
    assert torch.equal(mask, patch_mask(relevance, 'random', 0.3, torch.Generator().manual_seed(5)))
    assert not torch.equal(mask, patch_mask(relevance, 'random', 0.3, torch.Generator().manual_seed(6)))
    assert not patch_mask(relevance, 'random', 0.0).any() and patch_mask(relevance, 'random', 1.0).all()


def test_exact_random_mask_keeps_a_fixed_number():
    mask = exact_random_mask((6, 7, 7), 0.75, generator=torch.Generator().manual_seed(0))
    assert (~mask).flatten(1).sum(1).tolist() == [int(49 * 0.25)] * 6
    assert len({tuple(row.tolist()) for row in mask.flatten(1)}) == 6
    often = torch.stack(
        [exact_random_mask((50, 4, 4), 0.5, generator=torch.Generator().manual_seed(i)) for i in range(20)]
    )
    assert (often.float().mean(dim=(0, 1)) - 0.5).abs().max() < 0.08  # no patch is preferred


@pytest.mark.parametrize('kind, value', [('objects', 0.3), ('object', 1.2), ('random', -0.1)])
def test_bad_input(kind, value):
    with pytest.raises(ValueError, match='unknown mask' if kind == 'objects' else r'must lie in \[0, 1\]'):
        patch_mask(torch.rand(1, 2, 2), kind, value)


@pytest.mark.parametrize('share, num', [(0.0, 0), (0.4, 14), (0.5, 18), (1.0, 35)])
def test_share_equals_loop(share, num):
    relevance = torch.rand(6, 5, 7, generator=torch.Generator().manual_seed(0))
    taken = patch_mask(relevance, 'object', share=share), patch_mask(relevance, 'context', share=share)
    for mask, largest in zip(taken, (True, False)):
        for image, patches in zip(relevance, mask):
            order = sorted(range(35), key=lambda patch: image.flatten()[patch].item(), reverse=largest)
            assert patches.flatten().nonzero().flatten().tolist() == sorted(order[:num])


def test_share_of_random_patches():
    relevance = torch.zeros(50, 4, 4)
    mask = patch_mask(relevance, 'random', generator=torch.Generator().manual_seed(0), share=0.25)
    assert mask.flatten(1).sum(dim=1).tolist() == [4] * 50
    assert mask.float().mean(dim=0).amax() < 0.5  # not always the same ones


@pytest.mark.parametrize('options', [{}, dict(value=0.3, share=0.4)])
def test_either_a_value_or_a_share(options):
    with pytest.raises(ValueError, match='either a value'):
        patch_mask(torch.rand(1, 2, 2), 'object', **options)


@pytest.mark.parametrize('kind', ['object', 'context'])
def test_share_among_equal_patches_is_random(kind):
    relevance = torch.zeros(200, 4, 4)
    mask = patch_mask(relevance, kind, generator=torch.Generator().manual_seed(0), share=0.5).float()
    assert mask.sum(dim=(1, 2)).tolist() == [8] * 200
    assert (mask.mean(dim=0) - 0.5).abs().max() < 0.15  # at every position
