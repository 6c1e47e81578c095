#!/usr/bin/env python3
"""Time the training step against the step as published, against plain fine-tuning and against its arithmetic.

    python tools/benchmark.py                                                 # ViT-B/16, made-up images, this machine
    python tools/benchmark.py --model ViT-B-32-quickgelu --batch 16 --amp     # bfloat16
    python tools/benchmark.py --config configs/cfmask_vitl14.py --loader      # any config, with its own images
    python tools/benchmark.py --evaluation                                    # tools/test.py against the tower alone
    python tools/benchmark.py --count --card H100 --amp --batch 128           # work and traffic of a step on a GPU,
    counted without one

Candidates take turns within one process (A B C A B C …), so that a machine which is busy or warms up is so for all of
them. Compared are

- counterfactual: the config's training step, from a batch of uint8 images to updated weights;
- fine-tuning: the same without teacher and counterfactuals, in the same precision;
- naive: the step written plainly after the publication, in float32: separate forward passes for the loss and the map,
attention in the
  open with autograd through every matrix of it, the full L x L relevance recursion;
- arithmetic: 8 F (clean forward 1, relevance 1, teacher 1, masked forward 1, two backward passes 4) divided by the rate
of this
  machine's matrix products in the same precision, where F is one forward pass of the image tower.

``--evaluation`` times the loop of tools/test.py on the in-distribution set (forward pass, predictions, metrics) against
the forward pass of the tower alone and, with ``--loader``, against reading the images alone and against the time of
both: without a GPU they share the cores.

``--count`` runs one step on tensors without values, as it would run on a GPU, and adds up floating-point operations,
bytes that operations read and write, and kernels, by phase. The estimate for a card is the sum over kernels of the
longer of their arithmetic and their traffic.
"""

from __future__ import annotations

import argparse
import copy
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmpretrain.registry import DATASETS, MODELS
from mmpretrain.structures import DataSample
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import Dataset
from torch.utils.flop_counter import FlopCounterMode, flop_registry

import mmcfmask  # noqa: F401  registers the components
from mmcfmask import kernels
from mmcfmask.compat import keep_freed_memory
from mmcfmask.counterfactual import refill
from mmcfmask.counterfactual.reference import explicit_features, explicit_losses, explicit_mask, explicit_relevance
from mmcfmask.engine.build import build_runner, fit_loaders, fit_optimizer
from mmcfmask.engine.checks.model import check_fill, makes_counterfactuals, slow_bfloat16
from mmcfmask.engine.checks.outputs import check_out
from mmcfmask.engine.config import load_config
from mmcfmask.engine.options import add_cfg_options, count, device
from mmcfmask.engine.testing import forget_training, prepare_test
from mmcfmask.errors import one_line
from mmcfmask.files import write_json
from mmcfmask.models.losses import base
from mmcfmask.models.towers import fast_path as lean_vit
from mmcfmask.output import run_tool

