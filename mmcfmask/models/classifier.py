"""One training step of the method."""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Callable

import torch
from mmpretrain.models.classifiers import ImageClassifier
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from ..counterfactual import attention_relevance, drop_tokens, mask_keys, patch_grid, record_attention
from .auxiliary import Step
from .class_weights import build_class_weights
from .preprocessor import CAMRefillDataPreprocessor, Counterfactual
from .teacher import OpenCLIPTeacher


@MODELS.register_module()
class CounterfactualClassifier(ImageClassifier):
    """Fine-tunes an image tower while holding it to its frozen start on counterfactual images (CVPR 2023)::

        loss = CE(logits(x), y) + λ · mean (f(x̃) − f0(x̃))²

    where x̃ is x with patches cut out by its class activation map and refilled from other images of the batch. The forward pass that
    gives the logits also gives the map. Inference (``tensor``, ``predict``) is that of ``ImageClassifier``.

    All pre-trained weights (tower, class embeddings, teacher) are in place after construction, so that testing CLIP as it comes needs
    no training step and errors come early.

    Args:
        backbone (dict): :class:`OpenCLIPBackbone`, or mmpretrain's ``VisionTransformer`` with a ``CLIPProjection`` neck.
        head (dict): :class:`CLIPDistillHead`; ``in_channels`` is filled in.
        neck (dict, optional): As in ``ImageClassifier``.
        teacher (dict, optional): :class:`OpenCLIPTeacher`. None: plain fine-tuning, no counterfactuals.
        auxiliary (list[dict], optional): Other methods' losses, added to those above: modules of :mod:`mmcfmask.models.auxiliary`.
        data_preprocessor (dict): :class:`CAMRefillDataPreprocessor`.
        **kwargs: Those of ``ImageClassifier``.

    Raises:
        ValueError: Teacher and student of different feature width, wrong number of class embeddings, …
    """

    def __init__(self,
                 backbone: dict,
                 head: dict,
                 neck: dict | None = None,
                 teacher: dict | None = None,
                 data_preprocessor: dict | None = None,
                 auxiliary: list[dict] | None = None,
                 **kwargs) -> None:
        backbone = MODELS.build(backbone) if isinstance(backbone, dict) else backbone
        neck = MODELS.build(neck) if isinstance(neck, dict) else neck
        width = backbone.embed_dims if neck is None else neck.out_channels
        if isinstance(head, dict):
            head = {'in_channels': width, **head}
        data_preprocessor = {'type': 'CAMRefillDataPreprocessor', **(data_preprocessor or {})}
        super().__init__(backbone, neck=neck, head=head, data_preprocessor=data_preprocessor, **kwargs)
        if not isinstance(self.data_preprocessor, CAMRefillDataPreprocessor):
            raise ValueError('CounterfactualClassifier needs data_preprocessor.type="CAMRefillDataPreprocessor", but got '
                             f'{data_preprocessor["type"]!r}')
        self._set_teacher(None)
        self.auxiliary = nn.ModuleList()
        self._load_start(teacher)
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
                self.head.init_class_weights(start[:, :-1], 1., bias=start[:, -1])
            else:
                self.head.init_class_weights(start, getattr(self.backbone, 'logit_scale', 100.))
        if teacher is not None:
            teacher = MODELS.build(teacher) if isinstance(teacher, dict) else teacher
            teacher.start_from(self.backbone, self.neck, self.head)
            width = self.head.in_channels if teacher.neck is not None else teacher.backbone.embed_dims
            if width != self.head.in_channels:
                raise ValueError(f'the teacher {teacher.model_name!r} gives features of width {width}, '
                                 f'but the student gives width {self.head.in_channels}: choose towers of the same embedding width')
            self._set_teacher(teacher)

    def _set_teacher(self, teacher: OpenCLIPTeacher | None) -> None:
        # Past nn.Module's registration: not a sub-module, so not in parameters(), state_dict(), EMA or DDP.
        object.__setattr__(self, 'teacher', teacher)

    def _apply(self, fn: Callable, *args, **kwargs) -> nn.Module:
        if self.teacher is not None:
            self.teacher._apply(fn, *args, **kwargs)  # follows .to(), .cuda(), .half()
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
            losses.update(module(step))

        if not distilled:
            return losses
        if not masked:
            return {**losses, **self.head.distill_loss(step.features, step.teacher_features, self.teacher)}
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
        return {**losses, **self.head.distill_loss(student, teacher, self.teacher)}


@contextmanager
def hide_patches(backbone: nn.Module, changed: Counterfactual) -> Iterator[None]:
    """Inside the context ``backbone`` does not see the patches that were taken out and not replaced."""
    if not changed.hidden:
        yield
        return
    hidden = changed.mask.flatten(1)
    tower = getattr(backbone, 'visual', backbone)
    after_position = getattr(tower, 'patch_dropout', getattr(tower, 'drop_after_pos', None))
    if changed.kept is not None and after_position is not None:
        with drop_tokens(after_position, hidden, changed.kept):
            yield
    else:
        with mask_keys(backbone, hidden):
            yield
