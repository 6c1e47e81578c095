"""Work and traffic of one training step on a GPU, counted without one."""

from __future__ import annotations

import math
from collections import defaultdict
from contextlib import ExitStack, contextmanager
from functools import partial
from unittest import mock

import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.registry import init_default_scope
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from .. import kernels
from ..errors import ConfigError
from ..models.towers import fast_path
from ..models.towers.adapters import uses_adapters
from .steps import PHASES, Steps

# Dense bfloat16, TensorFloat32 and float32 operations per second, and bytes per second, of the SXM cards; data sheets.
CARDS = {
    'A100': dict(bfloat16=312e12, tf32=156e12, float32=19.5e12, bytes=2.04e12),
    'H100': dict(bfloat16=989e12, tf32=495e12, float32=67e12, bytes=3.35e12),
    'H200': dict(bfloat16=989e12, tf32=495e12, float32=67e12, bytes=4.8e12),
}
# Share of it that kernels reach: products (0.78 was measured on an H200), attention with 64 channels per head, memory.
# SHORTEST: seconds of the shortest kernel.
PRODUCTS, ATTENTION, MEMORY, SHORTEST = 0.78, 0.35, 0.8, 3e-6
KERNELS = {'_scaled_dot_product_flash_attention_for_cpu_backward': 3, 'native_layer_norm_backward': 3}  # others: 1


