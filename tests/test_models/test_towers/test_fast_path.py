"""The lean tower against the stock one, and its pieces against their formulas."""

import copy
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace

import open_clip
import pytest
import torch
import torch.nn.functional as F
from open_clip.transformer import LayerNorm, QuickGELU
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from mmcfmask.counterfactual import attention_relevance, mask_keys, record_attention
from mmcfmask.models import OpenCLIPBackbone
from mmcfmask.models.towers.fast_path import (
    LeanBlock,
    LeanQuickGELU,
    LeanTransformer,
    attention,
    make_lean,
    recomputed,
    recomputes_on,
)


def towers(name='tiny-vit-quickgelu', dtype=torch.float64):
    """A stock tower and its lean copy, with weights large enough for attention to be far from uniform."""
    torch.manual_seed(1)
    stock = open_clip.create_model(name).visual.to(dtype).train()
    with torch.no_grad():
        for parameter in stock.parameters():
            parameter.add_(0.3 * parameter.std().nan_to_num(nan=0.1) * torch.randn_like(parameter))
            if parameter.ndim > 1:
                parameter.mul_(3)
    lean = copy.deepcopy(stock)
    make_lean(lean)
    return stock, lean


def features_and_gradients(tower, images, autocast=False):
    with torch.autocast('cpu', dtype=torch.bfloat16, enabled=autocast):
        features = tower(images)
    torch.manual_seed(4)
    (features.float() * torch.randn(features.shape)).sum().backward()
    grads = {name: parameter.grad.clone() for name, parameter in tower.named_parameters()}
    tower.zero_grad()
    return features.detach(), grads


@pytest.mark.parametrize('name', ['tiny-vit', 'tiny-vit-quickgelu'])
@pytest.mark.parametrize('checkpointing', [False, True])
def test_features_and_gradients_equal_the_stock_tower(name, checkpointing):
    stock, lean = towers(name)
    lean.set_grad_checkpointing(checkpointing)
    images = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    features, grads = features_and_gradients(stock, images)
    lean_features, lean_grads = features_and_gradients(lean, images)
    torch.testing.assert_close(lean_features, features)
    assert set(lean_grads) == set(grads)
    for name, grad in grads.items():
        torch.testing.assert_close(lean_grads[name], grad, rtol=1e-6, atol=1e-6 * float(grad.abs().max()), msg=name)


def test_bfloat16_differs_from_float32_by_no_more_than_the_stock_tower_does():
    stock, lean = towers(dtype=torch.float32)
    images = torch.randn(8, 3, 32, 32)
    exact, exact_grads = features_and_gradients(stock, images)
    errors = {}
    for name, tower in (('stock', stock), ('lean', lean)):
        features, grads = features_and_gradients(tower, images, autocast=True)
        errors[name] = [((features - exact).norm() / exact.norm()).item()] + [
            ((grads[key] - grad).norm() / grad.norm()).item() for key, grad in exact_grads.items()
        ]
    assert errors['stock'][0] > 1e-4
    for stock_error, lean_error in zip(errors['stock'], errors['lean']):
        assert lean_error < 1.5 * stock_error


def test_weights_names_and_intermediate_features_stay(tiny_pretrained):
    stock, lean = towers()
    assert list(stock.state_dict()) == list(lean.state_dict())
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    a, b = (tower.forward_intermediates(images) for tower in (stock, lean))  # all tokens of the last block too
    for one, other in zip(a['image_intermediates'], b['image_intermediates']):
        torch.testing.assert_close(one, other)


