"""The cosine classifier, which also compares the student with the teacher."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from annotated_types import Ge, Le
from mmpretrain.models.heads import ClsHead
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from ..errors import ConfigError
from ..ranges import Count, NonNegative, Positive
from ..renamed import refuse_old_names
from .losses.distillation import feature_distillation, knowledge_distillation


@MODELS.register_module()
class CLIPDistillHead(ClsHead):
    """logits = W · z/‖z‖ + b, with W initialised from class embeddings, and distillation from a frozen teacher.

    W is initialised as exp(logit_scale) × class embeddings and b as 0; both are trained. Logits are float32 under
    autocast too: at a scale of 100, bfloat16 would round them by half a unit.

    Args:
        num_classes (int): C.
        in_channels (int, optional): D. Taken from the backbone by :class:`CounterfactualClassifier`.
        class_weights (dict, optional): Where the class embeddings come from: ``dict(type='text', classnames=…,
            templates=…)``, ``dict(type='file', path=…)``, ``dict(type='prototype', dataset=…, per_class=N)`` or
            ``dict(type='linear_probe', dataset=…)``; see
            :func:`mmcfmask.models.class_embeddings.build.build_class_weights`. None: W is random, for a
            checkpoint to fill.
        distill (str): What :class:`mmcfmask.models.losses.Distillation` and ``CounterfactualDistillation`` compare:
            'feature' (mean squared error of features) or 'logits' (knowledge distillation).
        distill_weight (float): λ of the distillation loss. Published: 30 for both.
        temperature (float): T of 'logits'.
        cls_weight (float): Weight of the cross-entropy. 0 leaves it out; the classifier then keeps its initial
            weights, unless distill='logits' trains it.
        cls_temperature (float): Divides the logits in the cross-entropy, and nowhere else. At CLIP's logit scale, a
            zero-shot classifier that is right on the training images has a cross-entropy of almost 0 and learns only
            from its errors. A temperature above 1 (Agarwala et al., "Temperature check", arXiv 2010.07344) lets all
            images count.
        init_cfg (dict, optional): mmengine's.

    Raises:
        ConfigError: Unknown ``distill``, negative weights, non-positive temperature.
    """

    def __init__(
        self,
        num_classes: Annotated[int, Ge(1), Le(10**6)],
        in_channels: Count | None = None,
        class_weights: dict | None = None,
        distill: str = 'feature',
        distill_weight: NonNegative = 30.0,
        temperature: Positive = 10.0,
        cls_weight: NonNegative = 1.0,
        cls_temperature: Positive = 1.0,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(loss=dict(type='CrossEntropyLoss', loss_weight=cls_weight), init_cfg=init_cfg)
        refuse_old_names('model.head', type(self), dict(distill=distill))
        if distill not in ('feature', 'logits'):
            raise ConfigError(f'unknown distill={distill!r}: choose "feature" or "logits"')
        if temperature <= 0 or cls_temperature <= 0 or distill_weight < 0 or cls_weight < 0:
            raise ConfigError(
                f'temperatures must be positive and loss weights not negative, but temperature={temperature}, '
                f'cls_temperature={cls_temperature}, distill_weight={distill_weight}, cls_weight={cls_weight}'
            )
        if in_channels is None:
            raise ConfigError('CLIPDistillHead needs in_channels when it is built outside CounterfactualClassifier')
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.class_weights = class_weights
        self.distill = distill
        self.distill_weight = distill_weight
        self.temperature = temperature
        self.cls_weight = cls_weight
        self.cls_temperature = cls_temperature
        self.fc = nn.Linear(in_channels, num_classes)
        self.fc.requires_grad_(cls_weight > 0 or distill == 'logits')

    def _class_weights_type(self) -> str:
        return f'type={(self.class_weights or {}).get("type")!r}'

    def start_from(self, build: Callable[[dict], Tensor], logit_scale: float) -> None:
        """Put the class embeddings of ``class_weights`` in place, if there are any.

        Args:
            build (Callable): A config of class embeddings to (C, D), see
                :func:`mmcfmask.models.class_embeddings.build.build_class_weights`.
            logit_scale (float): As of :meth:`init_class_weights`.
        """
        if self.class_weights is None:
            return
        weights = build(self.class_weights)
        if self.class_weights['type'] == 'linear_probe':
            self.init_class_weights(weights[:, :-1], 1.0, bias=weights[:, -1])
        else:
            self.init_class_weights(weights, logit_scale)

    def init_class_weights(self, embeddings: Tensor, logit_scale: float, bias: Tensor | None = None) -> None:
        """Initialise the classifier as zero-shot: W = logit_scale × embeddings and b = 0, or ``bias`` (C,) if given.

        Args:
            embeddings (Tensor): (C, D), rows L2-normalised.
            logit_scale (float): exp of CLIP's parameter, 100 for OpenAI's models.

        Raises:
            ConfigError: Another number of classes or feature width than the head's.
        """
        if embeddings.shape[0] != self.num_classes:
            raise ConfigError(
                f'model.head.num_classes={self.num_classes}, but model.head.class_weights '
                f'({self._class_weights_type()}) gives {embeddings.shape[0]} classes: set '
                f'model.head.num_classes={embeddings.shape[0]}, or correct the classes of class_weights'
            )
        if embeddings.shape[1] != self.in_channels:
            raise ConfigError(
                f'model.head.class_weights ({self._class_weights_type()}) gives embeddings of width '
                f'{embeddings.shape[1]}, but the image features have width {self.in_channels}: use class embeddings of '
                'this image tower'
            )
        with torch.no_grad():
            self.fc.weight.copy_(logit_scale * embeddings)
            self.fc.bias.copy_(torch.zeros_like(self.fc.bias) if bias is None else bias)

    def forward(self, feats: tuple[Tensor, ...]) -> Tensor:
        """Logits (B, C), float32, of a tuple whose last entry is features (B, D)."""
        features = self.pre_logits(feats)
        with torch.autocast(features.device.type, enabled=False):
            return self.fc(F.normalize(features.to(self.fc.weight.dtype), dim=-1))

    def _get_predictions(self, cls_score: Tensor, data_samples: list | None) -> list:
        """mmpretrain's ``pred_score`` and ``pred_label``, and the logits themselves as ``pred_logits``, float32 (C,): a
        softmax over all classes cannot be undone once it has underflowed, and on a set of fewer classes it is the wrong
        one."""
        data_samples = super()._get_predictions(cls_score, data_samples)
        for sample, logits in zip(data_samples, cls_score.detach().float()):
            sample.pred_logits = logits
        return data_samples

    def loss(self, feats: tuple[Tensor, ...], data_samples: list, **kwargs: Any) -> dict[str, Tensor]:
        """Cross-entropy alone, as ``dict(loss_cls=…)``: what mmpretrain's own classifiers ask a head for."""
        return self.loss_by_logits(self(feats), data_samples, **kwargs)

    def loss_by_logits(self, logits: Tensor, data_samples: list, **kwargs: Any) -> dict[str, Tensor]:
        """Cross-entropy of logits (B, C) / ``cls_temperature``, as ``dict(loss_cls=…)``; empty if ``cls_weight=0``."""
        if self.cls_weight == 0:
            return {}
        losses = self._get_loss(logits / self.cls_temperature, data_samples, **kwargs)
        losses['loss_cls'] = losses.pop('loss')
        return losses

    def distill_loss(self, student: Tensor, teacher_features: Tensor, teacher: nn.Module) -> dict[str, Tensor]:
        """λ × distillation from the teacher, as ``dict(loss_distill=…)``.

        Args:
            student (Tensor): (B, D) features of the student.
            teacher_features (Tensor): (B, D) features of the teacher on the same images.
            teacher (OpenCLIPTeacher): Gives the zero-shot logits for ``distill='logits'``.
        """
        if self.distill == 'feature':
            loss = feature_distillation(student, teacher_features)
        else:
            loss = knowledge_distillation(self((student,)), teacher.logits(teacher_features), self.temperature)
        return dict(loss_distill=self.distill_weight * loss)


