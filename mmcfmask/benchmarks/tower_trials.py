"""One image tower of open_clip with random weights: what it needs, and whether everything works on it."""

from __future__ import annotations

import inspect
import json
import logging
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import open_clip
import torch
from mmengine.registry import init_default_scope
from open_clip.utils import to_2tuple
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from ..counterfactual import FILLS, MASKS, hide_patches, refill, relevance_map, tower_layout
from ..errors import UserError, first_line
from ..models import CounterfactualMaker, OpenCLIPBackbone
from ..models.export.graphs import check_onnx, export_graph, write_onnx
from ..models.export.hugging_face_folder import vision_config
from ..models.export.open_clip_folder import model_config
from ..models.towers.conversion import mmpretrain_model
from ..models.towers.loading import SMALL_TEXT
from .steps import Steps, read_config
from .tower_page import BYTES_PER_PARAMETER
from .training import read_status

HEADLINE = 'object', 'single'
# What :func:`estimate` finds.
ESTIMATED = ('parameters', 'gflop', 'image_size', 'memory')


def list_towers() -> list[list[str]]:
    """The names of ``open_clip.list_models()``, grouped by image tower. The members of a group differ in their text
    tower, their activation function, the width of the embedding or their weights."""
    groups: dict[str, list[str]] = {}
    for name in open_clip.list_models():
        groups.setdefault(json.dumps(open_clip.get_model_config(name)['vision_cfg'], sort_keys=True), []).append(name)
    return [sorted(names, key=lambda name: (len(name), name)) for names in groups.values()]


def estimate(name: str, batch: int) -> dict[str, Any]:
    """What a tower needs, found without memory: by tensors without values.

    Args:
        name: open_clip name.
        batch: Images per step.

    Returns:
        dict: ``parameters``, ``gflop`` of one forward pass with one image, ``image_size``, and ``memory``: gigabytes of
            a training step of stock modules.
    """
    logging.disable(logging.WARNING)  # open_clip's about random weights
    try:
        with torch.device('meta'):
            model = open_clip.create_model(name, device='meta', pretrained_text=False, text_cfg=SMALL_TEXT)
            tower = model.visual.eval()
            images = torch.zeros(1, 3, *to_2tuple(tower.image_size))
            tower.requires_grad_(False)
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                tower(images)
            tower.requires_grad_(True)
            with kept_for_backward(tower) as kept:
                tower(images)
    finally:
        logging.disable(logging.NOTSET)
    parameters = sum(parameter.numel() for parameter in tower.parameters())
    return dict(
        parameters=parameters,
        gflop=counter.get_total_flops() / 1e9,
        image_size=list(to_2tuple(tower.image_size)),
        # Of the clean and of the counterfactual images.
        memory=(BYTES_PER_PARAMETER * parameters + 2 * batch * sum(kept.values())) / 1e9,
    )


