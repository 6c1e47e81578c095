"""What a GPU computes, against the CPU and against formulas in float64."""

import copy

import pytest
import torch
import torch.nn.functional as F
from distance import relative
from torch.nn.attention import SDPBackend, sdpa_kernel

from mmcfmask import kernels
from mmcfmask.counterfactual import patch_mask, relevance, relevance_map
from mmcfmask.counterfactual.attention import AttentionCall
from mmcfmask.counterfactual.reference import explicit_relevance
from mmcfmask.models.towers.fast_path import LeanLayerNorm, LeanQuickGELU
from mmcfmask.precision import use_tf32


def step(model, data, device, amp):
    """Losses, relevance and one vector of all gradients of a step; patches and donors are the same on all devices,
    since rounding moves patches over a threshold and generators differ."""
    generator = torch.Generator().manual_seed(2)
    size = len(data['inputs'])
    images = torch.randn(size, 3, 64, 64, generator=generator)
    mask = (torch.rand(size, 64, generator=generator).argsort(1).argsort(1) >= 16).view(size, 8, 8)
    model, seen = model.to(device), []
    make = model.data_preprocessor.counterfactual

    def counterfactual(clean, grid, relevance=None, generator=None):
        seen.append(relevance)
        made = make(clean, grid, relevance, generator)
        made.mask = mask.to(device)
        made.images = clean if made.hidden else images.to(device)
        return made

    model.data_preprocessor.counterfactual = counterfactual
    with torch.autocast(device, dtype=torch.bfloat16, enabled=amp):
        losses = model(**model.data_preprocessor(data, training=True), mode='loss')
    sum(losses.values()).backward()
    gradient = torch.cat(
        [parameter.grad.float().flatten() for parameter in model.parameters() if parameter.grad is not None]
    )
    return torch.stack([losses['loss_cls'], losses['loss_distill']]), seen[0], gradient


@pytest.mark.parametrize('amp', [False, True])
@pytest.mark.parametrize('mask', ['object', 'context', 'random'])
@pytest.mark.parametrize('fill', ['none', 'single', 'multi'])
def test_step_is_that_of_the_cpu(build, batch, mask, fill, amp):
    exact = step(build(mask, fill), batch(), 'cpu', False)
    found = step(build(mask, fill), batch(), 'cuda', amp)
    rounded = step(build(mask, fill), batch(), 'cpu', amp)
    for gpu, cpu, right in zip(found, rounded, exact):
        if right is None:
            assert mask == 'random' and gpu is None
        elif amp:  # no less exact than the CPU's bfloat16
            assert relative(gpu, right) < 2 * relative(cpu, right) + 1e-2
        else:
            assert relative(gpu, right) < 1e-4


@pytest.mark.parametrize('recompute', [False, True])
def test_relevance_map_is_the_full_recursion(build, batch, recompute):
    model = build(recompute=recompute).eval()
    images, labels = batch()['inputs'].float() / 60 - 2, torch.arange(16) % 5
    exact = copy.deepcopy(model).double()
    right = explicit_relevance(exact.backbone.visual, lambda x: exact.head((x,)), images.double(), labels)
    model, images, labels = model.cuda(), images.cuda(), labels.cuda()
    assert relative(relevance_map(model, images, labels), right) < 1e-4
    with torch.autocast('cuda', dtype=torch.bfloat16):
        assert relative(relevance_map(model, images, labels), right) < 0.05


@pytest.mark.parametrize(
    'queries, tokens, width, dtype',
    [
        (1, 197, 64, torch.bfloat16),
        (197, 197, 64, torch.bfloat16),
        (50, 50, 64, torch.float16),
        (257, 257, 80, torch.bfloat16),
        (577, 577, 64, torch.bfloat16),
        (17, 17, 128, torch.bfloat16),
    ],
)
def test_relevance_kernel_is_its_formula(queries, tokens, width, dtype):
    """80 channels, as in ViT-H, take the plain way."""
    qkv = torch.randn(3, tokens, 3, 5, width, device='cuda').to(dtype)
    query, key, value = (part.transpose(1, 2) for part in qkv.unbind(2))
    grad = torch.randn(3, queries, 5, width, device='cuda').to(dtype).transpose(1, 2)
    row = torch.rand(3, queries, device='cuda')
    call = AttentionCall(query[:, :, :queries], key, value, None, width**-0.5)
    assert kernels.fits_relevance(call.query, key, value, grad) == (width != 80)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    found = relevance._through_layer(row, call, grad)
    if width != 80 and queries > 64:
        assert (
            torch.cuda.max_memory_allocated() - before < 3 * 5 * queries * tokens * 4 / 2
        )  # half of a matrix in float32
    attention = (call.query.double() @ key.double().mT * call.scale).softmax(-1)
    through = (attention * (grad.double() @ value.double().mT)).relu().mean(1)
    right = (row.double().unsqueeze(1) @ through)[:, 0]
    assert relative(found, right) < (1e-5 if width != 80 else 1e-3)
    assert torch.equal(relevance._through_layer(row, call, grad), found)


