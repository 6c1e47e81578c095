import pytest
import torch

from mmcfmask.models.interpolation import interpolate


def weights(seed, **others):
    generator = torch.Generator().manual_seed(seed)
    return dict(weight=torch.randn(4, 3, generator=generator), bias=torch.randn(4, generator=generator), **others)


@pytest.mark.parametrize('alpha', [0.1, 0.5, 0.7])
def test_equal_to_the_formula(alpha):
    start, end = weights(0), weights(1)
    mixed = interpolate(start, end, alpha)
    for name in start:
        for a, b, c in zip(
            start[name].flatten().tolist(), end[name].flatten().tolist(), mixed[name].flatten().tolist()
        ):
            assert c == pytest.approx((1 - alpha) * a + alpha * b, rel=1e-6, abs=1e-7)


def test_ends_are_exact_and_nothing_is_shared():
    start, end = weights(0), weights(1)
    for alpha, expected in ((0, start), (1, end)):
        mixed = interpolate(start, end, alpha)
        assert all(torch.equal(mixed[name], expected[name]) for name in expected)
        mixed['weight'].zero_()
        assert expected['weight'].abs().sum() > 0


def test_half_precision_is_interpolated_in_float32():
    start, end = torch.full((1000,), 1.0), torch.linspace(1.001, 1.01, 1000)
    mixed = interpolate(dict(w=start.half()), dict(w=end.half()), 0.5)['w']
    assert mixed.dtype == torch.float16 and torch.equal(mixed, ((start + end.half().float()) / 2).half())


def test_counters_are_those_of_the_end():
    mixed = interpolate(weights(0, steps=torch.tensor(3)), weights(1, steps=torch.tensor(8)), 0.5)
    assert mixed['steps'] == 8 and mixed['steps'].dtype == torch.int64


def test_bad_input():
    with pytest.raises(ValueError, match=r'alpha=1.5 must lie in \[0, 1\]'):
        interpolate(weights(0), weights(1), 1.5)
    with pytest.raises(ValueError, match='1 tensors are in only one of them, such as extra'):
        interpolate(weights(0), weights(1, extra=torch.zeros(1)), 0.5)
    with pytest.raises(ValueError, match=r'bias has the shapes \(4,\) and \(5,\)'):
        interpolate(weights(0), dict(weights(1), bias=torch.zeros(5)), 0.5)
