"""What all kinds of adapters have in common: adapted layers, and where a transformer has attention and MLP."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from ....counterfactual.towers import inner_tower
from ....errors import ConfigError
from ....messages import near_names, short_list

# How open_clip, timm and mmpretrain call attention and MLP.
TARGETS = ('attn', 'attn_pool', 'mlp', 'ffn')
# The parameters of adapters. Those on the left are random at the start, those on the right 0.
DOWN, UP = ('lora_A', 'adapter_A'), ('lora_B', 'adapter_B')


class Adapters(ABC):
    """Options of one kind of adapters. A kind is a dataclass of its options and its adapted layers.

    Attributes:
        key (str): The key of ``model.backbone`` that holds the options.
    """

    key: ClassVar[str]

    @abstractmethod
    def find(self, tower: nn.Module) -> dict[str, Any]:
        """The layers of a tower that get an adapter, by name.

        Raises:
            ConfigError: There are none, or the options do not fit them.
        """

    @abstractmethod
    def adapt(self, layer: Any) -> None:
        """Add an adapter to one of these layers, in place. It computes what it computed before, until it is trained."""


class AdaptedLayer:
    """A layer with an adapter: a subclass of its former class, which keeps the names of its weights. They are frozen.

    Attributes:
        plain_class (type): The former class.
        adapters (Adapters): The options.
    """

    plain_class: type
    adapters: Any

    def frozen_weight(self) -> Tensor:
        """W, the pretrained weight that the adapter changes."""
        raise NotImplementedError

    def merged(self) -> dict[str, Tensor]:
        """The weights that compute the same without the adapter, by their name in the layer."""
        raise NotImplementedError


def become(layer: Any, adapted: type, adapters: Adapters) -> None:
    """Give a layer the class of its adapted version."""
    layer.plain_class, layer.adapters = type(layer), adapters
    layer.__class__ = adapted


def restore(layer: Any, merge: bool) -> None:
    """Take the adapter of a layer away.

    Args:
        layer (AdaptedLayer): The layer; it is of its former class again.
        merge (bool): The weights become the merged ones. False: they are the pretrained ones.
    """
    merged = layer.merged() if merge else {}
    layer.__class__ = layer.plain_class
    del layer.plain_class, layer.adapters
    for name in (*DOWN, *UP):
        layer._parameters.pop(name, None)
    for path, weight in merged.items():  # new weights, because a teacher may share the frozen ones
        part, _, name = path.rpartition('.')
        layer.get_submodule(part)._parameters[name] = nn.Parameter(weight.detach(), requires_grad=False)


def find_layers(tower: nn.Module, targets: Sequence[str] | None = None) -> dict[str, Any]:
    """The linear layers and the attention of a transformer that are trained, by name.

    Args:
        tower (nn.Module): The image tower.
        targets (Sequence[str], optional): Those with one of these in their dotted name. Defaults to None: all of
            attention and MLP.

    Raises:
        ConfigError: There are none, or none for one of the targets.
    """
    trained = {
        name: module
        for name, module in tower.named_modules()
        if isinstance(module, (nn.Linear, nn.MultiheadAttention))
        and (weight := plain_weight(module)) is not None
        and weight.requires_grad
    }

    def matches(target: str) -> dict[str, nn.Module]:
        return {name: module for name, module in trained.items() if f'.{target}.' in f'.{name}.'}

    found: dict[str, nn.Module] = {}
    for target in TARGETS if targets is None else targets:
        matching = matches(target)
        if targets is not None and not matching:
            parts = sorted({part for name in trained for part in name.split('.') if not part.isdigit()})
            raise ConfigError(
                f'no linear layer or attention of {_kind(tower)} has {target!r} in its name.'
                f'{near_names(target, parts)} Parts of names: {short_list(parts, 20)}'
            )
        found.update(matching)
    if not found:
        raise ConfigError(
            f'{_kind(tower)} has no attention or MLP that can be trained, so there is nothing to adapt: leave out '
            + (
                'frozen=True, or the adapters'
                if not any(p.requires_grad for p in tower.parameters())
                else 'the adapters'
            )
        )
    return found


def check_rank(rank: int, largest: int) -> None:
    """Raise a ConfigError for a rank above the ``largest`` that an adapted weight can have."""
    if rank > largest:
        raise ConfigError(f'rank={rank} is larger than the rank of every adapted weight, at most {largest}')


def plain_weight(layer: nn.Module) -> Any:
    """W of a linear layer, or of q, k and v; None for attention with separate weights of q, k and v."""
    return layer._parameters['weight' if isinstance(layer, nn.Linear) else 'in_proj_weight']


def is_adapter(name: str) -> bool:
    """Whether a parameter of this name belongs to an adapter."""
    return name.rpartition('.')[2] in (*DOWN, *UP)


def is_scaled_by_another(name: str) -> bool:
    """Whether a parameter of this name is the random factor A of an update B A, which B alone scales."""
    return name.rpartition('.')[2] in DOWN


def holds_adapters(names: Iterable[str]) -> bool:
    """Whether a state dict with these names holds adapters in place of the weights."""
    return any(map(is_adapter, names))


def _kind(tower: nn.Module) -> str:
    return f'this {type(inner_tower(tower)).__name__}'