def check_head(head: dict | nn.Module | None) -> None:
    """Raise a ConfigError unless this is, or names, a :class:`CLIPDistillHead`."""
    kind: Any = head.get('type') if isinstance(head, Mapping) else type(head)
    found = MODELS.get(kind) if isinstance(kind, str) else kind
    if not (isinstance(found, type) and issubclass(found, CLIPDistillHead)):
        name = 'None' if head is None else repr(kind if isinstance(kind, str) else getattr(kind, '__name__', kind))
        raise ConfigError(
            f"model.head.type={name}: a CounterfactualClassifier needs 'CLIPDistillHead', with one class per image; "
            'heads of other kinds, without classes or with several labels, are not supported'
        )


def read_labels(data_samples: list) -> Tensor:
    """The class of every image, (B,) int64.

    Raises:
        ConfigError: Not one class per image.
    """
    for sample in data_samples:
        scored = 'gt_score' in sample
        if scored or 'gt_label' not in sample or sample.gt_label.numel() != 1:
            kind = (
                'a soft label (gt_score)' if scored else f'the labels {sample.get("gt_label", torch.empty(0)).tolist()}'
            )
            raise ConfigError(
                f'{sample.get("img_path", "a training image")} has {kind}, but relevance and class embeddings need one '
                'class per image: soft and multiple labels are not supported'
            )
    return torch.cat([sample.gt_label for sample in data_samples])
