"""Blocks that run through torch.compile."""

import functools
from collections import Counter

import pytest
import torch
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample

from mmcfmask.counterfactual import attention_relevance, record_attention, relevance_map
from mmcfmask.models.inference.relevance_crop import predict_with_crop
from mmcfmask.models.towers import fast_path


def test_compiled_blocks_give_the_same_and_are_compiled_once(tiny_pretrained, monkeypatch):
    """With the compiler's own interpreter as backend: the C++ and GPU compilers are not under test."""
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    monkeypatch.setattr(fast_path, '_compiled', functools.cache(functools.partial(torch.compile, backend=backend)))
    images = torch.randn(3, 3, 32, 32)
    results = []
    for compile in (False, True):
        torch.manual_seed(0)
        model = MODELS.build(
            dict(
                type='CounterfactualClassifier',
                backbone=dict(
                    type='OpenCLIPBackbone',
                    model_name='tiny-vit-quickgelu',
                    pretrained=tiny_pretrained,
                    compile=compile,
                ),
                head=dict(type='CLIPDistillHead', num_classes=5),
                teacher=dict(type='OpenCLIPTeacher'),
                losses=[dict(type='CounterfactualDistillation')],
            )
        ).train()
        counts = []
        for _ in range(3):
            torch.manual_seed(0)
            losses = model(images, [DataSample().set_gt_label(1) for _ in images], mode='loss')
            model.zero_grad()
            sum(losses.values()).backward()
            counts.append(len(compiled))
        results.append({**losses, 'grad': model.backbone.visual.conv1.weight.grad})
    assert 0 < counts[0] <= 12 and counts[0] == counts[1] == counts[2]
    for name in results[0]:
        # Student and teacher are equal here, so that a part of the gradient (up to 0.2) is their rounding times the
        # weight.
        bounds = dict(rtol=1.3e-6, atol=1e-4) if name == 'grad' else {}
        torch.testing.assert_close(results[1][name], results[0][name], **bounds)


def test_compiled_code_runs_backward_for_the_map_and_for_the_loss(tiny_pretrained, monkeypatch):
    """As torch's own compilers build it, but run step by step."""
    monkeypatch.setattr(torch._functorch.config, 'donated_buffer', True, raising=False)
    monkeypatch.setattr(
        fast_path, '_compiled', functools.cache(functools.partial(fast_path._compiled.__wrapped__, backend='aot_eager'))
    )
    torch.compiler.reset()
    maps = []
    for compile in (False, True):
        tower = MODELS.build(
            dict(type='OpenCLIPBackbone', model_name='tiny-vit-quickgelu', pretrained=tiny_pretrained, compile=compile)
        ).train()
        torch.manual_seed(0)
        images = torch.randn(3, 3, 32, 32)
        with record_attention(tower, images) as calls:
            features = tower(images)[0]
        maps.append(attention_relevance(features.sum(), calls, retain_graph=True))
        features.square().sum().backward()
    torch.testing.assert_close(*maps)


@pytest.mark.parametrize('amp', [False, True])
def test_variants_of_compiled_code_stay_below_the_limit_of_dynamo(tiny_pretrained, monkeypatch, amp):
    """Beyond it the rest runs uncompiled: training, rests of epochs, evaluation, and maps and crops in tests."""
    variants = Counter()

    def backend(graph, inputs):
        variants['norm' if any('norm' in str(node.target) for node in graph.graph.nodes) else 'gelu'] += 1
        return graph.forward

    torch.compiler.reset()
    monkeypatch.setattr(fast_path, '_compiled', functools.cache(functools.partial(torch.compile, backend=backend)))
    model = MODELS.build(
        dict(
            type='CounterfactualClassifier',
            backbone=dict(
                type='OpenCLIPBackbone', model_name='tiny-vit-quickgelu', pretrained=tiny_pretrained, compile=True
            ),
            head=dict(type='CLIPDistillHead', num_classes=5),
            teacher=dict(type='OpenCLIPTeacher'),
            losses=[dict(type='CounterfactualDistillation')],
        )
    ).train()
    with torch.autocast('cpu', dtype=torch.bfloat16, enabled=amp), torch._dynamo.config.patch(cache_size_limit=1000):
        for batch in (4, 4, 6, 3):
            losses = model(
                torch.randn(batch, 3, 32, 32), [DataSample().set_gt_label(1) for _ in range(batch)], mode='loss'
            )
            sum(losses.values()).backward()
        model.eval()
        for batch in (7, 7, 5, 1):
            with torch.inference_mode():
                model(torch.randn(batch, 3, 32, 32))
        with torch.no_grad():
            model(torch.randn(7, 3, 32, 32))
        relevance_map(model, torch.randn(4, 3, 32, 32), torch.ones(4, dtype=torch.long))
        with torch.inference_mode():
            predict_with_crop(model.backbone, model, torch.randn(4, 3, 32, 32), 0.7)
    assert set(variants) == {'norm', 'gelu'} and max(variants.values()) <= 8  # torch._dynamo.config.cache_size_limit
