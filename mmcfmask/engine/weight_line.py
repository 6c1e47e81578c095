"""The line between pretrained and fine-tuned weights, in place of the weights of a model (WiSE-FT)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..models.interpolation import check_same_model, interpolate, lerp
from ..models.losses.flyp import FLYP
from ..models.towers.adapters import is_scaled_by_another


class WeightLine:
    """Lets a fine-tuned model take the weights (1 − α) θ0 + α θ1.

    Adapters are scaled by α. If a text tower makes the head (:class:`mmcfmask.models.losses.flyp.FLYP`), the text
    towers are interpolated, and make the head of each α.

    Args:
        model (nn.Module): With the weights θ1, which are copied.
        pretrained (Mapping[str, Tensor]): θ0.

    Attributes:
        pretrained, finetuned (dict[str, Tensor]): θ0 and θ1, on the devices of the model.

    Raises:
        ConfigError: θ0 and θ1 are not of the same model.
    """

    def __init__(self, model: nn.Module, pretrained: Mapping[str, Tensor]) -> None:
        self.model = model
        self.weights = own_weights(model)  # written to in place
        check_same_model(pretrained, self.weights)
        self.finetuned = {name: value.clone() for name, value in self.weights.items()}
        self.pretrained = {name: value.to(self.finetuned[name].device) for name, value in pretrained.items()}
        # Adapters: B is 0 in θ0, whatever its A. With the A of θ1, the line scales the update B A by α.
        self.pretrained.update({name: value for name, value in self.finetuned.items() if is_scaled_by_another(name)})
        self.maker = next((module for module in getattr(model, 'losses', ()) if isinstance(module, FLYP)), None)
        if self.maker is not None:
            self.text = {name: value.to('cpu', copy=True) for name, value in self.maker.text.state_dict().items()}
        self.heads: dict[float, dict[str, Tensor]] = {}

    @torch.no_grad()
    def move_to(self, alpha: float) -> None:
        """Give the model the weights at one α in [0, 1]."""
        made = self._head(alpha)
        for name, weight in self.weights.items():
            weight.copy_(made[name] if name in made else lerp(self.pretrained[name], self.finetuned[name], alpha))

    def at(self, alpha: float) -> dict[str, Tensor]:
        """Return the weights at one α in [0, 1]."""
        return {**interpolate(self.pretrained, self.finetuned, alpha), **self._head(alpha)}

    def _head(self, alpha: float) -> dict[str, Tensor]:
        """Return the head that the text tower makes at one α; nothing without a text tower, and at both ends, which
        have their heads."""
        if self.maker is None or alpha in (0, 1):
            return {}
        if alpha not in self.heads:
            made = self.maker.mixed_head(self.model.head, self.text, alpha)
            self.heads[alpha] = {f'head.{name}': value for name, value in made.items()}
        return self.heads[alpha]


def own_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a model, without those of its loss terms."""
    return {name: value for name, value in model.state_dict().items() if not name.startswith('losses.')}
