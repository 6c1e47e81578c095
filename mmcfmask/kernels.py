"""Our own GPU kernels, in Triton, which torch includes for NVIDIA and AMD GPUs. Without it, callers use plain torch."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # torch for CPUs, macOS, Windows
    triton = None

# Queries per program, and keys per step if they do not fit at once.
_QUERIES, _KEYS, _MOST_KEYS = 64, 64, 256


@cache
def fits_quick_gelu(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether :func:`quick_gelu_backward` runs on this device."""
    if triton is None or device.type != 'cuda':
        return False
    x = torch.ones(16, device=device, dtype=dtype)
    return _runs(lambda: quick_gelu_backward(x, x))


def fits_relevance(query: Tensor, key: Tensor, value: Tensor, grad: Tensor) -> bool:
    """Whether :func:`relevance_through_layer` supports these tensors: half precision only."""
    dtypes = {x.dtype for x in (query, key, value, grad)}
    return (
        triton is not None
        and key.is_cuda
        and dtypes <= {torch.bfloat16, torch.float16}
        and len(dtypes) == 1
        and _fits_relevance(key.device, key.dtype, *key.shape[2:])
    )


@cache
def _fits_relevance(device: torch.device, dtype: torch.dtype, keys: int, width: int) -> bool:
    x = torch.zeros(1, 1, keys, width, device=device, dtype=dtype)
    return width in (16, 32, 64, 128) and _runs(
        lambda: relevance_through_layer(torch.zeros(1, keys, device=device), x, x, x, x, 1.0)
    )


def _runs(kernel: Callable) -> bool:
    """Whether a kernel compiles and runs here: Triton needs a C compiler, and tiles that fit the GPU."""
    try:
        kernel()
        return True
    except Exception as error:  # of Triton, the driver or the compiler: no common class
        warnings.warn(f'a GPU kernel cannot run here, using a slower way: {type(error).__name__}: {error}')
        return False


if triton is not None:

    @triton.jit
    def _relevance(
        query,
        key,
        value,
        grad,
        row,
        out,
        scale,
        heads,
        queries,
        keys,
        query_image,
        query_head,
        query_token,
        key_image,
        key_head,
        key_token,
        value_image,
        value_head,
        value_token,
        grad_image,
        grad_head,
        grad_token,
        WIDTH: tl.constexpr,
        QUERIES: tl.constexpr,
        KEYS: tl.constexpr,
        AT_ONCE: tl.constexpr,
    ):
        image, head = (tl.program_id(0) // heads).to(tl.int64), tl.program_id(0) % heads
        t, d, l = tl.program_id(1) * QUERIES + tl.arange(0, QUERIES), tl.arange(0, WIDTH), tl.arange(0, KEYS)  # noqa: E741
        inside = t[:, None] < queries
        q = tl.load(
            query + image * query_image + head * query_head + t[:, None] * query_token + d[None, :],
            mask=inside,
            other=0.0,
        )
        g = tl.load(
            grad + image * grad_image + head * grad_head + t[:, None] * grad_token + d[None, :], mask=inside, other=0.0
        )
        weight = tl.load(row + image * queries + t, mask=t < queries, other=0.0) / heads
        key += image * key_image + head * key_head
        value += image * value_image + head * value_head
        out += (tl.program_id(0).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)) * keys
        scale *= 1.4426950408889634  # of exp2
        if AT_ONCE:
            there = l < keys
            k = tl.load(key + l[:, None] * key_token + d[None, :], mask=there[:, None], other=0.0)
            scores = tl.where(there[None, :], tl.dot(q, tl.trans(k)) * scale, float('-inf'))
            scores = tl.exp2(scores - tl.max(scores, 1)[:, None])
            weight /= tl.sum(scores, 1)
            v = tl.load(value + l[:, None] * value_token + d[None, :], mask=there[:, None], other=0.0)
            scores *= tl.maximum(tl.dot(g, tl.trans(v)), 0.0)
            tl.store(out + l, tl.sum(scores * weight[:, None], 0), mask=there)
        else:
            most = tl.full([QUERIES], float('-inf'), tl.float32)
            total = tl.zeros([QUERIES], tl.float32)
            for start in range(0, keys, KEYS):
                there = start + l < keys
                k = tl.load(key + (start + l)[:, None] * key_token + d[None, :], mask=there[:, None], other=0.0)
                scores = tl.where(there[None, :], tl.dot(q, tl.trans(k)) * scale, float('-inf'))
                higher = tl.maximum(most, tl.max(scores, 1))
                total = total * tl.exp2(most - higher) + tl.sum(tl.exp2(scores - higher[:, None]), 1)
                most = higher
            weight /= total
            for start in range(0, keys, KEYS):
                there = start + l < keys
                k = tl.load(key + (start + l)[:, None] * key_token + d[None, :], mask=there[:, None], other=0.0)
                v = tl.load(value + (start + l)[:, None] * value_token + d[None, :], mask=there[:, None], other=0.0)
                scores = tl.exp2(tl.dot(q, tl.trans(k)) * scale - most[:, None]) * tl.maximum(
                    tl.dot(g, tl.trans(v)), 0.0
                )
                tl.store(out + start + l, tl.sum(scores * weight[:, None], 0), mask=there)

    @triton.jit
    def _quick_gelu_backward(grad, x, out, size, BLOCK: tl.constexpr):
        i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        inside = i < size
        scaled = 1.702 * tl.load(x + i, mask=inside, other=0.0).to(tl.float32)
        sigmoid = tl.sigmoid(scaled)
        g = tl.load(grad + i, mask=inside, other=0.0).to(tl.float32)
        tl.store(out + i, (g * sigmoid * (1 + scaled * (1 - sigmoid))).to(out.dtype.element_ty), mask=inside)


