"""Speed of the test loop."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmpretrain.registry import DATASETS, MODELS
from mmpretrain.structures import DataSample
from rich.console import Console
from rich.progress import track
from torch.utils.data import Dataset

from ..engine.build import build_runner
from ..engine.config import load_config
from ..engine.testing import prepare_test
from ..errors import ConfigError
from .training import describe_machine, prepare_process


@DATASETS.register_module()
class NoiseDataset(Dataset):
    """Random images, (3, H, W) uint8, that cost no time to read."""

    metainfo: dict = {}

    def __init__(self, size: int, image_size: tuple[int, int], num_classes: int) -> None:
        self.size, self.num_classes = size, num_classes
        self.image = torch.randint(256, (3, *image_size), dtype=torch.uint8)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict:
        sample = DataSample(metainfo=dict(sample_idx=index)).set_gt_label(index % self.num_classes)
        return dict(inputs=self.image, data_samples=sample)


def benchmark_evaluation(
    config: str,
    options: Sequence[str] = (),
    model: str | None = None,
    device: torch.device | None = None,
    steps: int = 5,
    batch: int | None = None,
    amp: bool = False,
    loader: bool = False,
    threads: int | None = None,
    batches: int = 4,
) -> dict:
    """Time the test loop on the in-distribution set, the forward pass of the tower alone and, with ``loader``, the
    reading of images alone; in turns.

    Args:
        config: Path of a config.
        options: Texts of ``--cfg-options``.
        model: open_clip name of the tower, instead of the one in the config.
        device: Device of the test, which must be the one that tools/test.py uses.
        steps: Number of rounds.
        batch: Images per batch, instead of the number in the config.
        amp: bfloat16 autocast.
        loader: Read the images of the config instead of noise.
        threads: Number of CPU threads; None for torch's own choice.
        batches: Number of batches of noise, and of forward passes in a round.

    Returns:
        dict: Images per second, and ratios of the test loop to the others; :func:`show_evaluation` prints it.

    Raises:
        ConfigError: tools/test.py uses another device.
    """
    if device is not None and device.type != get_device():
        raise ConfigError(
            f'--evaluation times tools/test.py, which runs on {get_device()!r} here: leave --device out, or hide the '
            'GPU with CUDA_VISIBLE_DEVICES='
        )
    device = device or torch.device(get_device())
    prepare_process(device, threads)
    cfg = load_config(config, options)
    prepare_test(cfg, shifts=[], amp=amp)
    if model:
        cfg.model.backbone.model_name = model
    name = cfg.test_cfg.id_set
    loader_cfg = cfg.test_dataloader[name]
    if batch:
        loader_cfg.batch_size = batch
    _drop_weights_and_training(cfg)
    if not loader:
        loader_cfg.update(num_workers=0, persistent_workers=False)
        loader_cfg.dataset = dict(
            type='NoiseDataset',
            size=batches * loader_cfg.batch_size,
            image_size=MODELS.build(cfg.model.backbone).image_size,
            num_classes=cfg.model.head.num_classes,
        )
    with tempfile.TemporaryDirectory() as work_dir:
        cfg.work_dir, cfg.experiment_name, cfg.log_level, cfg.launcher = (
            work_dir,
            Path(work_dir).name,
            'WARNING',
            'none',
        )
        runner = build_runner(cfg)
        rates = _time_evaluation(runner, name, batches, amp, loader, steps)
    ratios = {
        f'of the {way}': statistics.median(a / b for a, b in zip(rates['test loop'], rates[way]))
        for way in list(rates)[1:]
    }
    if loader:  # what can be reached if both share the cores
        ratios['of both in turn'] = statistics.median(
            tested * (1 / computed + 1 / loaded) for tested, computed, loaded in zip(*rates.values())
        )
    return dict(
        model=cfg.model.backbone.model_name,
        batch=loader_cfg.batch_size,
        amp=amp,
        workers=loader_cfg.num_workers,
        machine=describe_machine(device),
        images=len(runner.test_loop.loaders[name].dataset),
        images_per_second={way: statistics.median(values) for way, values in rates.items()},
        ratios=ratios,
    )


def _drop_weights_and_training(cfg: Config) -> None:
    """Remove what has no influence on the time of a test, in place."""
    cfg.model.backbone.pretrained = None
    for start in ('class_weights', 'descriptions'):
        cfg.model.head.pop(start, None)
    for part in ('train', 'val'):
        cfg[f'{part}_cfg'] = cfg[f'{part}_dataloader'] = cfg[f'{part}_evaluator'] = None
    cfg.optim_wrapper = cfg.param_scheduler = None


def _time_evaluation(runner, name: str, batches: int, amp: bool, loader: bool, steps: int) -> dict[str, list[float]]:
    """``{what: images per second in each round}``."""
    loop, model = runner.test_loop, runner.model.eval()
    images = model.data_preprocessor(next(iter(loop.loaders[name])))['inputs']

    def synchronize() -> None:
        if images.is_cuda:
            torch.cuda.synchronize()

    def test() -> float:
        runner.test()
        return loop.results[name]['speed']['images_per_second']

    @torch.inference_mode()
    def forward() -> float:
        synchronize()
        start = time.perf_counter()
        with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=amp):
            for _ in range(batches):
                model.backbone(images)
        synchronize()
        return batches * len(images) / (time.perf_counter() - start)

    def read() -> float:
        start = time.perf_counter()
        return sum(len(batch['inputs']) for batch in loop.loaders[name]) / (time.perf_counter() - start)

    ways = {'test loop': test, 'bare forward': forward, **({'loader': read} if loader else {})}
    rates = defaultdict(list)
    for number in track(range(-1, steps), 'Timing', transient=True):  # the first round is a warm-up
        for way, measure in ways.items():
            rate = measure()
            if number >= 0:
                rates[way].append(rate)
    return dict(rates)


def show_evaluation(result: dict, console: Console) -> None:
    """Print a result of :func:`benchmark_evaluation`."""
    for name, value in result['images_per_second'].items():
        console.print(f'{name}: {value:.2f} images / s', highlight=False)
    for name, value in result['ratios'].items():
        console.print(f'{name}: {value:.3f}', highlight=False)
