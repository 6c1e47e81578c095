"""The classifier, with one training step."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from mmengine.dist import get_world_size
from mmpretrain.models.classifiers import ImageClassifier
from mmpretrain.registry import MODELS
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn

from ..counterfactual import AttentionRecord, record_attention
from ..errors import ConfigError, blame
from ..ranges import OpenShare
from ..renamed import refuse_old_names, rename_weights
from .class_embeddings.build import build_class_weights
from .head import CLIPDistillHead, check_head, read_labels
from .inference.gate import Gate
from .inference.relevance_crop import check_crop_scale, predict_with_crop
from .inference.transfer import ZeroShotTransfer
from .losses import Step, add_losses, check_teacher, find_terms
from .losses.base import find_layout
from .preprocessor import CAMRefillDataPreprocessor, fill_normalisation
from .teacher import OpenCLIPTeacher
from .towers.adapters import (
    KEYS,
    Adapters,
    add_adapters,
    drops_at_random,
    has_adapters,
    holds_adapters,
    is_adapter,
    read_adapters,
    without_adapters,
)
from .towers.features import build_tower, find_features
from .towers.initial_weights import initialise
from .towers.modes import keep_pretrained_mode, take_class_token


@MODELS.register_module()
class CounterfactualClassifier(ImageClassifier):
    """Fine-tunes a CLIP image tower and its classifier::

        loss = CE(logits(x), y) + the terms of ``losses``

    With ``losses=[dict(type='CounterfactualDistillation')]`` it is the method of CVPR 2023, whose term is
    λ · mean (f(x̃) − f₀(x̃))². Inference (``tensor``, ``predict``) works as in ``ImageClassifier``.

    All pretrained weights (tower, class embeddings, teacher) are in place after construction. So testing zero-shot
    CLIP needs no training step, and errors come early.

    Args:
        backbone (dict): :class:`OpenCLIPBackbone`, or any backbone of mmpretrain; its ``init_cfg`` acts now, before
            the teacher is copied. ``lora=dict(rank=8)`` or ``r_adapter=dict()`` beside its arguments trains adapters in
            place of its weights, see :mod:`mmcfmask.models.towers.adapters`; the neck is frozen then.
        head (dict): :class:`CLIPDistillHead`; ``in_channels`` is filled in.
        neck (dict, optional): As in ``ImageClassifier``. Defaults to a ``GlobalAveragePooling`` for a backbone that
            returns a map.
        teacher (dict, optional): :class:`OpenCLIPTeacher`, for loss terms that compare with the pretrained model.
        losses (list[dict], optional): Loss terms, added to the cross-entropy: modules of
            :mod:`mmcfmask.models.losses`. Defaults to none, which is plain fine-tuning.
        data_preprocessor (dict): :class:`CAMRefillDataPreprocessor`.
        knn_gate (dict, optional): Arguments of :class:`KNNGate`: the zero-shot model predicts for images unlike the
            training images. With ``type='VRF'``, of :class:`VRF`, which mixes the two models. Defaults to None: the
            fine-tuned model predicts for all.
        crop_scale (float, optional): Predict with a relevance crop of this scale, see
            :func:`mmcfmask.models.inference.relevance_crop.predict_with_crop`. Defaults to None: without.
        train_batch_norm (bool): Let the batch norms of the tower normalise by the batch in training, and update their
            statistics; in distributed training on GPUs, by the batches of all processes. Defaults to False: by the
            pretrained statistics, as the teacher does.
        **kwargs: Arguments of ``ImageClassifier``, except ``pretrained`` and ``init_cfg``, which would act after the
            teacher was copied.

    Raises:
        ConfigError: A teacher that no term uses, a term that lacks something, the wrong number of class embeddings, an
            image normalisation that the weights were not trained with, …
    """

    backbone: nn.Module
    data_preprocessor: CAMRefillDataPreprocessor
    head: CLIPDistillHead
    losses: nn.ModuleList
    teacher: OpenCLIPTeacher | None
    knn_gate: Gate | None
    transfer: ZeroShotTransfer | None  # of the data set that is tested, if it has classes of its own

    def __init__(
        self,
        backbone: dict,
        head: dict,
        neck: dict | None = None,
        teacher: dict | None = None,
        data_preprocessor: dict | None = None,
        losses: list[dict] | None = None,
        knn_gate: dict | None = None,
        crop_scale: OpenShare | None = None,
        train_batch_norm: bool = False,
        **kwargs: Any,
    ) -> None:
        refuse_old_names('model', type(self), kwargs)
        for key in {'pretrained', 'init_cfg'} & kwargs.keys():
            if kwargs[key] is not None:
                raise ConfigError(
                    f'CounterfactualClassifier got {key}={kwargs[key]!r}, which mmengine would load after the teacher '
                    'was copied from the student: use model.backbone.pretrained or model.backbone.init_cfg'
                )
        check_head(head)
        adapters = None
        if isinstance(backbone, dict):
            adapters, backbone = read_adapters(backbone), without_adapters(backbone)
        tower = build_tower(backbone)
        pool, width = find_features(tower, MODELS.build(neck) if isinstance(neck, dict) else neck)
        if isinstance(head, dict):
            head = {'in_channels': width, **head}
        options = fill_normalisation(data_preprocessor or {}, tower)
        data_preprocessor = {'type': 'CAMRefillDataPreprocessor', **options}
        super().__init__(tower, neck=pool, head=head, data_preprocessor=data_preprocessor, **kwargs)
        if self.head.in_channels != width:
            raise ConfigError(
                f'model.head.in_channels={self.head.in_channels}, but the image features have width {width}: leave '
                'in_channels out'
            )
        if not isinstance(self.data_preprocessor, CAMRefillDataPreprocessor):
            raise ConfigError(
                'CounterfactualClassifier needs data_preprocessor.type="CAMRefillDataPreprocessor", but got '
                f'{data_preprocessor["type"]!r}'
            )
        self.data_preprocessor.check_normalisation(self.backbone)
        if crop_scale is not None:
            check_crop_scale(crop_scale)
            find_layout(self.backbone)
        self.crop_scale = crop_scale
        self.train_batch_norm = train_batch_norm
        self.losses = nn.ModuleList()
        self._set_frozen(teacher=None, knn_gate=None, transfer=None)
        self._load_pretrained()
        if knn_gate is not None:
            gate = MODELS.build({'type': 'KNNGate', **knn_gate})
            gate.setup(self)
            self._set_frozen(knn_gate=gate)
        if adapters is not None:
            self._add_adapters(adapters)
        if teacher is not None:
            frozen = MODELS.build(teacher) if isinstance(teacher, dict) else teacher
            frozen.setup(self.backbone, self.neck, self.head)
            self._set_frozen(teacher=frozen)
        self._set_up_losses(losses or [])
        if train_batch_norm and get_world_size() > 1 and torch.cuda.is_available():
            self.backbone = convert_sync_batchnorm(self.backbone)  # timm's, which keeps activations of its batch norms
        self.train()

    def _load_pretrained(self) -> None:
        """Put the pretrained weights of the tower and the class embeddings of the head in place."""
        for part in 'backbone', 'neck':
            initialise(getattr(self, part), f'model.{part}')
        scale = getattr(self.backbone, 'logit_scale', 100.0)
        self.head.start_from(partial(build_class_weights, classifier=self), scale)

    def _add_adapters(self, options: Adapters) -> None:
        with blame(f'model.backbone.{options.key}'):
            add_adapters(self.backbone, options)
        if self.neck is not None:
            self.neck.requires_grad_(False)

    def _set_up_losses(self, losses: list[dict]) -> None:
        find_terms(losses)  # an error with the place of what is no loss term
        terms = [MODELS.build(term) for term in losses]
        check_teacher(map(type, terms), self.teacher is not None)
        for term in terms:
            term.setup(self)
            self.losses.append(term)
            if term.deterministic and drops_at_random(self.backbone):
                raise ConfigError(
                    f'{type(term).__name__} compares passes that may differ by what was learned alone, but '
                    'model.backbone.r_adapter drops adapters at random: set its drop=0'
                )
        if self.teacher is not None:
            reads = any(term.reads_teacher_weights for term in self.losses)
            self.teacher.exact = reads or has_adapters(self.backbone)  # then the student reads them too

    def _set_frozen(self, **modules: nn.Module | None) -> None:
        # Not registered as sub-modules, so not in parameters(), state_dict(), EMA or DDP.
        for name, module in modules.items():
            object.__setattr__(self, name, module)

    def _apply(self, fn: Callable, *args: Any, **kwargs: Any) -> nn.Module:
        for module in (self.teacher, self.knn_gate, self.transfer):
            if module is not None:
                module._apply(fn, *args, **kwargs)  # follows .to(), .cuda(), .half()
        return super()._apply(fn, *args, **kwargs)

    def train(self, mode: bool = True) -> CounterfactualClassifier:
        super().train(mode)
        keep_pretrained_mode(
            self.backbone, self.train_batch_norm, keep_units=any(term.deterministic for term in self.losses)
        )
        if not mode:
            self._finish()
        return self

    def extract_feat(self, inputs: Tensor, stage: str = 'neck') -> tuple:
        """As ``ImageClassifier.extract_feat``; of a distilled tower, the class tokens."""
        return take_class_token(super().extract_feat(inputs, stage))

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As ``nn.Module.state_dict``; with adapters, without the frozen weights that they belong to."""
        self._finish()
        state = super().state_dict(*args, **kwargs)
        for name in self._frozen_weights(kwargs.get('prefix', '')):
            del state[name]
        return state

    def _frozen_weights(self, prefix: str) -> dict[str, Tensor]:
        """The weights that a model with adapters never changes; none without adapters."""
        if not has_adapters(self.backbone):
            return {}
        parts = dict(backbone=self.backbone, neck=self.neck)
        return {
            f'{prefix}{part}.{name}': weight
            for part, module in parts.items()
            if module is not None
            for name, weight in module.named_parameters()
            if not is_adapter(name)
        }

    def _finish(self) -> None:
        for term in self.losses:
            term.finish(self)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any, **kwargs: Any) -> None:
        renamed = rename_weights(state_dict, prefix)
        if not len(self.losses):  # a test ignores the weights of loss terms, without a warning
            renamed = {name: value for name, value in renamed.items() if not name.startswith(f'{prefix}losses.')}
        renamed = self._with_frozen_weights(renamed, prefix)
        if renamed.keys() != state_dict.keys():
            state_dict.clear()
            state_dict.update(renamed)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _with_frozen_weights(self, state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
        """A state dict of adapters with the frozen weights, which the model has; others as they are.

        Raises:
            ConfigError: Adapters of other pretrained weights, or for a model without any, or weights without adapters.
        """
        frozen, adapted = self._frozen_weights(prefix), holds_adapters(state)
        if adapted and not frozen:
            raise ConfigError(f'these weights are adapters, but the model has none: set {KEYS} as in their training')
        if frozen.keys() & state.keys():
            raise ConfigError(
                f'these are weights of a whole tower, but the model has adapters: leave out {KEYS}, or '
                'start from them by model.backbone.pretrained'
            )
        base = state.get(f'{prefix}backbone.adapter_base')
        if frozen and base is not None and base.item() != self.backbone.adapter_base.item():
            raise ConfigError(
                'these adapters belong to other pretrained weights than those of model.backbone (pretrained or '
                'init_cfg): name those of their training'
            )
        return {**state, **frozen}

    def loss(self, inputs: Tensor, data_samples: list) -> dict[str, Tensor]:
        """``loss_cls`` and the losses of all terms.

        Args:
            inputs (Tensor): (B, 3, H, W), normalised.
            data_samples (list[DataSample]): With ``gt_label``.
        """
        with self._attention_for_terms(inputs) as attention:
            feats = self.extract_feat(inputs)
            logits = self.head(feats)
        labels = read_labels(data_samples)
        losses = self.head.loss_by_logits(logits, data_samples)
        step = Step(self, inputs, labels, feats[-1], logits, attention, data_samples)
        for term in self.losses:
            add_losses(losses, term, step)
        return losses

    def _attention_for_terms(self, inputs: Tensor) -> AbstractContextManager[AttentionRecord]:
        """Inside the context, attention is recorded if a term needs relevance."""
        if any(term.needs_relevance(self) for term in self.losses) and not self.data_preprocessor.oracle:
            return record_attention(self.backbone, inputs)
        return nullcontext(AttentionRecord())

    def answer_with(self, transfer: ZeroShotTransfer | None) -> None:
        """Predict the classes of another data set from now on; None: those of the head."""
        self._set_frozen(transfer=transfer)

    def predict(self, inputs: Tensor, data_samples: list | None = None, **kwargs: Any) -> list:
        """As ``ImageClassifier.predict``, with a relevance crop if ``crop_scale`` is set, and with the k-NN gate or VRF
        if there is one."""
        if self.transfer is not None:
            return self.transfer.predict(self, inputs, data_samples)
        if self.knn_gate is not None:
            return self.knn_gate.predict(self, inputs, data_samples)
        if self.crop_scale is None:
            return super().predict(inputs, data_samples, **kwargs)
        return self.head._get_predictions(self.scores(inputs), data_samples)

    def scores(self, inputs: Tensor) -> Tensor:
        """Logits (B, C), with a relevance crop if ``crop_scale`` is set."""
        if self.crop_scale is None:
            return self(inputs)
        return predict_with_crop(self.backbone, self, inputs, self.crop_scale, **self.data_preprocessor.relevance)