@pytest.mark.parametrize('dtype, bound', [(torch.bfloat16, 4e-3), (torch.float32, 1e-6)])
def test_quick_gelu(dtype, bound):
    x = (
        torch.cat([torch.linspace(-9, 9, 5001), torch.tensor([-1e4, -300, 11.8, 60])])
        .to('cuda', dtype)
        .requires_grad_()
    )
    grad, exact = torch.randn_like(x), x.detach().double().requires_grad_()
    right = exact * torch.sigmoid(1.702 * exact)
    found = LeanQuickGELU()(x)
    assert found.dtype == dtype and relative(found, right) < bound
    assert relative(torch.autograd.grad(found, x, grad)[0], torch.autograd.grad(right, exact, grad.double())[0]) < bound


def test_layer_norm_stays_in_bfloat16_under_autocast():
    norm = LeanLayerNorm(128).cuda()
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
        norm.bias.normal_()
    x = (3 + torch.randn(40, 128, device='cuda')).bfloat16().requires_grad_()
    grad, exact = torch.randn(40, 128, device='cuda').bfloat16(), copy.deepcopy(norm).double()
    wide = x.detach().double().requires_grad_()
    right = exact(wide)
    with torch.autocast('cuda', dtype=torch.bfloat16):
        found = norm(x)
    assert found.dtype == torch.bfloat16 and relative(found, right) < 5e-3
    inputs = (x, norm.weight, norm.bias), (wide, exact.weight, exact.bias)
    for one, other in zip(
        torch.autograd.grad(found, inputs[0], grad), torch.autograd.grad(right, inputs[1], grad.double())
    ):
        assert relative(one, other) < 1e-2


def test_teacher_rounded_once_is_the_teacher_under_autocast(build):
    images = torch.randn(16, 3, 64, 64, device='cuda')
    rounded, exact = build().cuda().teacher, build().cuda().teacher
    exact.exact = True
    with torch.autocast('cuda', dtype=torch.bfloat16):
        assert torch.equal(rounded(images), exact(images))
    assert rounded.backbone.visual.transformer.resblocks[0].mlp.c_fc.weight.dtype == torch.bfloat16
    beside_float32 = build(teacher=dict(precision='bf16')).cuda().teacher
    assert relative(beside_float32(images), rounded(images)) < 1e-2


@pytest.mark.parametrize('amp', [False, True])
def test_recomputed_and_kept_activations_give_the_same(build, batch, amp):
    kept, recomputed = (step(build(recompute=recompute), batch(), 'cuda', amp) for recompute in (False, True))
    for one, other in zip(kept, recomputed):
        assert relative(one, other) < (1e-2 if amp else 1e-5)


@pytest.mark.parametrize('backend', ['FLASH_ATTENTION', 'EFFICIENT_ATTENTION', 'CUDNN_ATTENTION', None])
@pytest.mark.parametrize('queries, masked', [(197, False), (1, False), (197, True)])
def test_attention_back_ends(queries, masked, backend):
    """With the one query of the last block, and with hidden patches."""
    if backend == 'FLASH_ATTENTION' and masked:
        pytest.skip('flash attention takes no mask')
    inputs = [torch.randn(8, 12, length, 64, device='cuda').bfloat16() for length in (queries, 197, 197)]
    visible = (torch.rand(8, 1, 1, 197, device='cuda') > 0.3) if masked else None

    def gradients(dtype, chosen):
        leaves = [x.to(dtype).requires_grad_() for x in inputs]
        with sdpa_kernel(chosen):
            F.scaled_dot_product_attention(*leaves, visible).float().square().sum().backward()
        return torch.cat([leaf.grad.flatten() for leaf in leaves])

    exact = gradients(torch.float32, SDPBackend.MATH)
    every = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.MATH]
    assert relative(gradients(torch.bfloat16, every if backend is None else getattr(SDPBackend, backend)), exact) < 0.01


def test_tf32_and_the_relevance_map(build, batch, record_property):
    """float32 products are exact unless asked otherwise; what TensorFloat32 does to maps and masks is small."""
    model = build().eval().cuda()
    images, labels = batch()['inputs'].cuda().float() / 60 - 2, torch.arange(16, device='cuda') % 5
    exact = relevance_map(model, images, labels)
    use_tf32(True)
    try:
        fast = relevance_map(model, images, labels)
    finally:
        use_tf32(False)
    assert relative(relevance_map(model, images, labels), exact) < 1e-5
    moved = (patch_mask(fast, 'object', 0.3) != patch_mask(exact, 'object', 0.3)).float().mean()
    record_property('relevance differs by', relative(fast, exact))
    record_property('patches that change sides', float(moved))
    assert 0 < relative(fast, exact) < 0.02 and moved < 0.02
