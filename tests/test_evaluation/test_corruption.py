import pytest

from mmcfmask.evaluation import ALEXNET_ERROR, corruption_error, mean_corruption_error

# Errors of AlexNet per corruption in percent, as printed in table 1 of Hendrycks & Dietterich (2019).
PRINTED = dict(
    gaussian_noise=88.6, shot_noise=89.4, impulse_noise=92.3, defocus_blur=82.0, glass_blur=82.6, motion_blur=78.6,
    zoom_blur=79.8, snow=86.7, frost=82.7, fog=81.9, brightness=56.5, contrast=85.3, elastic_transform=64.6,
    pixelate=71.8, jpeg_compression=60.7,
)  # yapf: disable


def errors(shift=0.0):
    """AlexNet's own errors, spread over five severities."""
    return {
        corruption: {severity: value + shift + 3 * (severity - 3) for severity in range(1, 6)}
        for corruption, value in ALEXNET_ERROR.items()
    }


def test_denominators_are_the_published_ones():
    assert set(ALEXNET_ERROR) == set(PRINTED)
    assert all(abs(ALEXNET_ERROR[name] - value) <= 0.0501 for name, value in PRINTED.items())


def test_alexnet_has_100():
    assert mean_corruption_error(errors()) == pytest.approx(100)


def test_mean_over_corruptions_of_the_ratio_of_sums():
    given = errors(-20.0)
    expected = 0.0
    for corruption, parts in given.items():
        expected += sum(parts.values()) / (5 * ALEXNET_ERROR[corruption]) / 15
    assert mean_corruption_error(given) == pytest.approx(100 * expected)


def test_no_mce_of_less_than_all():
    given = errors()
    del given['snow'][5]
    assert corruption_error('snow', given['snow']) is None and mean_corruption_error(given) is None
    del given['snow']
    assert mean_corruption_error(given) is None
    assert corruption_error('speckle_noise', errors()['fog']) is None