class Operations(TorchDispatchMode):
    """Shapes of the products and elementwise operations inside it."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.calls.append((func.overloadpacket.__name__, tuple(getattr(result, 'shape', ()))))
        return result


def test_the_last_block_works_on_the_class_token_alone():
    stock, lean = towers()
    images = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    wide = []
    for tower in (stock, lean):
        with Operations() as operations, torch.no_grad():
            tower(images)
        wide.append([shape for name, shape in operations.calls if name == 'addmm' and shape[-1] == 128])
    assert wide[0] == [(51, 128)] * 3 and wide[1] == [(51, 128)] * 2 + [(3, 128)]


def test_no_block_falls_back_to_stock_attention(monkeypatch):
    _, lean = towers()
    monkeypatch.setattr(nn.MultiheadAttention, 'forward', lambda *args, **kwargs: pytest.fail('stock attention'))
    lean(torch.randn(2, 3, 32, 32, dtype=torch.float64))


def test_recorded_attention_of_the_last_layer_has_one_query():
    stock, lean = towers()
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    recorded = []
    for tower in (stock, lean):
        with record_attention(tower, images) as calls:
            tower(images)
        recorded.append(calls)
    assert [call.query.shape[2] for call in recorded[1]] == [17, 17, 1] and len(recorded[0]) == 3
    for one, other in zip(*recorded):
        torch.testing.assert_close(one.key, other.key)
        torch.testing.assert_close(one.value, other.value)
        torch.testing.assert_close(one.output[:, :, :1], other.output[:, :, :1])


def test_hidden_patches():
    stock, lean = towers()
    images, hidden = torch.randn(3, 3, 32, 32, dtype=torch.float64), torch.rand(3, 16) < 0.4
    results = []
    for tower in (stock, lean):
        with mask_keys(tower, hidden):
            results.append(features_and_gradients(tower, images))
    torch.testing.assert_close(results[1][0], results[0][0])
    for name, grad in results[0][1].items():
        torch.testing.assert_close(results[1][1][name], grad, rtol=1e-6, atol=1e-6 * float(grad.abs().max()), msg=name)


def test_quick_gelu_is_its_formula():
    x = torch.cat([torch.linspace(-9, 9, 1001), torch.tensor([-1e4, -300, 11.8, 60, 1e4])]).double().requires_grad_()
    grad = torch.randn_like(x)
    y, expected = LeanQuickGELU()(x), x * torch.sigmoid(1.702 * x)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    for one, other in zip(torch.autograd.grad(y, x, grad), torch.autograd.grad(expected, x, grad)):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_quick_gelu_keeps_one_tensor():
    kept = []
    x = torch.randn(50, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        LeanQuickGELU()(x)
        assert len(kept) == 1
        QuickGELU()(x)
    assert len(kept) > 3


@pytest.mark.parametrize('autocast', [False, True])
@pytest.mark.parametrize('name', ['tiny-vit', 'tiny-vit-quickgelu'])
def test_of_the_mlp_one_wide_tensor_is_kept(name, autocast):
    """2 images of 17 tokens, 128 wide: in all blocks but the last, only what comes before the activation."""
    _, lean = towers(name, torch.float32)
    images = torch.randn(2, 3, 32, 32)
    wide = {}

    def kept(tensor):
        if tensor.numel() == 2 * 17 * 128:
            wide[tensor.data_ptr()] = tensor  # alive, so that no other takes its place
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(kept, lambda tensor: tensor),
        torch.autocast('cpu', torch.bfloat16, enabled=autocast),
    ):
        lean(images)
    assert len(wide) == 2


def test_recompute_is_a_choice():
    """Calls of QuickGELU and the layer norms of every block in the backward pass; the result is the same."""
    images, results = torch.randn(3, 3, 32, 32, dtype=torch.float64), []
    for recompute in (True, False):
        lean, calls = towers()[0], []
        make_lean(lean, recompute=recompute)
        for block in lean.transformer.resblocks:
            for module in (block.ln_1, block.ln_2, block.mlp.gelu):
                module.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        results.append(features_and_gradients(lean, images))
        assert len(calls) == 3 * 3 * (2 if recompute else 1)
    (features, grads), (kept_features, kept_grads) = results
    assert torch.equal(features, kept_features)
    assert all(torch.equal(grad, kept_grads[name]) for name, grad in grads.items())


def test_without_a_backward_pass_nothing_is_prepared_for_one(monkeypatch):
    from mmcfmask.models.towers import fast_path

    lean = towers()[0]
    make_lean(lean, recompute=True)
    monkeypatch.setattr(fast_path, 'recomputed', lambda *args: pytest.fail('prepares recomputation'))
    with torch.no_grad():
        lean(torch.randn(3, 3, 32, 32, dtype=torch.float64))
    with pytest.raises(pytest.fail.Exception):
        lean(torch.randn(3, 3, 32, 32, dtype=torch.float64))


@pytest.mark.parametrize('name', ['tiny-vit', 'tiny-vit-quickgelu'])
@pytest.mark.parametrize('strict', [False, True])
@pytest.mark.parametrize('recorded', [False, True])
def test_the_tower_is_a_graph_of_torch_export(name, strict, recorded):
    """With any number of images, also where gradients are recorded."""
    _, lean = towers(name, torch.float32)
    lean.eval()
    with torch.set_grad_enabled(recorded):
        batch = torch.export.Dim('batch')
        graph = torch.export.export(lean, (torch.randn(2, 3, 32, 32),), dynamic_shapes=({0: batch},), strict=strict)
    images = torch.randn(5, 3, 32, 32)
    torch.testing.assert_close(graph.module()(images), lean(images), rtol=1e-5, atol=1e-5)
    assert not {str(node.target) for node in graph.graph.nodes} & {'aten.softplus_backward.default'}


def test_recomputed_tensors_are_freed_and_given_again():
    layer, x = nn.Linear(6, 4).double(), torch.randn(3, 5, 6, dtype=torch.float64)
    calls = []

    def function(source):
        calls.append(1)
        return source.sin()

    tensor = x.sin()
    freed = weakref.ref(tensor)
    with recomputed(tensor, function, x):
        loss = layer(tensor).square().sum()
    del tensor
    assert freed() is None
    loss.backward()
    expected = torch.autograd.grad(layer(x.sin()).square().sum(), layer.weight)[0]
    torch.testing.assert_close(layer.weight.grad, expected)
    assert len(calls) == 1


@pytest.mark.parametrize('name', ['tiny-vit', 'tiny-vit-quickgelu'])
def test_relevance_recomputes_nothing_and_leaves_the_casts_of_weights(name, monkeypatch):
    """Its backward pass needs no gradients of weights; autocast's cache is one for all threads, and autograd has its
    own on a GPU."""
    _, lean = towers(name, torch.float32)
    calls, cleared = [], []
    for block in lean.transformer.resblocks:
        for module in (block.ln_1, block.ln_2, block.mlp.gelu):
            module.register_forward_hook(lambda *_: calls.append(1))
    images = torch.randn(3, 3, 32, 32)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        with record_attention(lean, images) as recorded:
            score = lean(images).float().square().sum()
        monkeypatch.setattr(torch, 'clear_autocast_cache', lambda: cleared.append(1))
        with ThreadPoolExecutor(1) as pool:
            relevance = pool.submit(attention_relevance, score, recorded, retain_graph=True).result()
            assert len(calls) == 3 * 3 and relevance.isfinite().all()
            pool.submit(score.backward).result()
        assert not cleared
    assert len(calls) == 2 * 3 * 3
    assert all(parameter.grad.isfinite().all() for parameter in lean.parameters())


def test_where_nobody_says_a_large_gpu_keeps_activations(monkeypatch):
    for memory, kept in ((80e9, True), (24e9, False)):
        recomputes_on.cache_clear()
        monkeypatch.setattr(
            torch.cuda, 'get_device_properties', lambda device, memory=memory: SimpleNamespace(total_memory=memory)
        )
        assert recomputes_on(torch.device('cuda:0')) is not kept and recomputes_on(torch.device('cpu'))
    recomputes_on.cache_clear()


def test_layer_norm_makes_no_float32_copies_on_a_gpu():
    """By the operations of tensors that have no values."""
    with FakeTensorMode():
        norm, x = make_norm('cuda'), torch.empty(4, 32, device='cuda', dtype=torch.bfloat16)
        with Operations() as operations, on_autocast('cuda'):
            assert norm(x).dtype == torch.bfloat16
    names = [name for name, shape in operations.calls if shape == (4, 32) or name == 'native_layer_norm']
    assert names == ['native_layer_norm']


def make_norm(device):
    norm = nn.Sequential(LayerNorm(32, device=device))
    make_lean(norm)
    return norm


@contextmanager
def on_autocast(device):
    """Also without a GPU, where torch.autocast refuses."""
    before = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    torch.set_autocast_enabled(device, True)
    torch.set_autocast_dtype(device, torch.bfloat16)
    try:
        yield
    finally:
        torch.set_autocast_enabled(device, before[0])
        torch.set_autocast_dtype(device, before[1])


def plain_attention(q, k, v, visible=None):
    scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
    if visible is not None:
        scores = scores.masked_fill(~visible, float('-inf'))
    return scores.softmax(dim=-1) @ v


@pytest.mark.parametrize('queries', [1, 70])
@pytest.mark.parametrize('masked', [False, True])
@pytest.mark.parametrize('chunk', [1, 3 * 70 * 70, 2**20])
def test_bfloat16_attention_on_a_cpu_is_as_exact_as_the_fused_kernel(monkeypatch, queries, masked, chunk):
    from mmcfmask.models.towers import fast_path

    monkeypatch.setattr(fast_path, '_CPU_CHUNK', chunk)
    q = torch.randn(4, queries, 5, 24).transpose(1, 2).bfloat16()
    k, v = (2 * torch.randn(4, 70, 5, 24).transpose(1, 2).bfloat16() for _ in range(2))
    visible = (torch.rand(4, 70) < 0.6)[:, None, None, :] if masked else None
    grad = torch.randn(4, 5, queries, 24).bfloat16()

    def gradients(function, dtype):
        inputs = [x.to(dtype).requires_grad_() for x in (q, k, v)]
        output = function(*inputs, visible)
        return output, torch.autograd.grad(output, inputs, grad.to(dtype))

    exact_output, exact = gradients(plain_attention, torch.float64)
    output, ours = gradients(attention, torch.bfloat16)
    fused_output, fused = gradients(F.scaled_dot_product_attention, torch.bfloat16)
    assert output.grad_fn.name().startswith('_LowPrecision')
    assert torch.equal(output, fused_output)
    for mine, theirs, true in zip(ours, fused, exact):
        assert mine.dtype == torch.bfloat16
        errors = [((x.double() - true).norm() / true.norm()).item() for x in (mine, theirs)]
        assert errors[0] < max(1.5 * errors[1], 0.006)


def test_float32_attention_is_the_fused_kernel():
    q, k, v = (torch.randn(2, 3, 9, 8, requires_grad=True) for _ in range(3))
    assert torch.equal(attention(q, k, v), F.scaled_dot_product_attention(q, k, v))
    assert 'LowPrecision' not in attention(q, k, v).grad_fn.name()


def test_attention_modules_called_otherwise_are_stock():
    torch.manual_seed(0)
    stock = nn.MultiheadAttention(16, 4, batch_first=True)
    lean = copy.deepcopy(stock)
    make_lean(nn.Sequential(lean))
    x, context = torch.randn(2, 5, 16), torch.randn(2, 7, 16)
    torch.testing.assert_close(lean(x, x, x), stock(x, x, x))  # with weights
    torch.testing.assert_close(
        lean(x, context, context, need_weights=False), stock(x, context, context, need_weights=False)
    )
    causal = nn.Transformer.generate_square_subsequent_mask(5)
    torch.testing.assert_close(
        lean(x, x, x, need_weights=False, attn_mask=causal), stock(x, x, x, need_weights=False, attn_mask=causal)
    )
    torch.testing.assert_close(lean(x, x, x, need_weights=False), stock(x, x, x, need_weights=False))


def test_unknown_towers_are_left_alone():
    biased = nn.MultiheadAttention(16, 4, batch_first=True, add_bias_kv=True)
    sequence_first = nn.MultiheadAttention(16, 4)
    make_lean(nn.Sequential(biased, sequence_first))
    assert type(biased) is type(sequence_first) is nn.MultiheadAttention
    average = open_clip.create_model('tiny-vit').visual
    average.pool_type = 'avg'
    make_lean(average)
    assert type(average.transformer) is not LeanTransformer and type(average.transformer.resblocks[0]) is not LeanBlock
    with pytest.raises(ValueError, match='compile=True is for plain ViTs'):
        make_lean(nn.Sequential(nn.Linear(2, 2)), compiled=True)


def test_the_backbone_is_lean(tiny_pretrained):
    assert isinstance(OpenCLIPBackbone('tiny-vit', tiny_pretrained).visual.transformer, LeanTransformer)


def test_a_backbone_may_be_stock(tiny_pretrained):
    stock = OpenCLIPBackbone('tiny-vit', tiny_pretrained, lean=False).eval()
    assert not [type(module) for module in stock.modules() if type(module).__name__.startswith('Lean')]
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(stock(images), OpenCLIPBackbone('tiny-vit', tiny_pretrained).eval()(images))
    for options in dict(compile=True), dict(recompute=True):
        with pytest.raises(ValueError, match='parts of the fast path'):
            OpenCLIPBackbone('tiny-vit', lean=False, **options)
