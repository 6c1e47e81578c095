"""What a training step on a GPU must not do."""

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from torch.utils._python_dispatch import TorchDispatchMode


def train_step(model, data, optim):
    """As ``model.train_step``, but for the data and the clipping, which reads the norm of the gradient."""
    with optim.optim_context(model):
        losses = model(**data, mode='loss')
    optim.update_params(sum(losses.values()))


def prepare(model, amp):
    optim = build_optim_wrapper(
        model,
        dict(type='AutocastOptimWrapper' if amp else 'OptimWrapper', optimizer=dict(type='AdamW', lr=1e-4, fused=True)),
    )
    return model, optim


@pytest.mark.parametrize('amp', [False, True])
@pytest.mark.parametrize('mask', ['object', 'context', 'random'])
@pytest.mark.parametrize('fill', ['none', 'single', 'multi'])
def test_host_never_waits(build, batch, mask, fill, amp):
    model, optim = prepare(build(mask, fill).cuda(), amp)
    train_step(model, model.data_preprocessor(batch(), training=True), optim)  # kernels are compiled
    data = model.data_preprocessor(batch(), training=True)
    torch.cuda.set_sync_debug_mode('error')
    try:
        train_step(model, data, optim)
    finally:
        torch.cuda.set_sync_debug_mode('default')


class Casts(TorchDispatchMode):
    """Shapes of what is rounded to bfloat16 inside it."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._to_copy.default and (kwargs or {}).get('dtype') == torch.bfloat16:
            self.shapes.append(tuple(args[0].shape))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize('recompute', [False, True])
def test_weights_are_rounded_once_a_step(build, batch, recompute):
    """Two passes of the student, with the backward pass of the relevance map between them."""
    model, optim = prepare(build(recompute=recompute).cuda(), True)
    train_step(model, model.data_preprocessor(batch(), training=True), optim)
    data = model.data_preprocessor(batch(), training=True)
    with Casts() as casts:
        train_step(model, data, optim)
    width = model.backbone.visual.proj.shape[0]
    assert casts.shapes.count((4 * width, width)) == casts.shapes.count((width, 4 * width)) == 4  # blocks


def test_recompute_saves_memory(build, batch):
    peaks = []
    for recompute in (False, True):
        model, optim = prepare(build(recompute=recompute).cuda(), True)
        data = model.data_preprocessor(batch(), training=True)
        data['inputs'] = data['inputs'].repeat(16, 1, 1, 1)
        data['data_samples'] = data['data_samples'] * 16
        train_step(model, data, optim)
        torch.cuda.reset_peak_memory_stats()
        train_step(model, data, optim)
        peaks.append(torch.cuda.max_memory_allocated())
        del model, optim
    assert peaks[1] < 0.95 * peaks[0]
