"""Terms on images whose context is another image's and whose object stays: the label, or the features, must stay too.
Ours, not published."""

from __future__ import annotations

import torch.nn.functional as F
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from ...errors import ConfigError, blame
from ...ranges import NonNegative
from ..maker import CounterfactualMaker, check_names
from .base import CounterfactualImages, LossTerm, Step, check_tower
from .distillation import feature_distillation


def counterfactual_cross_entropy(logits: Tensor, labels: Tensor, temperature: float = 1.0) -> Tensor:
    """Mean over the batch of −log softmax(l(x̃) / τ)[y], in float32.

    Args:
        logits (Tensor): (B, C) of the counterfactual images.
        labels (Tensor): (B,) int64, of the images that they were made of.
        temperature (float): τ > 0.
    """
    return F.cross_entropy(logits.float() / temperature, labels)


def context_invariance(first: Tensor, second: Tensor) -> Tensor:
    """Mean over the batch of 1 − cos(f(x̃₁), f(x̃₂)), in float32.

    Args:
        first, second (Tensor): (B, D) features of the same objects in two contexts.
    """
    return 1 - F.cosine_similarity(first.float(), second.float(), dim=1).mean()


class ContextTerm(LossTerm):
    """A term on counterfactual images whose objects stay.

    Args:
        weight (float): Factor of the loss.
        counterfactual (dict, optional): Options of a :class:`mmcfmask.models.maker.CounterfactualMaker` (``mask``,
            ``fill``, ``value``, ``mask_share``, ``views``, ``color_mixing``, ``donors``), for images of the term's own.
            Defaults to None: the images of the data preprocessor. Terms with equal options share their images.

    Raises:
        ConfigError: A negative weight, or wrong options.
    """

    needs_teacher = False
    reads_teacher_weights = False

    def __init__(self, weight: NonNegative = 1.0, counterfactual: dict | None = None) -> None:
        super().__init__(weight)
        self.maker: CounterfactualMaker | None = None
        if counterfactual is not None:
            where = f'{type(self).__name__}.counterfactual'
            check_names(where, counterfactual, CounterfactualMaker, "counterfactual=dict(mask='context')")
            with blame(where, (ValueError, TypeError)):
                self.maker = CounterfactualMaker(**counterfactual)

    def setup(self, classifier: nn.Module) -> None:
        super().setup(classifier)
        maker = self.maker or classifier.data_preprocessor
        self.check_images(maker)
        check_tower(classifier, maker)

    def check_images(self, maker: CounterfactualMaker) -> None:
        """Raise a ConfigError unless the term can use the images of ``maker``: its own, or the data preprocessor."""
        if maker.mask == 'object':
            where = 'model.data_preprocessor' if self.maker is None else 'its counterfactual'
            raise ConfigError(
                f"{type(self).__name__} needs images that keep their object, but {where} has mask='object', which "
                "takes it out: give it counterfactual=dict(mask='context', …)"
            )

    def needs_relevance(self, classifier: nn.Module) -> bool:
        return (self.maker or classifier.data_preprocessor).needs_relevance

    def images(self, step: Step) -> CounterfactualImages:
        """The counterfactual images of a step that the term trains on."""
        return step.images_of(self.maker or step.classifier.data_preprocessor)


@MODELS.register_module()
class CounterfactualCrossEntropy(ContextTerm):
    """``loss_counterfactual`` = weight · :func:`counterfactual_cross_entropy`, with the temperature of the ordinary
    cross-entropy (``head.cls_temperature``).

    Args:
        **kwargs: Arguments of :class:`ContextTerm`.
    """

    def forward(self, step: Step) -> dict[str, Tensor]:
        head = step.classifier.head
        logits = head((self.images(step).features,))
        loss = counterfactual_cross_entropy(logits, step.labels, head.cls_temperature)
        return dict(loss_counterfactual=self.weight * loss)


@MODELS.register_module()
class ContextInvariance(ContextTerm):
    """``loss_invariance`` = weight · :func:`context_invariance`. Gradients flow through both features.

    Args:
        weight (float): Factor of the loss.
        counterfactual (dict, optional): As in :class:`ContextTerm`.
        target (str): What f(x̃₁) is compared with. 'context': f(x̃₂), of the same objects and masks with other donors,
            which needs a fill; at least 3 images per process give an image two donors. 'clean': f(x).

    Raises:
        ConfigError: Unknown target, or options that a :class:`ContextTerm` does not take.
    """

    def __init__(self, weight: NonNegative = 1.0, counterfactual: dict | None = None, target: str = 'context') -> None:
        super().__init__(weight, counterfactual)
        if target not in ('context', 'clean'):
            raise ConfigError(f'ContextInvariance: unknown target={target!r}: choose "context" or "clean"')
        self.target = target

    def check_images(self, maker: CounterfactualMaker) -> None:
        super().check_images(maker)
        if self.target == 'context':
            check_donors(self, maker, ', or target="clean"')

    def forward(self, step: Step) -> dict[str, Tensor]:
        images = self.images(step)
        other = step.features if self.target == 'clean' else images.features_again
        return dict(loss_invariance=self.weight * context_invariance(images.features, other))


@MODELS.register_module()
class ContextDistillation(ContextTerm):
    """``loss_context_distill`` = weight · mean (f(x̃₁) − f₀(x̃₂))²: student and teacher see the same object in two
    contexts.

    The donors are drawn at random, so the features with the smallest loss are the teacher's mean over the contexts,
    E_c[f₀(object, c)] (Pearl, "Causality", equation 3.19: adjustment for the context). What the teacher reads from a
    context cancels out; what it reads from the object stays. Where nothing is taken out it is
    :class:`.distillation.Distillation`.

    Args:
        weight (float): Factor of the loss, λ.
        counterfactual (dict, optional): As in :class:`ContextTerm`; it needs a fill, and at least 3 images per process
            give an image two donors.

    Raises:
        ConfigError: Options that a :class:`ContextTerm` does not take, or no fill.
    """

    needs_teacher = True

    def __init__(self, weight: NonNegative = 30.0, counterfactual: dict | None = None) -> None:
        super().__init__(weight, counterfactual)

    def check_images(self, maker: CounterfactualMaker) -> None:
        super().check_images(maker)
        check_donors(self, maker)

    def forward(self, step: Step) -> dict[str, Tensor]:
        images = self.images(step)
        loss = feature_distillation(images.features, images.teacher_features_again)
        return dict(loss_context_distill=self.weight * loss)


def check_donors(term: ContextTerm, maker: CounterfactualMaker, remedy: str = '') -> None:
    """Raise a ConfigError if ``term`` compares two donors' contexts but ``maker`` has no donors; ``remedy`` ends it."""
    if maker.fill == 'none':
        raise ConfigError(
            f"{type(term).__name__} compares two donors' contexts, but fill='none' has no donors: use "
            f'fill="single" or "multi"{remedy}'
        )
