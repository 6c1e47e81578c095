"""Time and memory of the training step."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from rich.console import Console
from rich.progress import track
from rich.table import Table

from ..compat import keep_freed_memory
from ..engine.checks.model import slow_bfloat16
from ..errors import ConfigError, UserError
from ..models.towers.adapters import uses_adapters
from .steps import CANDIDATES, PHASES, Steps, count_tower_flops


def benchmark_training(
    cfg: Config,
    device: torch.device,
    steps: int = 5,
    loader: bool = False,
    threads: int | None = None,
    skip: Collection[str] = (),
) -> dict:
    """Time the candidates in turns, and the parts of the counterfactual step.

    Args:
        cfg: From :func:`mmcfmask.benchmarks.steps.read_config`.
        device: Where the steps run.
        steps: Number of timed steps of each candidate.
        loader: Take the batches from ``cfg.train_dataloader`` instead of noise.
        threads: Number of CPU threads; None for torch's own choice.
        skip: Candidates to leave out, and ``'memory'`` to leave out the memory.

    Returns:
        dict: Medians over the steps, ratios, phases, memory and the machine; :func:`show_training` prints it.

    Raises:
        ConfigError: bfloat16 is very slow on this device, or the naive step does not fit the tower.
    """
    if slow := slow_bfloat16(cfg, device.type):  # the matrix products of the bound would take minutes
        raise ConfigError(slow)
    prepare_process(device, threads)
    adapted = uses_adapters(cfg.model)
    candidates = tuple(name for name in CANDIDATES if name not in skip and (adapted or 'adapter' not in name))
    measured = () if 'memory' in skip else track(candidates, 'Measuring memory', transient=True)
    memory = {name: measure_memory(cfg, device, name, threads) for name in measured}
    compared = Steps(cfg, device, candidates)
    flops = count_tower_flops(compared.model)
    amp = cfg.optim_wrapper.type == 'AutocastOptimWrapper'
    product = MatrixProduct(device, torch.bfloat16 if amp else torch.float32)
    batch = cfg.train_dataloader.batch_size
    batches = read_batches(cfg) if loader else repeat_batch(compared.synthetic_batch(batch))

    seconds, rates, phases = defaultdict(list), [], defaultdict(list)
    for number in track(range(-1, steps), 'Timing', transient=True):  # the first step is a warm-up
        start = time.perf_counter()
        data = next(batches)
        wait = time.perf_counter() - start
        times = {name: compared.time(name, dict(data)) for name in candidates}
        rate = product.measure_rate(compared.synchronize)
        parts = defaultdict(float)
        with compared.watched(partial(compared.timed, parts)):
            total = compared.time('counterfactual', dict(data))
        parts['data'] += wait
        parts['other'] = total + wait - sum(parts.values())
        if number < 0:
            continue
        rates.append(rate)
        for name, value in times.items():
            seconds[name].append(value)
        for name in PHASES:
            phases[name].append(parts[name])
    model = cfg.model.backbone.model_name
    result = dict(
        title=f'{model}, {"bfloat16" if amp else "float32"}, batch {batch}, {device}',
        config=cfg.filename,
        model=model,
        batch=batch,
        amp=amp,
        compile=bool(cfg.model.backbone.get('compile')),
        steps=steps,
        machine=describe_machine(device),
        tower_flops=flops,
        **summarize(seconds, rates, flops, batch),
        peak_memory=memory,
        phases={name: statistics.median(values) for name, values in phases.items()},
        rounds=dict(seconds=dict(seconds), matmul_tflops=[rate / 1e12 for rate in rates]),
    )
    if 'naive' in memory:
        result['ratios']['memory against naive'] = memory['counterfactual'] / memory['naive']
    if 'adapters' in memory:
        result['ratios']['memory with adapters, of that without'] = memory['adapters'] / memory['counterfactual']
    return result


def prepare_process(device: torch.device, threads: int | None) -> None:
    """Set up this process as tools/train.py does; the naive step benefits too."""
    if threads:
        torch.set_num_threads(threads)
    if device.type != 'cuda':
        keep_freed_memory()
    init_default_scope('mmpretrain')


def read_batches(cfg: Config) -> Iterator[dict]:
    """Batches of ``cfg.train_dataloader``, epoch after epoch."""
    loader = Runner.build_dataloader(cfg.train_dataloader, seed=0)
    while True:
        yield from loader


def repeat_batch(batch: dict) -> Iterator[dict]:
    """Copies of one batch."""
    while True:
        yield dict(batch)


class MatrixProduct:
    """Square matrix products in one dtype, whose rate bounds the training step."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.size = 8192 if device.type == 'cuda' else 2048
        self.factors = [torch.randn(self.size, self.size, device=device).to(dtype) for _ in range(2)]
        self.repeats = 10

    def measure_rate(self, synchronize: Callable[[], None]) -> float:
        """Operations per second, measured once."""
        synchronize()
        start = time.perf_counter()
        for _ in range(self.repeats):
            torch.mm(*self.factors)
        synchronize()
        return 2 * self.size**3 * self.repeats / (time.perf_counter() - start)


