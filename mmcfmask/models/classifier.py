"""One training step of the method."""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Callable

import torch
from mmpretrain.models.classifiers import ImageClassifier
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from ..counterfactual import attention_relevance, drop_tokens, mask_keys, patch_grid, record_attention
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
        self._load_start(teacher)

    def _load_start(self, teacher: dict | None) -> None:
        """Put the pre-trained weights, the class embeddings and the teacher in place."""
        for part in (self.backbone, self.neck):  # an init_cfg, where there is one, acts now and not at train()
            if part is not None and getattr(part, 'init_cfg', None):
                part.init_weights()
        if self.head.class_weights is not None:
            embeddings = build_class_weights(self.head.class_weights, self)
            self.head.init_class_weights(embeddings, getattr(self.backbone, 'logit_scale', 100.))
        if teacher is not None:
            teacher = MODELS.build(teacher) if isinstance(teacher, dict) else teacher
            teacher.start_from(self.backbone, self.neck, self.head if self.head.distill == 'logits' else None)
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

    def loss(self, inputs: Tensor, data_samples: list) -> dict[str, Tensor]:
        """``loss_cls`` and, with a teacher, ``loss_distill``.

        Args:
            inputs (Tensor): (B, 3, H, W), normalised.
            data_samples (list[DataSample]): With ``gt_label``.
        """
        if self.teacher is None:
            return self.head.loss(self.extract_feat(inputs), data_samples)
        # Auxiliary losses may compare the weights themselves with the teacher's.
        self.teacher.exact = bool(len(getattr(self, 'auxiliary', ())))

        masked = self.data_preprocessor.mask is not None
        listening = masked and self.data_preprocessor.needs_relevance
        with record_attention(self.backbone) if listening else nullcontext() as calls:
            feats = self.extract_feat(inputs)
            logits = self.head(feats)
        losses = self.head.loss_by_logits(logits, data_samples)

        if not masked:
            return {**losses, **self.head.distill_loss(feats[-1], self.teacher(inputs), self.teacher)}
        grid = patch_grid(self.backbone, inputs)
        relevance = None
        if listening:
            labels = torch.cat([sample.gt_label for sample in data_samples])
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
