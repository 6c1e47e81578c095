"""A term of the loss, and what a training step offers it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, count
from typing import TYPE_CHECKING, Any
from weakref import proxy

import torch
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from ...counterfactual import (
    AttentionRecord,
    TowerLayout,
    after_position,
    attention_relevance,
    check_can_hide,
    hide_patches,
    object_coverage,
    patch_grid,
    tower_layout,
)
from ...errors import ConfigError
from ..maker import Counterfactual, CounterfactualMaker
from ..towers.features import known_image_size

if TYPE_CHECKING:  # the classifier imports this module
    from ..classifier import CounterfactualClassifier
    from ..teacher import OpenCLIPTeacher


@dataclass
class Step:
    """What a loss term can ask a training step for. The cached properties are computed when a term first asks.

    Attributes:
        classifier (CounterfactualClassifier): The model, with its ``teacher`` and ``data_preprocessor``.
        images (Tensor): x, (B, 3, H, W), normalised.
        labels (Tensor): y, (B,) int64.
        features (Tensor): f(x), (B, D), before L2 normalisation.
        logits (Tensor): (B, C) of the images.
        attention (AttentionRecord): Recorded while f(x) was computed, if a term needs relevance.
        data_samples (list[DataSample]): Of the images.
    """

    classifier: CounterfactualClassifier
    images: Tensor
    labels: Tensor
    features: Tensor
    logits: Tensor
    attention: AttentionRecord = field(default_factory=AttentionRecord)
    data_samples: list = field(default_factory=list)

    @property
    def teacher(self) -> OpenCLIPTeacher:
        """The frozen teacher."""
        if self.classifier.teacher is None:
            raise ConfigError(
                'a term of model.losses asks for features of the teacher, but there is none: set needs_teacher = True '
                "in its class, and model.teacher=dict(type='OpenCLIPTeacher')"
            )
        return self.classifier.teacher

    @cached_property
    def teacher_features(self) -> Tensor:
        """f₀(x), (B, D), of the frozen teacher."""
        return self.teacher(self.images)

    @cached_property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of what can be masked."""
        return patch_grid(self.classifier.backbone, self.images)

    @cached_property
    def relevance(self) -> Tensor:
        """Relevance of every patch to the label, (B, h, w), by the options of the data preprocessor; see
        :func:`mmcfmask.counterfactual.attention_relevance`. With its ``oracle``, the coverage by the true object."""
        if self.classifier.data_preprocessor.oracle:
            return object_coverage(self.objects, self.grid)
        if not self.attention and not any(term.needs_relevance(self.classifier) for term in self.classifier.losses):
            raise ConfigError(
                'a term of model.losses asks for step.relevance, but no attention was recorded: its method '
                'needs_relevance(classifier) must return True'
            )
        score = self.logits.gather(1, self.labels[:, None]).sum()
        options = self.classifier.data_preprocessor.relevance
        return attention_relevance(score, self.attention, retain_graph=True, **options)

    @property
    def objects(self) -> Tensor:
        """The true objects, (B, H, W) bool."""
        masks = [sample.get('gt_mask') for sample in self.data_samples]
        size = tuple(self.images.shape[2:])
        if not masks or any(mask is None or tuple(mask.shape) != size for mask in masks):
            raise ConfigError(
                f'model.data_preprocessor.oracle needs the object of every training image, gt_mask {size}: a data set '
                "that knows it (ShapesDataset) and a pipeline that ends in dict(type='PackInputs', "
                "algorithm_keys=('gt_mask',)) without changing the size"
            )
        return torch.stack([torch.as_tensor(mask, device=self.images.device) for mask in masks])

    def images_of(self, maker: CounterfactualMaker) -> CounterfactualImages:
        """The counterfactual images by the options of ``maker``, made once for all terms with equal options."""
        found = next((images for images in self._images if images.maker.options == maker.options), None)
        if found is None:
            # A cycle of references would keep the activations until Python looks for cycles.
            found = CounterfactualImages(proxy(self), maker)
            self._images.append(found)
        return found

    @cached_property
    def _images(self) -> list[CounterfactualImages]:
        return []

    @cached_property
    def counterfactual(self) -> Counterfactual:
        """x̃, the counterfactual images, made by the data preprocessor."""
        return self.images_of(self.classifier.data_preprocessor).made

    @cached_property
    def counterfactual_features(self) -> Tensor:
        """f(x̃), (B, D)."""
        return self.images_of(self.classifier.data_preprocessor).features

    @cached_property
    def counterfactual_teacher_features(self) -> Tensor:
        """f₀(x̃), (B, D)."""
        return self.images_of(self.classifier.data_preprocessor).teacher_features


