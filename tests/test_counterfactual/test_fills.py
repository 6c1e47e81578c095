import pytest
import torch

from mmcfmask.counterfactual import multi_donors, refill, single_donors


def marked_images(batch=6, channels=3, height=12, width=16):
    """Every pixel tells its image, channel, row and column."""
    index = torch.arange(batch * channels * height * width, dtype=torch.float32)
    return index.view(batch, channels, height, width)


@pytest.mark.parametrize('fill', ['single', 'multi'])
def test_equals_loop_over_patches(fill):
    images, mask = marked_images(), torch.rand(6, 3, 4) < 0.5
    result = refill(images, mask, fill, torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(1)
    donors = single_donors(6, generator=generator) if fill == 'single' else multi_donors((6, 3, 4), generator=generator)
    for b in range(6):
        for i in range(3):
            for j in range(4):
                source = b
                if mask[b, i, j]:
                    source = donors[b] if fill == 'single' else donors[b, i, j]
                rows, cols = slice(4 * i, 4 * i + 4), slice(4 * j, 4 * j + 4)
                assert torch.equal(result[b, :, rows, cols], images[source, :, rows, cols])


@pytest.mark.parametrize('fill', ['single', 'multi'])
@pytest.mark.parametrize('batch', [2, 3, 8])
def test_no_image_gives_to_itself(fill, batch):
    images = marked_images(batch)
    everything = torch.ones(batch, 3, 4, dtype=torch.bool)
    for seed in range(30):
        assert (refill(images, everything, fill, torch.Generator().manual_seed(seed)) != images).all()


def test_single_uses_one_donor_and_each_image_once():
    for seed in range(20):
        donors = single_donors(7, generator=torch.Generator().manual_seed(seed))
        assert sorted(donors.tolist()) == list(range(7))
    counts = torch.zeros(4, 4)
    for seed in range(3000):
        donors = single_donors(4, generator=torch.Generator().manual_seed(seed))
        counts[torch.arange(4), donors] += 1
    share = counts / 3000
    assert share.diagonal().sum() == 0
    assert (share[~torch.eye(4, dtype=torch.bool)] - 1 / 3).abs().max() < 0.04  # every other image alike


def test_multi_is_uniform_over_the_others():
    donors = multi_donors((4, 60, 60), generator=torch.Generator().manual_seed(0))
    share = torch.stack([(donors == donor).float().mean(dim=(1, 2)) for donor in range(4)], dim=1)
    assert share.diagonal().sum() == 0
    assert (share[~torch.eye(4, dtype=torch.bool)] - 1 / 3).abs().max() < 0.04


@pytest.mark.parametrize('fill', ['single', 'multi'])
def test_fixed_generator_reproduces_and_input_is_untouched(fill):
    images, mask = marked_images(), torch.rand(6, 3, 4) < 0.5
    before = images.clone()
    first = refill(images, mask, fill, torch.Generator().manual_seed(3))
    assert torch.equal(first, refill(images, mask, fill, torch.Generator().manual_seed(3)))
    assert torch.equal(images, before)
    assert torch.equal(refill(images, torch.zeros_like(mask), fill), images)


def test_bad_input():
    images, mask = marked_images(), torch.ones(6, 3, 4, dtype=torch.bool)
    with pytest.raises(ValueError, match='at least 2 images'):
        refill(images[:1], mask[:1], 'single')
    with pytest.raises(ValueError, match='unknown fill'):
        refill(images, mask, 'triple')
    with pytest.raises(ValueError, match='does not fit'):
        refill(images, torch.ones(6, 5, 4, dtype=torch.bool), 'multi')
    for wrong in (images[0], mask[0, 0]), (images, mask.flatten(1)):
        with pytest.raises(ValueError, match=r'it must be \(B, h, w\) for images \(B, C, H, W\)'):
            refill(*wrong, 'single')
