import numpy as np
import pytest
import torch

from mmcfmask.counterfactual import choose_donors, multi_donors, refill, single_donors
from mmcfmask.counterfactual.reference import explicit_refill


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


@pytest.mark.parametrize('fill', ['single', 'multi'])
def test_patches_of_unequal_sizes(fill):
    """A grid that does not divide the image, such as 27 x 27 of 384 pixels: pixel i of H is in patch ⌊i h / H⌋."""
    images, mask = torch.rand(4, 3, 11, 16), torch.rand(4, 3, 5) < 0.5
    donors = choose_donors(fill, (4, 3, 5), generator=torch.Generator().manual_seed(1))
    expected = images.clone()
    for image, y, x in np.ndindex(4, 11, 16):
        row, col = y * 3 // 11, x * 5 // 16
        if mask[image, row, col]:
            expected[image, :, y, x] = images[donors[image, row, col], :, y, x]
    found = refill(images, mask, fill, torch.Generator().manual_seed(1))
    assert torch.equal(found, expected) and found.is_contiguous()
    assert torch.equal(explicit_refill(images, mask, donors), expected)


def test_bad_input():
    images, mask = marked_images(), torch.ones(6, 3, 4, dtype=torch.bool)
    with pytest.raises(ValueError, match='at least 2 images'):
        refill(images[:1], mask[:1], 'single')
    with pytest.raises(ValueError, match='unknown fill'):
        refill(images, mask, 'triple')
    with pytest.raises(ValueError, match='does not fit'):
        refill(images, torch.ones(6, images.shape[2] + 1, 4, dtype=torch.bool), 'multi')
    for wrong in (images[0], mask[0, 0]), (images, mask.flatten(1)):
        with pytest.raises(ValueError, match=r'it must be \(B, h, w\) for images \(B, C, H, W\)'):
            refill(*wrong, 'single')


CLASSES = [
    [0, 1],
    [0, 0, 1],
    [2, 0, 2, 0, 2, 0],
    [5, 3, 5, 7, 3, 5, 9, 1],
    [0, 0, 0, 0, 1, 0, 2, 0],
    [0, 1, 2, 3, 4],
    [4, 4, 4, 4],
    [1, 0, 1, 2, 1, 2, 1],
]


def donors_of(fill, labels, seed, num=None):
    """(num, B) or (B,) donors, of every patch of a multi fill in turn."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.tensor(labels)
    if fill == 'single':
        return single_donors(len(labels), generator=generator, labels=labels, num=num)
    return multi_donors((len(labels), 1, 1), generator=generator, labels=labels, num=num)[..., 0, 0]


@pytest.mark.parametrize('fill', ['single', 'multi'])
@pytest.mark.parametrize('labels', CLASSES)
def test_donors_of_another_class(fill, labels):
    batch = len(labels)
    for seed in range(50):
        first = donors_of(fill, labels, seed)
        both = donors_of(fill, labels, seed, num=2)
        assert torch.equal(both[0], first)
        for donors in both.tolist():
            for image, donor in enumerate(donors):
                assert donor != image and 0 <= donor < batch
                assert labels[donor] != labels[image] or len(set(labels)) == 1
        for image, (one, two) in enumerate(both.T.tolist()):
            candidates = sum(label != labels[image] for label in labels) or batch - 1
            assert one != two or candidates == 1


@pytest.mark.parametrize('labels', CLASSES)
def test_other_classes_give_about_once(labels):
    batch, most = len(labels), max(map(labels.count, labels))
    for seed in range(30):
        for donors in donors_of('single', labels, seed, num=2).tolist():
            given = [donors.count(image) for image in range(batch)]
            if 2 * most <= batch or most == batch:
                assert given == [1] * batch
                continue
            largest = max(labels, key=labels.count)
            of_others = [count for count, label in zip(given, labels) if label != largest]
            assert sum(of_others) == most and max(of_others) - min(of_others) <= 1
            assert max(count for count, label in zip(given, labels) if label == largest) == 1


@pytest.mark.parametrize('fill', ['single', 'multi'])
def test_other_classes_give_alike(fill):
    labels, counts = [0, 1, 2, 0, 2, 1], torch.zeros(6, 6)
    for seed in range(3000):
        counts[torch.arange(6), donors_of(fill, labels, seed)] += 1
    other = torch.tensor(labels)[:, None] != torch.tensor(labels)
    assert counts[~other].sum() == 0
    assert (counts[other] / 3000 - 1 / 4).abs().max() < 0.04


@pytest.mark.parametrize('fill', ['single', 'multi'])
@pytest.mark.parametrize('batch', [2, 3, 8])
def test_several_donors_of_any_class(fill, batch):
    for seed in range(20):
        generators = [torch.Generator().manual_seed(seed) for _ in range(2)]
        one = choose_donors(fill, (batch, 3, 4), generator=generators[0])
        several = choose_donors(fill, (batch, 3, 4), generator=generators[1], num=2)
        assert one.shape == (batch, 3, 4) and torch.equal(several[0], one)
        assert torch.equal(*(generator.get_state() for generator in generators))  # nothing more was drawn
        assert (several != torch.arange(batch)[:, None, None]).all()
        assert (several[0] != several[1]).all() or batch == 2


def test_donors_are_as_they_were_published():
    """The random numbers of a refill did not change when donors of other classes were added."""
    order = torch.rand(7, generator=torch.Generator().manual_seed(4)).argsort().tolist()
    donors = single_donors(7, generator=torch.Generator().manual_seed(4)).tolist()
    assert [donors[order[place]] for place in range(7)] == order[-1:] + order[:-1]
    shift = torch.randint(1, 7, (7, 2, 3), generator=torch.Generator().manual_seed(4))
    expected = (torch.arange(7)[:, None, None] + shift) % 7
    assert torch.equal(multi_donors((7, 2, 3), generator=torch.Generator().manual_seed(4)), expected)


@pytest.mark.parametrize('fill', ['single', 'multi'])
def test_refill_from_other_classes_equals_loop(fill):
    images, mask, labels = marked_images(), torch.rand(6, 3, 4) < 0.5, torch.tensor([0, 0, 0, 0, 1, 2])
    result = refill(images, mask, fill, torch.Generator().manual_seed(1), labels)
    sources = result[:, 0, ::4, ::4] // (3 * 12 * 16)  # the image that every patch comes from
    for b in range(6):
        donors = {int(source) for source in sources[b][mask[b]]}
        assert {int(source) for source in sources[b][~mask[b]]} <= {b}
        assert all(labels[donor] != labels[b] for donor in donors)
        assert fill == 'multi' or len(donors) <= 1
    assert torch.equal(result, explicit_refill(images, mask, sources.long()))
