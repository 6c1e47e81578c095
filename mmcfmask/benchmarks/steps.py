"""The training steps that are compared."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from unittest import mock

import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..counterfactual import refill
from ..counterfactual.reference import explicit_features, explicit_losses, explicit_mask, explicit_relevance
from ..engine.build import fit_loaders, fit_optimizer
from ..engine.checks.model import check_fill, makes_counterfactuals
from ..engine.config import load_config
from ..engine.testing import forget_training
from ..errors import ConfigError
from ..models import CounterfactualDistillation, CounterfactualMaker
from ..models.losses import base
from ..models.towers.adapters import without_adapters

CANDIDATES = ('counterfactual', 'fine-tuning', 'naive', 'adapters', 'adapter fine-tuning')
PHASES = ('data', 'clean forward', 'relevance', 'refill', 'masked forward', 'teacher', 'backward', 'optimizer', 'other')


def read_config(
    config: str,
    options: Sequence[str] = (),
    model: str | None = None,
    batch: int | None = None,
    amp: bool = False,
    compile_blocks: bool = False,
) -> Config:
    """Read the config of a counterfactual training step, without pretrained weights, on which no time depends.

    Args:
        config: Path of a config.
        options: Texts of ``--cfg-options``.
        model: open_clip name of the tower, instead of the one in the config.
        batch: Images per step, instead of the number in the config.
        amp: bfloat16 autocast.
        compile_blocks: ``torch.compile`` the blocks of the towers.

    Raises:
        ConfigError: The config has no counterfactual training step.
    """
    cfg = load_config(config, options)
    if not makes_counterfactuals(cfg.model) or not cfg.get('optim_wrapper'):
        raise ConfigError(
            f'{config} has no counterfactual training step: use a config that has one, such as configs/cfmask_vitb16.py'
        )
    if model:
        cfg.model.backbone.model_name = model
    if compile_blocks:
        cfg.model.backbone.compile = True
    cfg.model.backbone.pretrained = None
    if cfg.model.get('teacher'):
        cfg.model.teacher = dict(type='OpenCLIPTeacher', precision=cfg.model.teacher.get('precision'))
    for start in ('class_weights', 'descriptions'):
        cfg.model.head.pop(start, None)
    if batch:
        cfg.train_dataloader.batch_size = batch
    if amp:
        cfg.optim_wrapper.type = 'AutocastOptimWrapper'
    cfg.optim_wrapper.accumulative_counts = 1
    check_fill(cfg)
    fit_loaders(cfg)
    fit_optimizer(cfg)
    return cfg


def naive_losses(model: nn.Module, teacher: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Losses of one step, written plainly after the publication, for an object or context mask with a fill.

    Args:
        model (CounterfactualClassifier): The source of weights and settings; none of its code runs.
        teacher (nn.Module): The frozen open_clip tower.
        images (Tensor): (B, 3, H, W), normalised.
        labels (Tensor): (B,) int64.

    Returns:
        tuple[Tensor, Tensor]: Cross-entropy and weighted distillation loss.
    """
    visual, settings = model.backbone.visual, model.data_preprocessor

    def classify(features: Tensor) -> Tensor:
        return F.linear(features / features.norm(dim=-1, keepdim=True), model.head.fc.weight, model.head.fc.bias)

    mask = explicit_mask(explicit_relevance(visual, classify, images, labels), settings.mask, settings.value)
    counterfactual = refill(images, mask, settings.fill)
    return explicit_losses(visual, teacher, classify, images, labels, counterfactual, model.head.distill_weight)