def summarize(seconds: dict[str, list[float]], rates: list[float], flops: float, batch: int) -> dict:
    """Medians over the steps, of times and of ratios within one step.

    Args:
        seconds: ``{candidate: seconds of each step}``.
        rates: Rate of the matrix products beside each step, in operations per second.
        flops: Operations of one forward pass of the tower with one image.
        batch: Images per step.
    """
    bounds = [8 * flops * batch / rate for rate in rates]

    def ratio(a: list[float], b: list[float]) -> float:
        return statistics.median(x / y for x, y in zip(a, b))

    own = seconds['counterfactual']
    ratios = {'of the arithmetic bound': ratio(bounds, own)}
    if 'naive' in seconds:
        ratios['against naive'] = ratio(seconds['naive'], own)
    if 'fine-tuning' in seconds:
        ratios['cost over fine-tuning'] = ratio(own, seconds['fine-tuning'])
    if 'adapters' in seconds:
        ratios['time with adapters, of that without'] = ratio(seconds['adapters'], own)
    return dict(
        seconds={name: statistics.median(values) for name, values in seconds.items()},
        bound_seconds=statistics.median(bounds),
        images_per_second={name: batch / statistics.median(values) for name, values in seconds.items()},
        matmul_tflops=statistics.median(rates) / 1e12,
        ratios=ratios,
    )


def measure_memory(cfg: Config, device: torch.device, name: str, threads: int | None = None) -> int:
    """Peak memory of one candidate in bytes, measured in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context('spawn')) as pool:
        try:
            return pool.submit(_peak_memory, cfg, device, name, threads).result()
        except BrokenProcessPool as error:
            raise UserError(
                f'the process that measured the memory of {name} was killed, perhaps for lack of memory: '
                'use a smaller --batch, or --skip memory'
            ) from error


def _peak_memory(cfg: Config, device: torch.device, name: str, threads: int | None) -> int:
    """Bytes at the highest point of three steps: allocated on the GPU, or resident above the imported libraries."""
    prepare_process(device, threads)
    before = read_status('VmRSS')
    steps = Steps(cfg, device, (name,))
    data = steps.synthetic_batch(cfg.train_dataloader.batch_size)
    for _ in range(3):
        steps.run(name, data)
    if device.type == 'cuda':
        return torch.cuda.max_memory_allocated(device)
    return read_status('VmHWM') - before


def read_status(field: str) -> int:
    """Bytes of this process, a field of /proc/self/status."""
    lines = Path('/proc/self/status').read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f'{field}:'))


def describe_machine(device: torch.device) -> dict:
    """What a reader must know to compare numbers: device, versions, threads and load."""
    info = dict(
        torch=torch.__version__,
        python=platform.python_version(),
        threads=torch.get_num_threads(),
        cores=os.cpu_count(),
        load=os.getloadavg()[0],
    )
    if device.type == 'cuda':
        return dict(device=torch.cuda.get_device_name(device), cuda=torch.version.cuda, **info)
    cpuinfo = Path('/proc/cpuinfo').read_text() if Path('/proc/cpuinfo').exists() else ''
    names = [line.split(':')[1].strip() for line in cpuinfo.splitlines() if line.startswith('model name')]
    features = [name for name in ('avx2', 'avx512f', 'avx512_bf16', 'amx_bf16') if name in cpuinfo.split()]
    return dict(device=names[0] if names else platform.processor(), features=features, **info)


def show_training(result: dict, console: Console) -> None:
    """Print a result of :func:`benchmark_training`."""
    memory = result['peak_memory']
    table = Table('', 's / step', 'images / s', 'peak memory (GB)', title=result['title'])
    for name, value in result['seconds'].items():
        rate = f'{result["images_per_second"][name]:.2f}'
        table.add_row(name, f'{value:.3f}', rate, f'{memory[name] / 1e9:.2f}' if name in memory else '')
    bound = result['bound_seconds']
    table.add_row('arithmetic', f'{bound:.3f}', f'{result["batch"] / bound:.2f}', '')
    console.print(table)
    for name, value in result['ratios'].items():
        console.print(f'{name}: {value:.2f}')
    console.print(
        f'matrix products: {result["matmul_tflops"]:.3f} Tflop/s; F = {result["tower_flops"] / 1e9:.1f} Gflop per image'
    )
    total = sum(result['phases'].values())
    table = Table('where the time goes', 's / step', '%')
    for name, value in result['phases'].items():
        table.add_row(name, f'{value:.3f}', f'{100 * value / total:.0f}')
    console.print(table)