def relevance_through_layer(
    row: Tensor, query: Tensor, key: Tensor, value: Tensor, grad: Tensor, scale: float
) -> Tensor:
    """r Ā of one attention layer (:func:`mmcfmask.counterfactual.attention_relevance`), without writing an attention
    matrix.

    Each program computes one head's scores of some queries to all keys and sums over its queries; the sum over programs
    has a fixed order, so the result is deterministic.

    Args:
        row (Tensor): (B, T) float32.
        query, grad (Tensor): (B, heads, T, d), bfloat16 or float16.
        key, value (Tensor): (B, heads, L, d), likewise.
        scale (float): Factor on q kᵀ.

    Returns:
        Tensor: (B, L) float32.
    """
    (batch, heads, queries, width), keys = query.shape, key.shape[2]
    query, key, value, grad = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, value, grad))
    parts = -(-queries // _QUERIES)
    out = torch.empty(batch, heads * parts, keys, device=row.device)
    at_once = keys <= _MOST_KEYS
    strides = [x.stride(axis) for x in (query, key, value, grad) for axis in range(3)]
    with torch.cuda.device_of(row):  # Triton takes the current one
        _relevance[batch * heads, parts](
            query,
            key,
            value,
            grad,
            row.contiguous(),
            out,
            scale,
            heads,
            queries,
            keys,
            *strides,
            WIDTH=width,
            QUERIES=_QUERIES,
            KEYS=max(16, triton.next_power_of_2(keys)) if at_once else _KEYS,
            AT_ONCE=at_once,
            num_warps=8 if at_once else 4,
        )
    return out.sum(1)


def quick_gelu_backward(grad: Tensor, x: Tensor) -> Tensor:
    """Gradient of x · sigmoid(1.702 x), in the dtype of ``x``; both of one shape."""
    grad, x = grad.contiguous(), x.contiguous()
    out = torch.empty_like(x)
    with torch.cuda.device_of(x):
        _quick_gelu_backward[(-(-x.numel() // 1024),)](grad, x, out, x.numel(), BLOCK=1024)
    return out
