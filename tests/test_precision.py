import pytest
import torch

from mmcfmask.precision import autocast_dtype, bfloat16_products


def precisions():
    return torch.get_float32_matmul_precision(), [
        getattr(getattr(backend, 'matmul', None), 'fp32_precision', None)
        for backend in (torch.backends.cuda, torch.backends.mkldnn)
    ]


def test_products_of_bfloat16_numbers_are_exact():
    a, b = (torch.randn(3, 70, 64).bfloat16() for _ in range(2))
    before = precisions()
    with bfloat16_products():
        product = torch.bmm(a.float(), b.float().mT)
    assert precisions() == before
    exact = torch.bmm(a.double(), b.double().mT)
    assert product.dtype == torch.float32
    assert ((product - exact).norm() / exact.norm()).item() < 1e-6  # bfloat16 results would be off by 2e-3


def test_precision_is_restored_after_an_error():
    before = precisions()
    with pytest.raises(RuntimeError), bfloat16_products():
        raise RuntimeError
    assert precisions() == before


def test_autocast_dtype():
    assert autocast_dtype('cpu') is None
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert autocast_dtype('cpu') == torch.bfloat16 and autocast_dtype('cuda') is None
        with torch.autocast('cpu', enabled=False):
            assert autocast_dtype('cpu') is None
