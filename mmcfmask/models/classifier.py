"""One training step of the method."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import chain, count
from typing import Any

import torch
from mmpretrain.models.classifiers import ImageClassifier
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from ..counterfactual import attention_relevance, drop_tokens, mask_keys, patch_grid, record_attention
from ..errors import ConfigError
from ..ranges import OpenShare
from .class_embeddings.build import build_class_weights
from .inference.relevance_crop import check_crop_scale, predict_with_crop
from .losses.base import Step
from .preprocessor import CAMRefillDataPreprocessor, Counterfactual


@MODELS.register_module()
class CounterfactualClassifier(ImageClassifier):
    """Fine-tunes an image tower while holding it to its frozen start on counterfactual images (CVPR 2023)::

        loss = CE(logits(x), y) + λ · mean (f(x̃) − f0(x̃))²

    where x̃ is x with patches cut out by its class activation map and refilled from other images of the batch. The
    forward pass that gives the logits also gives the map. Inference (``tensor``, ``predict``) is that of
    ``ImageClassifier``.

    All pre-trained weights (tower, class embeddings, teacher) are in place after construction, so that testing CLIP as
    it comes needs no training step and errors come early.

    Args:
        backbone (dict): :class:`OpenCLIPBackbone`, or mmpretrain's ``VisionTransformer`` with a ``CLIPProjection``
            neck.
        head (dict): :class:`CLIPDistillHead`; ``in_channels`` is filled in.
        neck (dict, optional): As in ``ImageClassifier``.
        teacher (dict, optional): :class:`OpenCLIPTeacher`. None: plain fine-tuning, no counterfactuals.
        auxiliary (list[dict], optional): Other methods' losses, added to those above: modules of
            :mod:`mmcfmask.models.losses`.
        data_preprocessor (dict): :class:`CAMRefillDataPreprocessor`.
        gate (dict, optional): The arguments of :class:`KNNGate`, which gives the start's predictions for images unlike
            those of the training. None: all predictions are those of the fine-tuned model.
        crop_scale (float, optional): Predictions are made by
            :func:`mmcfmask.models.inference.relevance_crop.predict_with_crop`, this being the side of the part; also
            those of the gate's start. None: by one look.
        **kwargs: Those of ``ImageClassifier``, but ``pretrained`` and ``init_cfg``: they would act after the teacher
            was copied.

    Raises:
        ValueError: Teacher and student of different feature width, wrong number of class embeddings, an image
            normalisation that is not that of the weights, …
    """

    def __init__(
        self,
        backbone: dict,
        head: dict,
        neck: dict | None = None,
        teacher: dict | None = None,
        data_preprocessor: dict | None = None,
        auxiliary: list[dict] | None = None,
        gate: dict | None = None,
        crop_scale: OpenShare | None = None,
        **kwargs,
    ) -> None:
        for key in {'pretrained', 'init_cfg'} & kwargs.keys():
            if kwargs[key] is not None:
                raise ConfigError(
                    f'CounterfactualClassifier got {key}={kwargs[key]!r}, which mmengine would load after the teacher '
                    'was copied from the start: use model.backbone.pretrained or model.backbone.init_cfg'
                )
        backbone = MODELS.build(backbone) if isinstance(backbone, dict) else backbone
        neck = MODELS.build(neck) if isinstance(neck, dict) else neck
        width = backbone.embed_dims if neck is None else neck.out_channels
        if isinstance(head, dict):
            head = {'in_channels': width, **head}
        data_preprocessor = {'type': 'CAMRefillDataPreprocessor', **(data_preprocessor or {})}
        super().__init__(backbone, neck=neck, head=head, data_preprocessor=data_preprocessor, **kwargs)
        if not isinstance(self.data_preprocessor, CAMRefillDataPreprocessor):
            raise ConfigError(
                'CounterfactualClassifier needs data_preprocessor.type="CAMRefillDataPreprocessor", but got '
                f'{data_preprocessor["type"]!r}'
            )
        check_normalisation(self.backbone, self.data_preprocessor)
        self._set_frozen(teacher=None, gate=None)
        if crop_scale is not None:
            check_crop_scale(crop_scale)
            patch_grid(self.backbone, torch.empty(1, 3, 224, 224))  # an error without patches
        self.crop_scale = crop_scale
        self.auxiliary = nn.ModuleList()
        self._load_start(teacher)
        if gate is not None:
            gate = MODELS.build({'type': 'KNNGate', **gate})
            gate.start_from(self)
            self._set_frozen(gate=gate)
        self._check_hiding()
        for module in map(MODELS.build, auxiliary or ()):
            module.start(self)
            self.auxiliary.append(module)
        if self.teacher is not None:
            self.teacher.exact = len(self.auxiliary) > 0  # they may read its weights

    def _load_start(self, teacher: dict | None) -> None:
        """Put the pre-trained weights, the class embeddings and the teacher in place."""
        for part in (self.backbone, self.neck):  # an init_cfg, where there is one, acts now and not at train()
            if part is not None and getattr(part, 'init_cfg', None):
                part.init_weights()
        if self.head.class_weights is not None:
            start = build_class_weights(self.head.class_weights, self)
            if self.head.class_weights['type'] == 'linear_probe':
                self.head.init_class_weights(start[:, :-1], 1.0, bias=start[:, -1])
            else:
                self.head.init_class_weights(start, getattr(self.backbone, 'logit_scale', 100.0))
        if teacher is not None:
            teacher = MODELS.build(teacher) if isinstance(teacher, dict) else teacher
            teacher.start_from(self.backbone, self.neck, self.head)
            width = self.head.in_channels if teacher.neck is not None else teacher.backbone.embed_dims
            if width != self.head.in_channels:
                raise ConfigError(
                    f'the teacher {teacher.model_name!r} gives features of width {width}, '
                    f'but the student gives width {self.head.in_channels}: choose towers of the same embedding width'
                )
            if self.head.distill == 'logits' and not teacher.is_start:
                raise ConfigError(
                    f"distill='logits' compares class probabilities, but the teacher {teacher.model_name!r} has no "
                    'class '
                    "embeddings of its own: use distill='feature', or the student's own start as teacher"
                )
            self._set_frozen(teacher=teacher)

    def _check_hiding(self) -> None:
        """Without a fill, both towers must be able not to see the same patches."""
        settings = self.data_preprocessor
        if None in (self.teacher, self.head.distill, settings.mask) or settings.fill != 'none':
            return
        grids = [getattr(tower, 'patch_size', None) for tower in (self.backbone, self.teacher.backbone)]
        if None not in grids and grids[0] != grids[1]:
            raise ConfigError(
                f'fill="none" hides patches from student and teacher, but the teacher {self.teacher.model_name!r} has '
                f'patches of {grids[1]} pixels and the student of {grids[0]}: use fill="single" or "multi"'
            )
        if getattr(self.backbone, 'grad_checkpointing', False) and (
            settings.needs_relevance or after_position(self.backbone) is None
        ):
            raise ConfigError(
                'fill="none" hides patches in the attention of the forward pass, and backbone.grad_checkpointing=True '
                'would compute it again without: use fill="single" or "multi", or grad_checkpointing=False'
            )

    def _set_frozen(self, **modules: nn.Module | None) -> None:
        # Past nn.Module's registration: not sub-modules, so not in parameters(), state_dict(), EMA or DDP.
        for name, module in modules.items():
            object.__setattr__(self, name, module)

    def _apply(self, fn: Callable, *args, **kwargs) -> nn.Module:
        for module in (self.teacher, self.gate):
            if module is not None:
                module._apply(fn, *args, **kwargs)  # follows .to(), .cuda(), .half()
        return super()._apply(fn, *args, **kwargs)

    def train(self, mode: bool = True) -> CounterfactualClassifier:
        super().train(mode)
        if not mode:
            self._finish()
        return self

    def state_dict(self, *args, **kwargs) -> dict[str, Any]:
        self._finish()
        return super().state_dict(*args, **kwargs)

    def _finish(self) -> None:
        """Before evaluation and saving: auxiliary modules bring up to date what they keep elsewhere."""
        for module in self.auxiliary:
            module.finish(self)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args, **kwargs) -> None:
        if not len(self.auxiliary):  # testing: their weights in a checkpoint are of no use, and no reason for a warning
            for name in [name for name in state_dict if name.startswith(f'{prefix}auxiliary.')]:
                del state_dict[name]
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def predict(self, inputs: Tensor, data_samples: list | None = None, **kwargs) -> list:
        """As ``ImageClassifier.predict``, by one look or two; with a gate, its scores are what the predictions are made
        of, and ``answered_by_zero_shot`` (bool) says whose they are."""
        if self.gate is None and self.crop_scale is None:
            return super().predict(inputs, data_samples, **kwargs)
        scores = self._look(inputs)
        if self.gate is None:
            return self.head._get_predictions(scores, data_samples)
        scores, answered_by_zero_shot = self.gate(
            inputs, scores, self.gate.threshold(self, self._look), self.crop_scale
        )
        data_samples = self.head._get_predictions(scores, data_samples)
        for sample, started in zip(data_samples, answered_by_zero_shot.tolist()):
            sample.set_field(started, 'answered_by_zero_shot', dtype=bool)
        return data_samples

    def _look(self, inputs: Tensor) -> Tensor:
        """Logits (B, C) by one look or two."""
        return (
            self(inputs) if self.crop_scale is None else predict_with_crop(self.backbone, self, inputs, self.crop_scale)
        )

    def loss(self, inputs: Tensor, data_samples: list) -> dict[str, Tensor]:
        """``loss_cls``, with a teacher ``loss_distill``, and those of the auxiliary modules.

        Args:
            inputs (Tensor): (B, 3, H, W), normalised.
            data_samples (list[DataSample]): With ``gt_label``.
        """
        distilled = self.teacher is not None and self.head.distill is not None
        masked = distilled and self.data_preprocessor.mask is not None
        listening = masked and self.data_preprocessor.needs_relevance
        with record_attention(self.backbone) if listening else nullcontext() as calls:
            feats = self.extract_feat(inputs)
            logits = self.head(feats)
        losses = self.head.loss_by_logits(logits, data_samples)
        labels = torch.cat([sample.gt_label for sample in data_samples])
        step = Step(self, inputs, labels, feats[-1], logits)
        for module in self.auxiliary:
            add_losses(losses, module(step))

        if not distilled:
            return losses
        if not masked:
            return add_losses(losses, self.head.distill_loss(step.features, step.teacher_features, self.teacher))
        grid = patch_grid(self.backbone, inputs)
        relevance = None
        if listening:
            score = logits.gather(1, labels[:, None]).sum()
            relevance = attention_relevance(score, calls, grid, retain_graph=True)
        changed = self.data_preprocessor.counterfactual(inputs, grid, relevance)
        with hide_patches(self.backbone, changed):
            student = self.extract_feat(changed.images)[-1]
        with hide_patches(self.teacher.backbone, changed):
            teacher = self.teacher(changed.images)
        return add_losses(losses, self.head.distill_loss(student, teacher, self.teacher))


def add_losses(losses: dict[str, Tensor], more: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add ``more`` to ``losses``, in place; a second one of a name, as of two modules of one type, becomes
    ``<name>_2``."""
    for name, loss in more.items():
        names = chain([name], (f'{name}_{number}' for number in count(2)))
        losses[next(free for free in names if free not in losses)] = loss
    return losses


