"""Number formats of torch: autocast, bfloat16 products, TensorFloat32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def autocast_dtype(device: str) -> torch.dtype | None:
    """The dtype of the autocast that is on for a type of device; None if it is off."""
    if hasattr(torch, 'get_autocast_dtype'):  # torch 2.4
        return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    if device == 'cpu':
        return torch.get_autocast_cpu_dtype() if torch.is_autocast_cpu_enabled() else None
    return torch.get_autocast_gpu_dtype() if torch.is_autocast_enabled() else None


@contextmanager
def no_autocast() -> Iterator[None]:
    """Turn autocast off inside the context, on every device.

    ``torch.autocast(enabled=False)`` also clears the cache of cast weights of all threads when it ends in a thread
    without autocast, such as the one of autograd. torch has no public name for turning autocast off alone.
    """
    with torch._C._DisableAutocast():
        yield


@contextmanager
def bfloat16_products() -> Iterator[None]:
    """Let float32 matrix products round their factors to bfloat16 and sum in float32, inside the context.

    Factors that are bfloat16 numbers lose nothing: this is a bfloat16 product with a float32 result, for which torch
    has no function. (CUDA uses TensorFloat32, which holds every bfloat16 number.)
    """
    backends = [torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, 'matmul', None)]
    if not all(hasattr(backend, 'fp32_precision') for backend in backends):  # before torch 2.9: one switch for both
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision('medium')
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)
        return
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend, precision in zip(backends, ('tf32', 'bf16')):
            backend.fp32_precision = precision
        yield
    finally:
        for backend, precision in zip(backends, before):
            backend.fp32_precision = precision


def multiplies_bfloat16(device: str) -> bool:
    """Whether torch has a fast kernel for bfloat16 products on a type of device. Most x86 CPUs without AVX-512 have
    none."""
    if device != 'cpu':
        return True
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def use_tf32(enabled: bool) -> None:
    """Set whether float32 products and convolutions on a GPU may round their factors to TensorFloat32.

    TensorFloat32 keeps 10 bits and is several times as fast. By default torch allows it for convolutions but not for
    products. From 2.9 on torch warns where these switches and the newer ones are mixed; these work in all versions.
    """
    torch.set_float32_matmul_precision('high' if enabled else 'highest')
    torch.backends.cudnn.allow_tf32 = enabled