@contextmanager
def kept_for_backward(module: nn.Module) -> Iterator[dict[int, int]]:
    """Inside the context, collect the bytes of every storage that autograd keeps for a backward pass, but for the
    parameters of ``module``."""
    own = {parameter.untyped_storage()._cdata for parameter in module.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept


def outcome(part: Callable[[], Any]) -> str:
    """Run a part of a trial: ``'ok'``, ``'refused: …'`` with the message for the user, or ``'failed: …'``."""
    try:
        part()
    except UserError as error:
        return f'refused: {error}'
    except Exception as error:  # whatever it is, it is what the trial is for
        return f'failed: {type(error).__name__}: {first_line(error) if str(error) else "no message"}'
    return 'ok'


def try_tower(config: str, name: str, batch: int = 2, all_variants: bool = True, onnx: bool = False) -> dict[str, Any]:
    """Train a tower for one step of each variant, with noise for images, and export it.

    Args:
        config: Path of ``configs/cfmask_vitb16.py``, whose tower is replaced.
        name: open_clip name.
        batch: Images per step.
        all_variants: All nine pairs of mask and fill, or else the headline variant alone.
        onnx: Export to ONNX as well.

    Returns:
        dict: A record for :mod:`.tower_page`. Outcomes are texts of :func:`outcome`.
    """
    init_default_scope('mmpretrain')
    torch.set_num_threads(1)
    before = read_status('VmRSS')
    found: list[Trial] = []
    record: dict[str, Any] = dict(built=outcome(lambda: found.append(Trial(config, name, batch))))
    if not found:
        return record
    (trial,) = found
    record.update(trial.layout())
    record['start'] = trial.distillation_at_start()
    record['map'] = outcome(trial.check_map)
    pairs = [*product(MASKS, FILLS)] if all_variants else [HEADLINE]
    record['variants'] = {f'{mask}/{fill}': outcome(partial(trial.step, mask, fill)) for mask, fill in pairs}
    record.update(
        seconds=trial.seconds.get(HEADLINE), kept=trial.kept.get(HEADLINE), unused=trial.unused, hidden=trial.hidden()
    )
    record['peak'] = (read_status('VmHWM') - before) / 1e9
    trial.steps.wrappers.clear()  # the moments of the optimizer
    record['export'] = trial.exports(onnx)
    if 'lora' in inspect.signature(OpenCLIPBackbone.__init__).parameters:
        record['lora'] = outcome(lambda: Trial(config, name, batch, lora=dict(rank=8)).step(*HEADLINE))
    return record


class Trial:
    """A classifier with a tower, and the training steps of its variants.

    Args:
        config, name, batch: See :func:`try_tower`.
        **options: Of the backbone.

    Attributes:
        seconds (dict): CPU seconds per image of every variant that was trained.
        kept (dict): Gigabytes per image that autograd keeps in a step.
        unused (list[str]): Parameters without a gradient.
    """

    def __init__(self, config: str, name: str, batch: int, **options: Any) -> None:
        cfg = read_config(config, model=name, batch=batch)
        cfg.model.backbone.update(image_size=None, **options)
        self.batch = batch
        self.steps = Steps(cfg, torch.device('cpu'), ('counterfactual',))
        self.model = self.steps.model
        self.data = self.steps.synthetic_batch(batch)
        self.images = self.model.data_preprocessor(dict(self.data), training=True)['inputs']
        self.seconds: dict[tuple[str, str], float] = {}
        self.kept: dict[tuple[str, str], float] = {}
        self.unused: list[str] = []

    def layout(self) -> dict[str, Any]:
        """How the tower pools, and its grid."""
        layout = tower_layout(self.model.backbone, self.images)
        return dict(pooling=layout.pooling, grid=list(layout.grid), prefix=layout.prefix, has_map=layout.has_map)

    def distillation_at_start(self) -> float:
        """The mean squared difference of student and teacher on unmasked images, relative to the mean square of the
        teacher's features. It must be 0, up to rounding."""
        with torch.no_grad():
            expected = self.model.teacher(self.images)
            difference = self.model.extract_feat(self.images)[-1] - expected
            return float(difference.square().mean() / expected.square().mean())

    def check_map(self) -> None:
        """Raise an error for a relevance map that says nothing."""
        labels = torch.arange(self.batch)
        relevance = relevance_map(self.model, self.images, labels)
        if not relevance.isfinite().all() or (relevance < 0).any():
            raise FloatingPointError('the relevance map is negative or not finite')
        if (relevance.amax(dim=(1, 2)) == relevance.amin(dim=(1, 2))).all():
            raise ValueError('the relevance map is flat')

    def step(self, mask: str, fill: str) -> None:
        """One training step.

        Raises:
            ConfigError: The tower does not allow this variant.
            FloatingPointError: A gradient is not finite.
        """
        CounterfactualMaker.__init__(self.model.data_preprocessor, mask, fill)
        for term in self.steps.losses['counterfactual']:
            term.setup(self.model)
        optimizer = self.steps.wrappers['counterfactual'].optimizer
        handle = optimizer.register_step_pre_hook(lambda *_: self._check_gradients())
        start = time.process_time()
        try:
            with kept_for_backward(self.model) as kept:
                self.steps.run('counterfactual', dict(self.data))
        finally:
            handle.remove()
        self.seconds[mask, fill] = (time.process_time() - start) / self.batch
        self.kept[mask, fill] = sum(kept.values()) / self.batch / 1e9

    def _check_gradients(self) -> None:
        grads = {name: parameter.grad for name, parameter in self.model.named_parameters()}
        self.unused = [name for name, grad in grads.items() if grad is None]
        for name, grad in grads.items():
            if grad is not None and not grad.isfinite().all():
                raise FloatingPointError(f'the gradient of {name} is not finite')

    def hidden(self) -> float | str:
        """How much features change, relative to their norm, if the pixels of hidden patches change; or why patches
        cannot be hidden."""
        backbone = self.model.backbone.eval()
        grid = tower_layout(backbone, self.images).grid
        order = torch.rand(self.batch, grid[0] * grid[1], generator=torch.Generator().manual_seed(0)).argsort()
        hidden = order < grid[0] * grid[1] // 2
        others = refill(self.images, hidden.unflatten(1, grid), 'single')
        found: list[Tensor] = []

        def compare() -> None:
            for kept in (None, int((~hidden[0]).sum())):  # keys are masked; tokens are dropped where that is possible
                for images in (self.images, others):
                    with torch.no_grad(), hide_patches(backbone, images, hidden, kept):
                        found.append(self.model.extract_feat(images)[-1])

        result = outcome(compare)
        if result != 'ok':
            return result
        return max(float(((one - found[0]).norm(dim=1) / found[0].norm(dim=1)).max()) for one in found[1:])

    def exports(self, onnx: bool) -> dict[str, str]:
        """The outcome for every format. Graphs are compared with the model."""
        backbone = self.model.eval().backbone
        parts = dict(
            open_clip=lambda: model_config(backbone),
            hf=lambda: vision_config(backbone),
            mmpretrain=lambda: mmpretrain_model(backbone),
            torch=lambda: self._export_graph(None),
        )
        if onnx:
            parts['onnx'] = self._export_onnx
        return {name: outcome(part) for name, part in parts.items()}

    def _export_graph(self, folder: Path | None) -> None:
        graph = export_graph(self.model, self.model.backbone.image_size, classifier=False)
        if folder is not None:
            write_onnx(folder, graph, 'features')
            return
        with torch.no_grad():
            expected, got = self.model.extract_feat(self.images)[-1], graph.module()(self.images)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))

    def _export_onnx(self) -> None:
        check_onnx()
        with tempfile.TemporaryDirectory() as folder:
            self._export_graph(Path(folder))
