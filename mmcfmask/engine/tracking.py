"""Logging to TensorBoard, Weights & Biases and MLflow beside the work dir, and a trace of the first steps."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.hooks import Hook, ProfilerHook
from mmengine.runner import Runner
from mmengine.visualization import MLflowVisBackend
from mmpretrain.registry import HOOKS, VISBACKENDS

from ..errors import ConfigError, MissingPackageError
from .checks.model import makes_counterfactuals, shown_settings
from .counterfactual_images import choose_variant, draw_counterfactuals, look_at, pick_images
from .hooks import unwrapped

# Name to backend, and the package that it imports.
TRACKERS = dict(
    tensorboard=('TensorboardVisBackend', 'tensorboard'),
    wandb=('WandbVisBackend', 'wandb'),
    mlflow=('MLflowPictureBackend', 'mlflow'),
)


def add_trackers(cfg: Config, names: Sequence[str]) -> None:
    """Let a training log to trackers too, in place: metrics, loss terms, and pictures of the counterfactual images.

    Args:
        cfg (Config): The config of the training, with its work dir.
        names (Sequence[str]): Keys of :data:`TRACKERS`.

    Raises:
        ConfigError: Another name.
        MissingPackageError: The package of a tracker is not installed.
    """
    for name in dict.fromkeys(names):
        if name not in TRACKERS:
            raise ConfigError(f'--track {name}: choose {", ".join(TRACKERS)}')
        backend, package = TRACKERS[name]
        if importlib.util.find_spec(package) is None:
            raise MissingPackageError(f"--track {name} needs the package {package}: pip install 'mmcfmask[track]'")
        run, beside = Path(cfg.work_dir).name, Path(cfg.work_dir).resolve().parent
        options = dict(
            tensorboard={},
            wandb=dict(init_kwargs=dict(project='mmcfmask', name=run)),
            mlflow=dict(
                exp_name='mmcfmask',
                run_name=run,
                tracking_uri=os.environ.get('MLFLOW_TRACKING_URI') or f'sqlite:///{beside}/mlflow.db',
                artifact_location=None if 'MLFLOW_TRACKING_URI' in os.environ else (beside / 'mlflow').as_uri(),
            ),
        )[name]
        cfg.visualizer.vis_backends.append(dict(type=backend, **options))
    if names and makes_counterfactuals(cfg.model) and not cfg.get('model_wrapper_cfg'):
        cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), dict(type='CounterfactualPictureHook')]


@VISBACKENDS.register_module()
class MLflowPictureBackend(MLflowVisBackend):
    """mmengine's ``MLflowVisBackend`` with a file for every picture: MLflow takes names of files alone."""

    def add_image(self, name: str, image: np.ndarray, step: int = 0, **kwargs: Any) -> None:
        """Write ``<name>_<step>.png``, of an image (H, W, 3) RGB uint8."""
        super().add_image(f'{name}_{step}.png', image, step, **kwargs)


def add_profiler(cfg: Config, steps: int) -> None:
    """Let a training write a trace of its first batches to ``trace.json`` in the work dir, in place: the time of every
    kernel, by torch.profiler.

    Args:
        cfg (Config): The config of the training, with its work dir.
        steps (int): Number of batches, those of the warm-up included.
    """
    trace = dict(
        type='TraceHook',
        by_epoch=False,
        profile_times=steps,
        activity_with_cuda=torch.cuda.is_available(),
        record_shapes=True,
        json_trace_path=str(Path(cfg.work_dir) / 'trace.json'),
    )
    cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), trace]


@HOOKS.register_module()
class TraceHook(ProfilerHook):
    """mmengine's ``ProfilerHook``, whose trace may cross epochs, and ends with the training at the latest."""

    def before_run(self, runner: Runner) -> None:
        """Start the profiler."""
        self.profile_times = min(self.profile_times, runner.max_iters)
        super().before_run(runner)

    def after_train_epoch(self, runner: Runner) -> None:
        """mmengine would write the trace here."""


@HOOKS.register_module()
class CounterfactualPictureHook(Hook):
    """Sends a picture of some training images to the trackers of a run, before the training and after every epoch:
    image, relevance map, mask and counterfactual image.

    The training is that without the hook, to the last bit.

    Args:
        num (int): Number of images, the same all the time.
        interval (int): Epochs between two pictures.
    """

    priority = 'LOW'

    def __init__(self, num: int = 6, interval: int = 1) -> None:
        if num < 2 or interval < 1:
            raise ConfigError(
                f'CounterfactualPictureHook: num={num} must be at least 2, interval={interval} at least 1'
            )
        self.num, self.interval = num, interval

    def before_train(self, runner: Runner) -> None:
        """Choose the images, and draw the first picture."""
        if is_main_process():
            self.items, self.objects, self.metainfo = pick_images(runner.train_dataloader.dataset, self.num, seed=0)
            self.draw(runner, runner.epoch)

    def after_train_epoch(self, runner: Runner) -> None:
        """Draw the picture of this epoch."""
        if is_main_process() and self.every_n_epochs(runner, self.interval):
            self.draw(runner, runner.epoch + 1)

    def draw(self, runner: Runner, epoch: int) -> None:
        """Send a picture of the model as it is after an epoch."""
        model, settings = unwrapped(runner.model), shown_settings(runner.cfg.model)
        devices = [next(model.parameters()).device] if torch.cuda.is_available() else []
        training = model.training
        with torch.random.fork_rng(devices):
            model.eval()
            labels = [int(item['data_samples'].gt_label) for item in self.items]
            shown = look_at(model, self.items, self.metainfo.get('classes'), labels, self.objects)
            figure, *_ = draw_counterfactuals(shown, settings, *choose_variant(runner.cfg, None, None, None), seed=0)
            model.train(training)
        runner.visualizer.add_image('counterfactual_images', to_pixels(figure), step=epoch)


def to_pixels(figure: Figure, dpi: int = 150) -> np.ndarray:
    """A figure of :func:`mmcfmask.reporting.style.new_figure` as an image, (H, W, 3) RGB uint8."""
    figure.set_dpi(dpi)
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()