@dataclass
class CounterfactualImages:
    """Counterfactual images of a step by the options of a maker. Like those of the step, the cached properties are
    computed when a term first asks.

    Attributes:
        step (Step): Gives the images, and the relevance map, which all makers share.
        maker (CounterfactualMaker): The options.
    """

    step: Step
    maker: CounterfactualMaker

    @cached_property
    def made(self) -> Counterfactual:
        """x̃."""
        step = self.step
        relevance = step.relevance if self.maker.needs_relevance else None
        if self.maker.donors == 'any':
            return self.maker.counterfactual(step.images, step.grid, relevance)
        return self.maker.counterfactual(step.images, step.grid, relevance, labels=step.labels)

    @cached_property
    def made_again(self) -> Counterfactual:
        """x̃₂, with the same patches taken out as of x̃ and refilled from other donors."""
        return self.maker.refill_again(self.step.images, self.made)

    @cached_property
    def features(self) -> Tensor:
        """f(x̃), (B, D)."""
        return self._features(self.made)

    @cached_property
    def features_again(self) -> Tensor:
        """f(x̃₂), (B, D)."""
        return self._features(self.made_again)

    @cached_property
    def teacher_features(self) -> Tensor:
        """f₀(x̃), (B, D)."""
        with hidden_from(self.step.teacher.backbone, self.made):
            return self.step.teacher(self.made.images)

    @cached_property
    def teacher_features_again(self) -> Tensor:
        """f₀(x̃₂), (B, D)."""
        with hidden_from(self.step.teacher.backbone, self.made_again):
            return self.step.teacher(self.made_again.images)

    def _features(self, made: Counterfactual) -> Tensor:
        classifier = self.step.classifier
        with hidden_from(classifier.backbone, made):
            return classifier.extract_feat(made.images)[-1]


def hidden_from(tower: nn.Module, made: Counterfactual) -> AbstractContextManager:
    """Inside the context ``tower`` does not see patches that were taken out and not refilled."""
    return hide_patches(tower, made.images, made.mask.flatten(1), made.kept) if made.hidden else nullcontext()


class LossTerm(nn.Module):
    """One method's loss, an entry of ``model.losses``.

    Trainable weights of a term are parameters like any other: in the optimizer, in checkpoints, in moving averages.
    What is frozen belongs to the classifier's teacher, which is in none of them, or into buffers with
    ``persistent=False``.

    Args:
        weight (float): Factor of the loss.

    Attributes:
        needs_teacher (bool): The term needs ``model.teacher``.
        any_teacher (bool): The teacher may be another model than the pretrained student.
        reads_teacher_weights (bool): The term reads the weights of the teacher, so that these must stay exact under
            autocast.
        deterministic (bool): The term compares features or maps of several passes, which may differ by what was learned
            alone: dropout, stochastic depth and the dropping of adapters are off in training.
        progress (float): Share of the optimizer's steps that are done, in [0, 1). ``LossTermHook`` sets it, which every
            training by a Runner has; in a loop of your own it stays 0 unless you set it.
    """

    needs_teacher = True
    any_teacher = False
    reads_teacher_weights = True
    deterministic = True
    progress = 0.0

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        if weight < 0:
            raise ConfigError(f'{type(self).__name__}: weight={weight} must not be negative')
        self.weight = weight

    def setup(self, classifier: nn.Module) -> None:
        """Take what is needed from the classifier. Called once, while the classifier holds its pretrained weights.

        Raises:
            ConfigError: The classifier lacks something.
        """
        if self.needs_teacher and not self.any_teacher and not classifier.teacher.is_pretrained_student:
            raise ConfigError(
                f'{type(self).__name__} compares with the pretrained student, but the teacher is another model: '
                'leave out its model_name'
            )

    def needs_relevance(self, classifier: nn.Module) -> bool:
        """Whether :meth:`forward` asks the step for the relevance map, so that attention must be recorded."""
        return False

    def forward(self, step: Step) -> dict[str, Tensor]:
        """Losses by name (``loss_…``)."""
        raise NotImplementedError

    def after_step(self, classifier: nn.Module, done: int, steps: int) -> None:
        """Called after a step of the optimizer, by ``LossTermHook`` or by a loop of your own.

        Args:
            classifier (nn.Module): With its new weights.
            done (int): Number of steps that are done, from 1.
            steps (int): Number of steps of the whole training.
        """

    def finish(self, classifier: nn.Module) -> None:
        """Bring the classifier up to date before it is evaluated or saved, where the term trains something in place of
        a part of it."""


