import math

import pytest
import torch

from mmcfmask.counterfactual import part_of_grid, random_color_mixing, random_views, relevance_center, zoom_in


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def slow_view(image, angle, scale, right, down):
    """One channel (H, W), pixel by pixel: turn and zoom about the centre, bilinear, mirrored at the edges of the outer
    pixels."""
    height, width = image.shape

    def mirror(value, size):
        value = abs(value + 0.5) % (2 * size)
        return min(max(min(value, 2 * size - value) - 0.5, 0), size - 1)

    result = torch.empty_like(image)
    for row in range(height):
        for col in range(width):
            x, y = col + 0.5 - width / 2, row + 0.5 - height / 2
            from_x = scale * (math.cos(angle) * x - math.sin(angle) * y) + right * width + width / 2 - 0.5
            from_y = scale * (math.sin(angle) * x + math.cos(angle) * y) + down * height + height / 2 - 0.5
            from_x, from_y = mirror(from_x, width), mirror(from_y, height)
            left, top = min(int(from_x), width - 2), min(int(from_y), height - 2)
            a, b = from_x - left, from_y - top
            result[row, col] = (1 - b) * ((1 - a) * image[top, left] + a * image[top, left + 1]) + b * (
                (1 - a) * image[top + 1, left] + a * image[top + 1, left + 1]
            )
    return result


@pytest.mark.parametrize('shape', [(9, 9), (8, 14)])
def test_equals_the_slow_one(shape):
    images = torch.randn(5, 2, *shape)
    views = random_views(images, rotation=40.0, zoom=1.7, shift=0.2, generator=generator(3))
    _, turn, factor, right, down = torch.rand(5, 5, generator=generator(3))
    for i in range(5):
        angle, scale = math.radians(40 * (2 * turn[i] - 1)), 1.7 ** (1 - 2 * float(factor[i]))
        for channel in range(2):
            expected = slow_view(images[i, channel], angle, scale, 0.2 * (2 * right[i] - 1), 0.2 * (2 * down[i] - 1))
            torch.testing.assert_close(views[i, channel], expected, rtol=1e-4, atol=1e-4)


def test_probability():
    images = torch.randn(400, 1, 4, 4)
    torch.testing.assert_close(random_views(images, 0.0), images)
    kept = (
        torch.isclose(random_views(images, 0.3, generator=generator()), images, atol=1e-5)
        .flatten(1)
        .all(1)
        .float()
        .mean()
    )
    assert kept.item() == pytest.approx(0.7, abs=0.07)


def test_nothing_to_do_is_the_identity_and_dtypes_are_kept():
    images = torch.randn(3, 3, 6, 6, dtype=torch.bfloat16)
    views = random_views(images, rotation=0.0, zoom=1.0, shift=0.0)
    assert views.dtype == torch.bfloat16
    torch.testing.assert_close(views, images)


@pytest.mark.parametrize('bad', [dict(probability=1.5), dict(rotation=-1.0), dict(zoom=0.5), dict(shift=-0.1)])
def test_arguments(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        random_views(torch.zeros(2, 3, 4, 4), **bad)


def test_colors_are_mixed_by_one_matrix_per_image():
    images = torch.randn(6, 3, 4, 5)
    mixed = random_color_mixing(images, generator=generator(1))
    for image, result in zip(images, mixed):
        matrix = torch.linalg.lstsq(image.flatten(1).T, result.flatten(1).T).solution  # from 20 pixels, 9 numbers
        torch.testing.assert_close(torch.einsum('chw,cd->dhw', image, matrix), result, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(mixed[0], images[0])


def test_colors_keep_the_variance_and_change_their_share():
    images = torch.randn(2000, 3, 4, 4)
    assert random_color_mixing(images, generator=generator()).var().item() == pytest.approx(1, abs=0.05)
    kept = (random_color_mixing(images, 0.3, generator=generator()) == images).flatten(1).all(1).float().mean()
    assert kept.item() == pytest.approx(0.7, abs=0.05)
    with pytest.raises(ValueError, match='1.5'):
        random_color_mixing(images, 1.5)


def test_center_of_relevance():
    relevance = torch.rand(4, 3, 5)
    relevance[3] = 0
    for got, one in zip(relevance_center(relevance)[:3], relevance.tolist()):
        mass = sum(value**2 for row in one for value in row)
        right = sum(one[i][j] ** 2 * (j + 0.5) / 5 for i in range(3) for j in range(5)) / mass
        down = sum(one[i][j] ** 2 * (i + 0.5) / 3 for i in range(3) for j in range(5)) / mass
        torch.testing.assert_close(got, torch.tensor([2 * right - 1, 2 * down - 1]))
    assert relevance_center(relevance)[3].tolist() == [0, 0]
    alone = torch.zeros(1, 4, 4)
    alone[0, 3, 0] = 7.0
    assert relevance_center(alone).tolist() == [[-0.75, 0.75]]


@pytest.mark.parametrize('shape, side', [((9, 9), 0.6), ((8, 14), 0.75)])
def test_zoom_equals_the_slow_one(shape, side):
    images, center = (
        torch.randn(6, 2, *shape),
        torch.tensor([[0.0, 0], [0.1, -0.2], [0.9, 0.9], [-1, 0.2], [-0.05, 1], [0.3, 0.0]]),
    )
    closer = zoom_in(images, center, side)
    for image, got, (right, down) in zip(images, closer, center.tolist()):
        right, down = (max(side - 1, min(1 - side, value)) / 2 for value in (right, down))
        for channel in range(2):
            torch.testing.assert_close(
                got[channel], slow_view(image[channel], 0.0, side, right, down), rtol=1e-4, atol=1e-4
            )


def test_part_of_the_grid_is_what_the_zoom_shows():
    center = torch.tensor([[0.0, 0], [0.9, -0.9], [0.3, -0.1]])
    inside = part_of_grid(center, 0.5, (4, 8))
    for one, (right, down) in zip(inside, ((0.0, 0.0), (0.5, -0.5), (0.3, -0.1))):
        for i in range(4):
            for j in range(8):
                assert one[i, j] == (abs((i + 0.5) / 2 - 1 - down) <= 0.5 and abs((j + 0.5) / 4 - 1 - right) <= 0.5)
    numbered = torch.arange(32.0).view(1, 1, 4, 8)  # the part shows the patches that are in it, and no others
    closer = zoom_in(numbered.repeat_interleave(64, 2).repeat_interleave(64, 3), center[:1], 0.5)
    assert closer[0, 0, 64::128, 64::128].flatten().tolist() == numbered[0][inside[:1]].tolist()


def test_zoom_of_nothing_is_the_identity_and_dtypes_are_kept():
    images = torch.randn(2, 3, 6, 6, dtype=torch.bfloat16)
    closer = zoom_in(images, torch.tensor([[0.5, 1.0], [0, 0]]), 1.0)
    assert closer.dtype == torch.bfloat16
    torch.testing.assert_close(closer, images)
    for side in (0.0, 1.1, -1.0):
        with pytest.raises(ValueError, match=r'the side of the crop must lie in \(0, 1\]'):
            zoom_in(images, torch.zeros(2, 2), side)


@pytest.mark.parametrize(
    'change',
    [
        lambda images: random_views(images, generator=generator(2)),
        lambda images: random_color_mixing(images, generator=generator(2)),
        lambda images: zoom_in(images, torch.tensor([[0.13, -0.07], [0.031, 0.09]]), 0.9),
    ],
)
def test_autocast_rounds_neither_places_nor_colors(change):
    images = torch.randn(2, 3, 64, 64)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        rounded = change(images)
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, change(images), rtol=0, atol=0)