def check_normalisation(backbone: nn.Module, preprocessor: CAMRefillDataPreprocessor) -> None:
    """Raise a ValueError, with what to write, unless images are normalised as the weights of ``backbone`` want, where
    that is known."""
    if not preprocessor._enable_normalize:  # mmpretrain's: neither mean nor std was given
        return
    for key in 'mean', 'std':
        wanted = getattr(backbone, key, None)
        got = getattr(preprocessor, key).flatten().cpu()
        if wanted is not None and (got - torch.tensor(wanted) * 255).abs().max() > 0.5:
            wanted = [round(value * 255, 2) for value in wanted]
            raise ConfigError(
                f'model.data_preprocessor.{key} is {[round(value, 2) for value in got.tolist()]}, but the weights '
                f'{backbone.pretrained or backbone.model_name!r} were trained with {key}={wanted}'
            )


@contextmanager
def hide_patches(backbone: nn.Module, changed: Counterfactual) -> Iterator[None]:
    """Inside the context ``backbone`` does not see the patches that were taken out and not replaced."""
    if not changed.hidden:
        yield
        return
    hidden = changed.mask.flatten(1)
    module = after_position(backbone)
    if changed.kept is not None and module is not None:
        with drop_tokens(module, hidden, changed.kept):
            yield
    else:
        with mask_keys(backbone, hidden):
            yield


def after_position(backbone: nn.Module) -> nn.Module | None:
    """The module that the tokens pass right after the position embedding, where a tower has one."""
    tower = getattr(backbone, 'visual', backbone)
    return getattr(tower, 'patch_dropout', getattr(tower, 'drop_after_pos', None))