CANDIDATES = ('counterfactual', 'fine-tuning', 'naive')
PHASES = ('data', 'clean forward', 'relevance', 'refill', 'masked forward', 'teacher', 'backward', 'optimizer', 'other')


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Time the training step', epilog='A step is one batch and one update of the weights.'
    )
    parser.add_argument(
        '--config', default=str(Path(__file__).parents[1] / 'configs' / 'cfmask_vitb16.py'), help='config of the step'
    )
    parser.add_argument('--model', help="open_clip name of the tower, instead of the config's")
    parser.add_argument(
        '--loader', action='store_true', help="take the batches from the config's train_dataloader; otherwise noise"
    )
    parser.add_argument('--evaluation', action='store_true', help='time the test loop instead of the training step')
    parser.add_argument('--count', action='store_true', help='count work and traffic of one step, without a GPU')
    parser.add_argument('--card', choices=CARDS, default='H100', help='whose time --count estimates (default: H100)')
    parser.add_argument('--batch', type=count, help="images per step, instead of the config's")
    parser.add_argument(
        '--steps', type=count, default=5, help='timed steps of every candidate, or rounds of evaluation (default: 5)'
    )
    parser.add_argument('--device', type=device, default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--amp', action='store_true', help='bfloat16 autocast (the naive step stays in float32)')
    parser.add_argument('--compile', action='store_true', help='torch.compile the blocks of the towers')
    parser.add_argument('--threads', type=count, help="CPU threads (default: torch's own choice)")
    parser.add_argument(
        '--skip', nargs='*', default=[], choices=['naive', 'fine-tuning', 'memory'], help='leave these out'
    )
    parser.add_argument('--out', help='write everything that was measured to this JSON file')
    add_cfg_options(parser)
    parser.add_argument('--memory-of', choices=CANDIDATES, help=argparse.SUPPRESS)  # in a process of its own
    return parser.parse_args(argv)


def read_config(args: argparse.Namespace) -> Config:
    """The config as the command line asks for it; without pre-trained weights, on which no time depends."""
    cfg = load_config(args.config, args.cfg_options)
    if not makes_counterfactuals(cfg.model) or not cfg.get('optim_wrapper'):
        raise SystemExit(
            f'{args.config} has no counterfactual training step: give the config of one, such as '
            'configs/cfmask_vitb16.py'
        )
    if args.model:
        cfg.model.backbone.model_name = args.model
    if args.compile:
        cfg.model.backbone.compile = True
    cfg.model.backbone.pretrained = None
    cfg.model.teacher = dict(type='OpenCLIPTeacher', precision=cfg.model.teacher.get('precision'))
    cfg.model.head.class_weights = None
    if args.batch:
        cfg.train_dataloader.batch_size = args.batch
    if args.amp:
        cfg.optim_wrapper.type = 'AutocastOptimWrapper'
    cfg.optim_wrapper.accumulative_counts = 1
    check_fill(cfg)
    fit_loaders(cfg)
    fit_optimizer(cfg)
    return cfg


# The step as published.


def naive_losses(model: nn.Module, teacher: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy and weighted distillation loss of one step of ``model``, an object or context mask with a fill.

    Args:
        model (CounterfactualClassifier): Gives weights and settings only.
        teacher (nn.Module): The frozen open_clip tower.
        images (Tensor): (B, 3, H, W), normalised.
        labels (Tensor): (B,) int64.
    """
    visual, settings = model.backbone.visual, model.data_preprocessor

    def classify(features: Tensor) -> Tensor:
        return F.linear(features / features.norm(dim=-1, keepdim=True), model.head.fc.weight, model.head.fc.bias)

    mask = explicit_mask(explicit_relevance(visual, classify, images, labels), settings.mask, settings.value)
    counterfactual = refill(images, mask, settings.fill)
    return explicit_losses(visual, teacher, classify, images, labels, counterfactual, model.head.distill_weight)


# What is timed.


class Steps:
    """The candidates, over one model: ``steps.run(name)`` makes one training step.

    The learning rate is 0, so that all of them work on the same weights, at the same cost.
    """

    def __init__(self, cfg: Config, device: str, candidates: tuple[str, ...], prepare=lambda model: None) -> None:
        torch.manual_seed(0)
        self.device = torch.device(device)
        cfg.optim_wrapper.optimizer.lr = 0.0
        if candidates == ('fine-tuning',):
            forget_training(cfg.model)
        self.model = MODELS.build(cfg.model).to(self.device).train()
        prepare(self.model)
        self.teacher, self.losses = self.model.teacher, self.model.losses
        if 'naive' in candidates:  # its teacher is not rounded under autocast
            visual = self.teacher.backbone.visual
            self.naive_teacher = visual if candidates == ('naive',) else copy.deepcopy(visual)
        # Without the fused kernels and whatever else the config asks for: torch as it comes.
        self.wrappers = {
            name: build_optim_wrapper(
                self.model,
                {
                    **cfg.optim_wrapper,
                    **(
                        dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=0.0, weight_decay=0.1))
                        if name == 'naive'
                        else {}
                    ),
                },
            )
            for name in candidates
        }
        visual = self.model.backbone.visual
        if 'naive' in candidates and not hasattr(visual, 'transformer'):
            raise SystemExit(
                f'the naive step is written for ViTs of open_clip, not for {type(visual).__name__}: use --skip naive'
            )

    def synthetic_batch(self, batch: int) -> dict:
        """Noise as a dataloader gives it, uint8 on the CPU."""
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(256, (batch, 3, *self.model.backbone.image_size), dtype=torch.uint8, generator=generator)
        labels = torch.randint(self.model.head.num_classes, (batch,), generator=generator)
        if self.device.type == 'cuda':
            images = images.pin_memory()
        return dict(inputs=images, data_samples=[DataSample().set_gt_label(label) for label in labels])

    def run(self, name: str, data: dict) -> None:
        """One step of a candidate."""
        wrapper = self.wrappers[name]
        self.model.losses = nn.ModuleList() if name == 'fine-tuning' else self.losses
        if name == 'naive':
            data = self.model.data_preprocessor(data, training=True)
            labels = torch.cat([sample.gt_label for sample in data['data_samples']])
            wrapper.update_params(sum(naive_losses(self.model, self.naive_teacher, data['inputs'], labels)))
        else:
            self.model.train_step(data, wrapper)

    def synchronize(self) -> None:
        if self.device.type == 'cuda':
            torch.cuda.synchronize(self.device)

    def time(self, name: str, data: dict) -> float:
        """Seconds of one step."""
        self.synchronize()
        start = time.perf_counter()
        self.run(name, data)
        self.synchronize()
        return time.perf_counter() - start

    @contextmanager
    def timed(self, seconds: dict[str, float], phase: str):
        """Add the time of what is inside the context to ``seconds``."""
        self.synchronize()
        start = time.perf_counter()
        yield
        self.synchronize()
        seconds[phase] += time.perf_counter() - start

    @contextmanager
    def watched(self, meter):
        """Inside the context, the parts of a counterfactual step run inside ``meter(phase)``."""

        def watch(function, *phases: str):
            phases = list(phases)

            def watched(*args, **kwargs):
                with meter(phases.pop(0) if len(phases) > 1 else phases[0]):
                    return function(*args, **kwargs)

            return watched

        model, wrapper = self.model, self.wrappers['counterfactual']
        targets = [
            (model.data_preprocessor, 'forward', 'data'),
            (model, 'extract_feat', 'clean forward', 'masked forward'),
            (base, 'attention_relevance', 'relevance'),
            (model.data_preprocessor, 'counterfactual', 'refill'),
            (self.teacher, 'forward', 'teacher'),
            (wrapper, 'backward', 'backward'),
            (wrapper, 'step', 'optimizer'),
        ]
        with ExitStack() as stack:
            for owner, name, *phases in targets:
                stack.enter_context(mock.patch.object(owner, name, watch(getattr(owner, name), *phases)))
            yield


def tower_flops(model: nn.Module) -> float:
    """Floating-point operations of one forward pass of one image (a multiplication and an addition are two), from the
    shapes."""
    visual = model.backbone.visual
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        explicit_features(visual, torch.zeros(1, 3, *model.backbone.image_size, device=visual.proj.device))
    return counter.get_total_flops()


class MatrixProduct:
    """The rate of square matrix products in one dtype."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.size = 8192 if device.type == 'cuda' else 2048
        self.factors = [torch.randn(self.size, self.size, device=device).to(dtype) for _ in range(2)]
        self.repeats = 10

    def rate(self, synchronize) -> float:
        """Operations per second, once."""
        synchronize()
        start = time.perf_counter()
        for _ in range(self.repeats):
            torch.mm(*self.factors)
        synchronize()
        return 2 * self.size**3 * self.repeats / (time.perf_counter() - start)


# Evaluation.


@DATASETS.register_module()
class NoiseDataset(Dataset):
    """Made-up images, (3, H, W) uint8, that cost nothing to read."""

    metainfo: dict = {}

    def __init__(self, size: int, image_size: tuple[int, int], num_classes: int) -> None:
        self.size, self.num_classes = size, num_classes
        self.image = torch.randint(256, (3, *image_size), dtype=torch.uint8)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict:
        return dict(
            inputs=self.image,
            data_samples=DataSample(metainfo=dict(sample_idx=index)).set_gt_label(index % self.num_classes),
        )


def measure_evaluation(args: argparse.Namespace, work_dir: str, batches: int = 4) -> dict:
    """Images/s of the test loop, of the tower's forward pass on as many images per batch and, with --loader, of the
    loader; in turns."""
    if torch.device(args.device).type != get_device():
        raise SystemExit(
            f'--evaluation times tools/test.py, which runs on {get_device()!r} here: leave --device out, or hide the '
            'GPU with CUDA_VISIBLE_DEVICES='
        )
    cfg = load_config(args.config, args.cfg_options)
    prepare_test(cfg, shifts=[], amp=args.amp)
    if args.model:
        cfg.model.backbone.model_name = args.model
    cfg.model.backbone.pretrained = None
    cfg.model.head.class_weights = None
    cfg.work_dir, cfg.experiment_name, cfg.log_level, cfg.launcher = work_dir, Path(work_dir).name, 'WARNING', 'none'
    name = cfg.test_cfg.id_set
    for part in ('train', 'val'):
        cfg[f'{part}_cfg'] = cfg[f'{part}_dataloader'] = cfg[f'{part}_evaluator'] = None
    cfg.optim_wrapper = cfg.param_scheduler = None
    loader = cfg.test_dataloader[name]
    if args.batch:
        loader.batch_size = args.batch
    if not args.loader:
        size = MODELS.build(cfg.model.backbone).image_size
        loader.update(num_workers=0, persistent_workers=False)
        loader.dataset = dict(
            type='NoiseDataset',
            size=batches * loader.batch_size,
            image_size=size,
            num_classes=cfg.model.head.num_classes,
        )
    runner = build_runner(cfg)
    loop, model = runner.test_loop, runner.model.eval()
    first = next(iter(loop.loaders[name]))
    images = model.data_preprocessor(first)['inputs']

    def synchronize() -> None:
        if images.is_cuda:
            torch.cuda.synchronize()

    @torch.inference_mode()
    def bare() -> float:
        synchronize()
        start = time.perf_counter()
        with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=args.amp):
            for _ in range(batches):
                model.backbone(images)
        synchronize()
        return batches * len(images) / (time.perf_counter() - start)

    def read() -> float:
        start = time.perf_counter()
        return sum(len(batch['inputs']) for batch in loop.loaders[name]) / (time.perf_counter() - start)

    def test() -> float:
        runner.test()
        return loop.results[name]['speed']['images_per_second']

    ways = {'test loop': test, 'bare forward': bare, **({'loader': read} if args.loader else {})}
    rates = defaultdict(list)
    for round_ in track(range(-1, args.steps), 'Timing', transient=True):  # the first one warms up
        for way, measure in ways.items():
            rate = measure()
            if round_ >= 0:
                rates[way].append(rate)
    ratios = {
        f'of the {way}': statistics.median(a / b for a, b in zip(rates['test loop'], rates[way]))
        for way in list(ways)[1:]
    }
    if args.loader:  # what is left to reach where both share the cores
        ratios['of both in turn'] = statistics.median(
            tested * (1 / computed + 1 / loaded) for tested, computed, loaded in zip(*(rates[way] for way in ways))
        )
    return dict(
        model=cfg.model.backbone.model_name,
        batch=loader.batch_size,
        amp=args.amp,
        workers=loader.num_workers,
        machine=machine(args),
        images=len(loop.loaders[name].dataset),
        images_per_second={way: statistics.median(rates[way]) for way in ways},
        ratios=ratios,
    )


# Counting, without a device.

# Dense bfloat16, TensorFloat32 and float32 operations and bytes per second of the SXM cards, by their data sheets.
CARDS = {
    'A100': dict(bfloat16=312e12, tf32=156e12, float32=19.5e12, bytes=2.04e12),
    'H100': dict(bfloat16=989e12, tf32=495e12, float32=67e12, bytes=3.35e12),
    'H200': dict(bfloat16=989e12, tf32=495e12, float32=67e12, bytes=4.8e12),
}
# What kernels reach of it: products (0.78 was measured on an H200), attention with 64 channels a head, memory; and the
# shortest kernel.
PRODUCTS, ATTENTION, MEMORY, SHORTEST = 0.78, 0.35, 0.8, 3e-6
KERNELS = {'_scaled_dot_product_flash_attention_for_cpu_backward': 3, 'native_layer_norm_backward': 3}  # of others: 1


class Ledger(TorchDispatchMode):
    """Books the operations inside it under the phase that runs.

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
        """One operation: what it computes, what it reads and writes, and its kernels."""
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
        if func is torch.ops.aten._local_scalar_dense.default:  # a host that waits; there is no number
            return 1.0
        if func is torch.ops.prim.device.default:
            return func(*args, **kwargs)
        if not torch._C._dispatch_has_kernel_for_dispatch_key(
            func.name(), 'CPU'
        ):  # comes whole in inference mode: linear, matmul, …
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
        flops, parts = (
            2 * 2 * query.numel() * key.shape[2],
            4 * row.shape[0] * query.shape[1] * key.shape[2] * (-(-query.shape[2] // 64)),
        )
        self.book(flops, sum(map(extent, (query, key, value, grad))) + 2 * parts, 2, attention=True)
        return row.new_empty(len(row), key.shape[2])

    def quick_gelu_backward(self, grad: Tensor, x: Tensor) -> Tensor:
        """In place of :func:`mmcfmask.kernels.quick_gelu_backward`."""
        self.book(0, 3 * extent(x))
        return torch.empty_like(x)


def extent(tensor: Tensor) -> int:
    """Bytes of the elements of a tensor, those of expanded axes once."""
    return tensor.element_size() * math.prod(size for size, stride in zip(tensor.shape, tensor.stride()) if stride)


def count_step(cfg: Config, rates: dict, batch: int) -> dict[str, dict[str, float]]:
    """Work of one counterfactual step as a GPU would do it, on tensors of the CPU without values."""
    ledger, fake = Ledger(rates), FakeTensorMode()
    patches = dict(
        on_cpu=lambda device: False, recomputes_on=lambda device: False, attention=F.scaled_dot_product_attention
    )
    with ExitStack() as stack:
        for name, replacement in patches.items():
            stack.enter_context(mock.patch.object(lean_vit, name, replacement))
        for name in ('relevance_through_layer', 'quick_gelu_backward'):
            stack.enter_context(mock.patch.object(kernels, name, getattr(ledger, name)))
        for name in ('fits_relevance', 'fits_quick_gelu'):
            stack.enter_context(mock.patch.object(kernels, name, lambda *tensors: True))
        steps = Steps(cfg, 'cpu', ('counterfactual',), partial(without_values, fake=fake))
        stack.enter_context(fake)
        stack.enter_context(ledger)
        data = steps.synthetic_batch(batch)
        steps.run('counterfactual', dict(data))  # the teacher is rounded, the optimizer has its state
        ledger.phases.clear()
        with steps.watched(ledger.during):
            steps.run('counterfactual', dict(data))
    return dict(ledger.phases)


def without_values(model: nn.Module, fake: FakeTensorMode) -> None:
    """Keep shapes and dtypes of all weights alone, in place."""
    for module in (*model.modules(), *model.teacher.modules()):
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(fake.from_tensor(parameter.data), parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = fake.from_tensor(buffer)


def report_count(cfg: Config, args: argparse.Namespace, batch: int) -> dict:
    """The tables of --count."""
    rates = CARDS[args.card]
    phases = count_step(cfg, rates, batch)
    rows = {name: phases[name] for name in PHASES if name in phases}
    total = {name: sum(work[name] for work in rows.values()) for name in ('flops', 'bytes', 'kernels', 'seconds')}
    table = Table(
        '',
        'Gflop',
        'GB',
        'kernels',
        f'ms on {args.card}',
        title=f'{cfg.model.backbone.model_name}, {"bfloat16" if args.amp else "float32"}, batch {batch}',
    )
    for name, work in {**rows, 'step': total}.items():
        table.add_row(
            name,
            f'{work["flops"] / 1e9:.0f}',
            f'{work["bytes"] / 1e9:.1f}',
            str(work['kernels']),
            f'{work["seconds"] * 1e3:.1f}',
        )
    Console().print(table)
    return dict(title=table.title, card=args.card, rates=rates, phases=rows, step=total)


# Memory, in a process of its own.


def resident_bytes() -> int:
    """Memory of this process now."""
    return int(Path('/proc/self/statm').read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE')


def peak_memory(steps: Steps, name: str, data: dict, before: int) -> int:
    """Bytes at the highest point of a few steps: allocated on the GPU, or resident above what the imported libraries
    take."""
    for _ in range(3):
        steps.run(name, data)
    if steps.device.type == 'cuda':
        return torch.cuda.max_memory_allocated(steps.device)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before


def measure_memory(args: argparse.Namespace, name: str) -> int:
    """Run this command again for one candidate alone."""
    command = [sys.executable, __file__, *args.argv, '--memory-of', name]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f'measuring the memory of {name} failed:\n{done.stderr[-2000:]}')
    return int(done.stdout.splitlines()[-1])


# The report.


def machine(args: argparse.Namespace) -> dict:
    """What a reader must know to compare numbers."""
    info = dict(
        torch=torch.__version__,
        python=platform.python_version(),
        threads=torch.get_num_threads(),
        cores=os.cpu_count(),
        load=os.getloadavg()[0],
    )
    if args.device.startswith('cuda'):
        return dict(device=torch.cuda.get_device_name(args.device), cuda=torch.version.cuda, **info)
    cpuinfo = Path('/proc/cpuinfo').read_text() if Path('/proc/cpuinfo').exists() else ''
    names = [line.split(':')[1].strip() for line in cpuinfo.splitlines() if line.startswith('model name')]
    features = [name for name in ('avx2', 'avx512f', 'avx512_bf16', 'amx_bf16') if name in cpuinfo.split()]
    return dict(device=names[0] if names else platform.processor(), features=features, **info)


def summarize(seconds: dict[str, list[float]], rates: list[float], flops: float, batch: int) -> dict:
    """Medians over the rounds, of times and of ratios within one round."""
    bounds = [8 * flops * batch / rate for rate in rates]

    def ratio(a: list[float], b: list[float]) -> float:
        return statistics.median(x / y for x, y in zip(a, b))

    own = seconds['counterfactual']
    ratios = {'of the arithmetic bound': ratio(bounds, own)}
    if 'naive' in seconds:
        ratios['against naive'] = ratio(seconds['naive'], own)
    if 'fine-tuning' in seconds:
        ratios['cost over fine-tuning'] = ratio(own, seconds['fine-tuning'])
    return dict(
        seconds={name: statistics.median(values) for name, values in seconds.items()},
        bound_seconds=statistics.median(bounds),
        images_per_second={name: batch / statistics.median(values) for name, values in seconds.items()},
        matmul_tflops=statistics.median(rates) / 1e12,
        ratios=ratios,
    )


def show(result: dict) -> None:
    """Print the tables."""
    console = Console()
    memory = result['peak_memory']
    table = Table('', 's / step', 'images / s', 'peak memory (GB)', title=result['title'])
    for name, value in result['seconds'].items():
        table.add_row(
            name,
            f'{value:.3f}',
            f'{result["images_per_second"][name]:.2f}',
            f'{memory[name] / 1e9:.2f}' if name in memory else '',
        )
    table.add_row(
        'arithmetic', f'{result["bound_seconds"]:.3f}', f'{result["batch"] / result["bound_seconds"]:.2f}', ''
    )
    console.print(table)
    for name, value in result['ratios'].items():
        console.print(f'{name}: {value:.2f}')
    console.print(
        f'matrix products: {result["matmul_tflops"]:.3f} Tflop/s; F = {result["tower_flops"] / 1e9:.1f} Gflop an image'
    )
    if result['phases']:
        total = sum(result['phases'].values())
        table = Table('where the time goes', 's / step', '%')
        for name, value in result['phases'].items():
            table.add_row(name, f'{value:.3f}', f'{100 * value / total:.0f}')
        console.print(table)


def write(path: str | None, result: dict) -> None:
    """As JSON, if there is a path."""
    if path:
        write_json(path, result)


@one_line()
def main(argv=None) -> dict:
    args = parse_args(argv)
    if args.out:
        check_out(args.out)
    args.argv = list(sys.argv[1:] if argv is None else argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    if not args.device.startswith('cuda'):
        keep_freed_memory()  # as tools/train.py does; the naive step has the benefit too
    init_default_scope('mmpretrain')
    if args.evaluation:
        with tempfile.TemporaryDirectory() as work_dir:
            result = measure_evaluation(args, work_dir)
        for name, value in result['images_per_second'].items():
            print(f'{name}: {value:.2f} images / s')
        for name, value in result['ratios'].items():
            print(f'{name}: {value:.3f}')
        write(args.out, result)
        return result
    cfg = read_config(args)
    slow = slow_bfloat16(cfg, torch.device(args.device).type)
    if slow and not args.count:  # the square products of the bound would take minutes
        raise SystemExit(slow)
    batch = cfg.train_dataloader.batch_size
    if args.count:
        result = report_count(cfg, args, batch)
        write(args.out, result)
        return result
    if args.memory_of:
        before = resident_bytes()
        steps = Steps(cfg, args.device, (args.memory_of,))
        print(peak_memory(steps, args.memory_of, steps.synthetic_batch(batch), before))
        return {}

    candidates = tuple(name for name in CANDIDATES if name not in args.skip)
    memory = (
        {}
        if 'memory' in args.skip
        else {name: measure_memory(args, name) for name in track(candidates, 'Measuring memory', transient=True)}
    )
    steps = Steps(cfg, args.device, candidates)
    flops = tower_flops(steps.model)
    product = MatrixProduct(steps.device, torch.bfloat16 if args.amp else torch.float32)
    if args.loader:
        loader = Runner.build_dataloader(cfg.train_dataloader, seed=0)
        batches = iter([])

        def next_batch() -> dict:
            nonlocal batches
            data = next(batches, None)
            if data is None:
                batches = iter(loader)
                data = next(batches)
            return data
    else:
        fixed = steps.synthetic_batch(batch)

        def next_batch() -> dict:
            return dict(fixed)

    seconds, rates, phases = defaultdict(list), [], defaultdict(list)
    for round_ in track(range(-1, args.steps), 'Timing', transient=True):  # the first one warms up
        start = time.perf_counter()
        data = next_batch()
        wait = time.perf_counter() - start
        times = {name: steps.time(name, dict(data)) for name in candidates}
        rate = product.rate(steps.synchronize)
        parts = defaultdict(float)
        with steps.watched(partial(steps.timed, parts)):
            total = steps.time('counterfactual', dict(data))
        parts['data'] += wait
        parts['other'] = total + wait - sum(parts.values())
        if round_ < 0:
            continue
        rates.append(rate)
        for name, value in times.items():
            seconds[name].append(value)
        for name in PHASES:
            phases[name].append(parts[name])
    result = dict(
        title=f'{cfg.model.backbone.model_name}, {"bfloat16" if args.amp else "float32"}, batch {batch}, {args.device}',
        config=args.config,
        model=cfg.model.backbone.model_name,
        batch=batch,
        amp=args.amp,
        compile=args.compile,
        steps=args.steps,
        machine=machine(args),
        tower_flops=flops,
        **summarize(seconds, rates, flops, batch),
        peak_memory=memory,
        phases={name: statistics.median(values) for name, values in phases.items()},
        rounds=dict(seconds=dict(seconds), matmul_tflops=[rate / 1e12 for rate in rates]),
    )
    if 'naive' in memory:
        result['ratios']['memory against naive'] = memory['counterfactual'] / memory['naive']
    show(result)
    write(args.out, result)
    return result


if __name__ == '__main__':
    run_tool(main)