def find_layout(tower: nn.Module) -> TowerLayout | None:
    """The layout of a tower that knows the size of its images; None for others, whose errors come with the first
    images.

    Raises:
        ConfigError: A tower of none of the known kinds, see :func:`mmcfmask.counterfactual.tower_layout`.
    """
    size = known_image_size(tower)
    return None if size is None else tower_layout(tower, next(tower.parameters()).new_empty(1, 3, *size))


def check_tower(classifier: nn.Module, maker: CounterfactualMaker) -> None:
    """Raise a ConfigError unless the tower has patches that ``maker`` can mask, and hide where nothing fills them."""
    layout = find_layout(classifier.backbone)
    if maker.fill != 'none':
        return
    if layout is not None:
        check_can_hide(classifier.backbone, layout)
    can_drop = after_position(classifier.backbone) is not None and (layout is None or layout.can_drop)
    in_attention = maker.needs_relevance or not can_drop
    if in_attention and getattr(classifier.backbone, 'grad_checkpointing', False):
        raise ConfigError(
            'fill="none" hides patches in the attention of the forward pass, but backbone.grad_checkpointing=True '
            'would compute it again without hiding them: use fill="single" or "multi", or grad_checkpointing=False'
        )


def find_terms(losses: Any) -> list[type[LossTerm] | None]:
    """Look up the classes of the terms of ``model.losses``.

    Args:
        losses (list[dict]): The value of ``model.losses``.

    Returns:
        list[type[LossTerm] | None]: A class per term; None for a name that is not registered.

    Raises:
        ConfigError: It is no list, an entry has no type, or its type is no loss term.
    """
    if not isinstance(losses, (list, tuple)):
        raise ConfigError(f'model.losses must be a list, losses=[dict(type=…), …], but is a {type(losses).__name__}')
    classes: list[type[LossTerm] | None] = []
    for index, term in enumerate(losses):
        kind = term.get('type') if isinstance(term, Mapping) else None
        if kind is None:
            raise ConfigError(f'model.losses[{index}] has no type: it must be a dict(type=…, …)')
        found = MODELS.get(kind) if isinstance(kind, str) else kind
        if found is not None and not (isinstance(found, type) and issubclass(found, LossTerm)):
            name = kind if isinstance(kind, str) else getattr(kind, '__name__', kind)
            raise ConfigError(
                f'model.losses[{index}].type={name!r} is no loss term (a class derived from LossTerm): choose one of '
                'mmcfmask.models.losses, or derive your class from mmcfmask.models.LossTerm'
            )
        classes.append(found)
    return classes


def check_teacher(terms: Iterable[type[LossTerm]], teacher: bool) -> None:
    """Raise a ConfigError if a term needs a teacher and there is none, or there is one that no term uses.

    Args:
        terms (Iterable[type[LossTerm]]): The classes of the terms of ``model.losses``.
        teacher (bool): Whether ``model.teacher`` is set.
    """
    users = [term.__name__ for term in terms if term.needs_teacher]
    if users and not teacher:
        raise ConfigError(f"{users[0]} compares with a frozen teacher: set model.teacher=dict(type='OpenCLIPTeacher')")
    if teacher and not users:
        raise ConfigError(
            'no term of model.losses uses model.teacher: for distillation on counterfactual images set '
            "model.losses=[dict(type='CounterfactualDistillation')], on clean images "
            "model.losses=[dict(type='Distillation')]; for plain fine-tuning inherit from a config without a teacher, "
            'such as mmcfmask::baselines/ft_vitb16.py'
        )


def add_losses(losses: dict[str, Tensor], term: nn.Module, step: Step) -> dict[str, Tensor]:
    """Add the losses of a term to ``losses``, in place. A second loss of the same name becomes ``<name>_2``.

    Raises:
        ConfigError: The term returns no dict, or no name with ``loss`` in it: mmengine would train nothing.
    """
    found = term(step)
    if not isinstance(found, dict):
        raise ConfigError(
            f'{type(term).__name__}.forward must return its losses by name, dict(loss_…=…), but returned a '
            f'{type(found).__name__}'
        )
    if found and not any('loss' in name for name in found):  # mmengine adds up these names; others are only logged
        raise ConfigError(
            f'{type(term).__name__}.forward returned {", ".join(map(repr, found))}, which would have no effect: the '
            "name of a loss must contain 'loss', such as 'loss_mine'"
        )
    for name, loss in found.items():
        names = chain([name], (f'{name}_{number}' for number in count(2)))
        losses[next(free for free in names if free not in losses)] = loss
    return losses
