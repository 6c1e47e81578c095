"""L²-SP: a penalty on the distance to the pretrained weights."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from ...errors import ConfigError
from ...ranges import NonNegative
from ...renamed import refuse_old_names
from ..towers.adapters import KEYS, has_adapters
from .base import LossTerm, Step


def l2_sp(weights: Iterable[Tensor], pretrained: Iterable[Tensor]) -> Tensor:
    """½ ‖w − w⁰‖² over all weights: the L²-SP penalty (Li et al., "Explicit Inductive Bias for Transfer Learning with
    Convolutional Networks", ICML 2018, section 3) without its factor, in float32.

    Args:
        weights, pretrained (Iterable[Tensor]): w and w⁰, of the same shapes, in the same order.
    """
    return 0.5 * torch.stack([(w.float() - w0.float()).square().sum() for w, w0 in zip(weights, pretrained)]).sum()


@MODELS.register_module()
class L2SP(LossTerm):
    """``loss_l2sp`` = α · :func:`l2_sp` of the tower + β · ½ ‖w_head − w_head⁰‖².

    Li et al. decay a randomly initialised head towards 0 (``head='zero'``). The head here is initialised from class
    embeddings, so by default it is held to its initial weights, as the tower is. The penalty replaces weight decay: set
    ``optim_wrapper.optimizer.weight_decay=0``.

    Args:
        alpha (float): α, of the tower and the neck.
        beta (float): β, of the head.
        head (str): 'pretrained' or 'zero': what the weights of the head are held to.
    """

    def __init__(self, alpha: NonNegative = 0.1, beta: NonNegative = 0.01, head: str = 'pretrained') -> None:
        super().__init__()
        if alpha < 0 or beta < 0:
            raise ConfigError(f'L2SP: alpha={alpha} and beta={beta} must not be negative')
        refuse_old_names('L2SP', type(self), dict(head=head))
        if head not in ('pretrained', 'zero'):
            raise ConfigError(f'L2SP: unknown head={head!r}: choose "pretrained" or "zero"')
        self.alpha = alpha
        self.beta = beta
        self.head = head

    def setup(self, classifier: nn.Module) -> None:
        """Refuse adapters: they keep the weights that the penalty would hold.

        Raises:
            ConfigError: The tower has adapters.
        """
        super().setup(classifier)
        if has_adapters(classifier.backbone):
            raise ConfigError(
                f'L2SP holds the weights of the tower to the pretrained ones, but with {KEYS} these do not '
                'change: leave out one of them. Weight decay on the adapters (optim_wrapper.optimizer.weight_decay) '
                'pulls towards the pretrained model'
            )

    def forward(self, step: Step) -> dict[str, Tensor]:
        model, teacher = step.classifier, step.teacher
        pairs = [(model.backbone, teacher.backbone)] + ([(model.neck, teacher.neck)] if model.neck is not None else [])
        tower, tower0 = ([p for module in modules for p in module.parameters()] for modules in zip(*pairs))
        head = list(model.head.parameters())
        head0 = list(teacher.head.parameters()) if self.head == 'pretrained' else [torch.zeros_like(w) for w in head]
        return dict(loss_l2sp=self.alpha * l2_sp(tower, tower0) + self.beta * l2_sp(head, head0))