class Ledger(TorchDispatchMode):
    """Adds up the operations inside the context, by phase.

    Attributes:
        phases (dict[str, dict[str, float]]): flops, bytes, kernels, and seconds by the roofline, of every phase.
    """

    def __init__(self, rates: dict) -> None:
        super().__init__()
        self.rates, self.phase = rates, 'other'
        self.phases = defaultdict(lambda: dict(flops=0.0, bytes=0.0, kernels=0, seconds=0.0))

    def book(
        self, flops: float, size: float, kernels: int = 1, attention: bool = False, products: str = 'bfloat16'
    ) -> None:
        """Add one operation: its floating-point operations, the bytes it reads and writes, and its kernels."""
        rate = self.rates[products] * (ATTENTION if attention else PRODUCTS)
        seconds = max(flops / rate, size / (self.rates['bytes'] * MEMORY), kernels * SHORTEST)
        work = self.phases[self.phase]
        for name, amount in dict(flops=flops, bytes=size, kernels=kernels, seconds=seconds).items():
            work[name] += amount

    @contextmanager
    def during(self, phase: str):
        before, self.phase = self.phase, phase
        yield
        self.phase = before

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default:  # the host waits for a number, which does not exist
            return 1.0
        if func is torch.ops.prim.device.default:
            return func(*args, **kwargs)
        # Composite operations (linear, matmul, …) arrive whole in inference mode.
        if not torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), 'CPU'):
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        before = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        result = func(*args, **kwargs)
        after = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        name = func.overloadpacket.__name__
        storages = {x.untyped_storage()._cdata for x in before}
        is_view = not func._schema.is_mutable and all(x.untyped_storage()._cdata in storages for x in after)
        if is_view or name.startswith(('empty', 'new_empty')):
            return result
        written = after or [args[0]] if isinstance(args[0] if args else None, Tensor) else after
        size = sum(map(extent, before)) + sum(map(extent, written))
        self.book(
            self.flops(func, args, kwargs, result),
            size,
            KERNELS.get(name, 1),
            'attention' in name,
            'bfloat16' if any(x.dtype == torch.bfloat16 for x in before) else 'float32',
        )
        return result

    @staticmethod
    def flops(func, args: tuple, kwargs: dict, result) -> float:
        name = func.overloadpacket.__name__
        if 'scaled_dot_product' in name:  # two products forward, five backward
            backward = 'backward' in name
            query, key = args[1:3] if backward else args[:2]
            return (5 if backward else 2) * 2 * query.numel() * key.shape[-2]
        if func.overloadpacket in flop_registry:
            return flop_registry[func.overloadpacket](*args, **kwargs, out_val=result)
        return 0.0

    def relevance_through_layer(
        self, row: Tensor, query: Tensor, key: Tensor, value: Tensor, grad: Tensor, scale: float
    ) -> Tensor:
        """In place of :func:`mmcfmask.kernels.relevance_through_layer`."""
        flops = 2 * 2 * query.numel() * key.shape[2]
        parts = 4 * row.shape[0] * query.shape[1] * key.shape[2] * (-(-query.shape[2] // 64))
        self.book(flops, sum(map(extent, (query, key, value, grad))) + 2 * parts, 2, attention=True)
        return row.new_empty(len(row), key.shape[2])

    def quick_gelu_backward(self, grad: Tensor, x: Tensor) -> Tensor:
        """In place of :func:`mmcfmask.kernels.quick_gelu_backward`."""
        self.book(0, 3 * extent(x))
        return torch.empty_like(x)


def extent(tensor: Tensor) -> int:
    """Bytes of a tensor's elements; an expanded axis counts once."""
    return tensor.element_size() * math.prod(size for size, stride in zip(tensor.shape, tensor.stride()) if stride)


def count_step(cfg: Config, rates: dict, batch: int) -> dict[str, dict[str, float]]:
    """Work of one counterfactual step as on a GPU, by phase; run on CPU tensors without values. With adapters if the
    config has them."""
    candidate = 'adapters' if uses_adapters(cfg.model) else 'counterfactual'
    ledger, fake = Ledger(rates), FakeTensorMode()
    patches = dict(
        on_cpu=lambda device: False, recomputes_on=lambda device: False, attention=F.scaled_dot_product_attention
    )
    with ExitStack() as stack:
        for name, replacement in patches.items():
            stack.enter_context(mock.patch.object(fast_path, name, replacement))
        for name in ('relevance_through_layer', 'quick_gelu_backward'):
            stack.enter_context(mock.patch.object(kernels, name, getattr(ledger, name)))
        for name in ('fits_relevance', 'fits_quick_gelu'):
            stack.enter_context(mock.patch.object(kernels, name, lambda *tensors: True))
        steps = Steps(cfg, torch.device('cpu'), (candidate,), partial(drop_values, fake=fake))
        stack.enter_context(fake)
        stack.enter_context(ledger)
        data = steps.synthetic_batch(batch)
        steps.run(candidate, dict(data))  # the teacher is rounded, the optimizer has its state
        ledger.phases.clear()
        with steps.watched(ledger.during):
            steps.run(candidate, dict(data))
    return dict(ledger.phases)


def drop_values(model: nn.Module, fake: FakeTensorMode) -> None:
    """Replace all weights by tensors that have a shape and a dtype but no values, in place."""
    for module in (*model.modules(), *model.teacher.modules()):
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(fake.from_tensor(parameter.data), parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = fake.from_tensor(buffer)


def count_training_step(cfg: Config, card: str = 'H100') -> dict:
    """Add up floating-point operations, traffic and kernels of one counterfactual step, and estimate its time.

    Args:
        cfg: From :func:`mmcfmask.benchmarks.steps.read_config`.
        card: A GPU of :data:`CARDS`.

    Returns:
        dict: ``phases`` and their sum ``step``; :func:`show_count` prints it.
    """
    if card not in CARDS:
        raise ConfigError(f'--card {card}: choose from {", ".join(CARDS)}')
    init_default_scope('mmpretrain')
    batch = cfg.train_dataloader.batch_size
    phases = count_step(cfg, CARDS[card], batch)
    rows = {name: phases[name] for name in PHASES if name in phases}
    total = {name: sum(work[name] for work in rows.values()) for name in ('flops', 'bytes', 'kernels', 'seconds')}
    precision = 'bfloat16' if cfg.optim_wrapper.type == 'AutocastOptimWrapper' else 'float32'
    title = f'{cfg.model.backbone.model_name}, {precision}, batch {batch}'
    return dict(title=title, card=card, rates=CARDS[card], phases=rows, step=total)


def show_count(result: dict, console: Console) -> None:
    """Print a result of :func:`count_training_step`."""
    table = Table('', 'Gflop', 'GB', 'kernels', f'ms on {result["card"]}', title=result['title'])
    for name, work in {**result['phases'], 'step': result['step']}.items():
        numbers = (f'{work["flops"] / 1e9:.0f}', f'{work["bytes"] / 1e9:.1f}', str(work['kernels']))
        table.add_row(name, *numbers, f'{work["seconds"] * 1e3:.1f}')
    console.print(table)
