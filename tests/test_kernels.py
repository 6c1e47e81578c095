"""GPU kernels on a CPU, by Triton's interpreter. On a GPU: tests/gpu."""

import os
import subprocess
import sys

import pytest
import torch

from mmcfmask import kernels

SCRIPT = """
import torch
from mmcfmask import kernels

torch.manual_seed(0)
# Products in float16, since the interpreter knows no bfloat16; tokens that fit at once and that do not, one query,
# masked tails.
for batch, heads, queries, tokens, width, dtype in (
    (2, 3, 17, 17, 16, torch.float16),
    (2, 2, 70, 70, 64, torch.float16),
    (1, 2, 1, 197, 64, torch.float16),
    (1, 1, 270, 270, 32, torch.float32),
):
    qkv = torch.randn(batch, tokens, 3, heads, width).to(dtype)
    query, key, value = (part.transpose(1, 2) for part in qkv.unbind(2))
    query, row = query[:, :, :queries], torch.rand(batch, queries)
    grad = torch.randn(batch, queries, heads, width).to(dtype).transpose(1, 2)
    found = kernels.relevance_through_layer(row, query, key, value, grad, width**-0.5)
    attention = (query.double() @ key.double().mT * width**-0.5).softmax(-1)
    through = (attention * (grad.double() @ value.double().mT)).relu().mean(1)
    torch.testing.assert_close(found.double(), (row.double().unsqueeze(1) @ through)[:, 0], rtol=1e-5, atol=1e-6)

x = torch.cat([torch.linspace(-9, 9, 2001), torch.tensor([-1e4, 11.8, 60, 1e4])])
grad, exact = torch.randn_like(x), x.double().requires_grad_()
right = torch.autograd.grad(exact * torch.sigmoid(1.702 * exact), exact, grad.double())[0]
torch.testing.assert_close(kernels.quick_gelu_backward(grad, x).double(), right, rtol=1e-5, atol=1e-5)
print('right')
"""


@pytest.mark.skipif(kernels.triton is None, reason='needs triton')
def test_kernels_are_their_formulas(tmp_path):
    done = subprocess.run(
        [sys.executable, '-c', SCRIPT], capture_output=True, text=True, env={**os.environ, 'TRITON_INTERPRET': '1'}
    )
    assert done.stdout.strip() == 'right', done.stderr[-3000:]


def test_on_a_cpu_the_plain_ways_are_taken():
    assert not kernels.fits_quick_gelu(torch.device('cpu'), torch.float32)
    assert not kernels.fits_relevance(*(torch.zeros(1, 1, 4, 64, dtype=torch.bfloat16) for _ in range(4)))