class Steps:
    """The candidates, which share one model; those with adapters have one of their own.

    The learning rate is 0, so all of them compute with the same weights, at the same cost.

    Args:
        cfg: From :func:`read_config`; not changed.
        device: Where the steps run.
        candidates: Some of :data:`CANDIDATES`.
        prepare: Called with the model before optimizers are built.

    Raises:
        ConfigError: The naive step does not fit the tower.
    """

    def __init__(
        self,
        cfg: Config,
        device: torch.device,
        candidates: Sequence[str],
        prepare: Callable[[nn.Module], None] = lambda model: None,
    ) -> None:
        torch.manual_seed(0)
        cfg, candidates = copy.deepcopy(cfg), tuple(candidates)
        self.device = device
        cfg.optim_wrapper.optimizer.lr = 0.0
        if all('fine-tuning' in name for name in candidates):
            forget_training(cfg.model)
        models = {}
        for adapted in {'adapter' in name for name in candidates}:
            backbone = cfg.model.backbone if adapted else without_adapters(cfg.model.backbone)
            models[adapted] = MODELS.build({**cfg.model, 'backbone': backbone}).to(device).train()
            prepare(models[adapted])
        self.models = {name: models['adapter' in name] for name in candidates}
        self.losses = {name: model.losses for name, model in self.models.items()}
        self.first = candidates[0]
        self.model = self.models[self.first]
        self.teacher = self.model.teacher
        visual = self.model.backbone.visual
        if 'naive' in candidates and not hasattr(visual, 'transformer'):
            raise ConfigError(
                f'the naive step is written for ViTs of open_clip, not for {type(visual).__name__}: use --skip naive'
            )
        if 'naive' in candidates and [type(term) for term in self.losses['naive']] != [CounterfactualDistillation]:
            raise ConfigError(
                'the naive step is written for losses=[dict(type="CounterfactualDistillation")] alone, but the config '
                f'has {", ".join(type(term).__name__ for term in self.losses["naive"])}: use --skip naive'
            )
        if 'naive' in candidates:  # a teacher that is not rounded under autocast
            teacher = self.teacher.backbone.visual
            self.naive_teacher = teacher if candidates == ('naive',) else copy.deepcopy(teacher)
        plain = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=0.0, weight_decay=0.1))
        wrappers = {name: {**cfg.optim_wrapper, **(plain if name == 'naive' else {})} for name in candidates}
        self.wrappers = {name: build_optim_wrapper(self.models[name], wrapper) for name, wrapper in wrappers.items()}

    def synthetic_batch(self, batch: int) -> dict:
        """Noise in the form of a data loader's batch, uint8 on the CPU."""
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(256, (batch, 3, *self.model.backbone.image_size), dtype=torch.uint8, generator=generator)
        labels = torch.randint(self.model.head.num_classes, (batch,), generator=generator)
        if self.device.type == 'cuda':
            images = images.pin_memory()
        return dict(inputs=images, data_samples=[DataSample().set_gt_label(label) for label in labels])

    def run(self, name: str, data: dict) -> None:
        """One step of a candidate."""
        wrapper, model = self.wrappers[name], self.models[name]
        model.losses = nn.ModuleList() if 'fine-tuning' in name else self.losses[name]
        if name == 'naive':
            data = model.data_preprocessor(data, training=True)
            labels = torch.cat([sample.gt_label for sample in data['data_samples']])
            wrapper.update_params(sum(naive_losses(model, self.naive_teacher, data['inputs'], labels)))
        else:
            model.train_step(data, wrapper)

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
    def timed(self, seconds: dict[str, float], phase: str) -> Iterator[None]:
        """Add the time spent inside the context to ``seconds[phase]``."""
        self.synchronize()
        start = time.perf_counter()
        yield
        self.synchronize()
        seconds[phase] += time.perf_counter() - start

    @contextmanager
    def watched(self, meter: Callable[[str], AbstractContextManager]) -> Iterator[None]:
        """Inside the context, every part of a step of the first candidate runs inside ``meter(phase)``."""

        def watch(function, *phases: str):
            phases = list(phases)

            def watched(*args, **kwargs):
                with meter(phases.pop(0) if len(phases) > 1 else phases[0]):
                    return function(*args, **kwargs)

            return watched

        model, wrapper = self.model, self.wrappers[self.first]
        targets = [
            (model.data_preprocessor, 'forward', 'data'),
            (model, 'extract_feat', 'clean forward', 'masked forward'),
            (base, 'attention_relevance', 'relevance'),
            (CounterfactualMaker, 'counterfactual', 'refill'),
            (CounterfactualMaker, 'refill_again', 'refill'),
            *([] if self.teacher is None else [(self.teacher, 'forward', 'teacher')]),
            (wrapper, 'backward', 'backward'),
            (wrapper, 'step', 'optimizer'),
        ]
        with ExitStack() as stack:
            for owner, name, *phases in targets:
                stack.enter_context(mock.patch.object(owner, name, watch(getattr(owner, name), *phases)))
            yield


def count_tower_flops(model: nn.Module) -> float:
    """Floating-point operations of the tower's forward pass with one image; a multiply-add counts as two."""
    visual = model.backbone.visual
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        explicit_features(visual, torch.zeros(1, 3, *model.backbone.image_size, device=visual.proj.device))
    return counter.get_total_flops()
