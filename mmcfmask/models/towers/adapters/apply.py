"""Adapters of a whole tower: added, taken away, merged, and as keys of a config."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from ....errors import ConfigError, blame
from .base import AdaptedLayer, Adapters, restore
from .lora import LoRA
from .r_adapter import RAdapter, RAdapterLayer

KINDS: dict[str, type[Adapters]] = {kind.key: kind for kind in (LoRA, RAdapter)}
KEYS = ' or '.join(f'model.backbone.{kind}' for kind in KINDS)


def add_adapters(tower: nn.Module, options: Adapters) -> None:
    """Freeze a tower and add trainable adapters to it, in place.

    Args:
        tower (nn.Module): An image tower with its pretrained weights.
        options (Adapters): :class:`LoRA` or :class:`RAdapter`.

    Raises:
        ConfigError: There is nothing to adapt, or the options do not fit the tower.
    """
    layers = options.find(tower)
    tower.requires_grad_(False)
    for layer in layers.values():
        options.adapt(layer)
    tower.register_buffer('adapter_base', _fingerprint(layer.frozen_weight() for layer in layers.values()))


def has_adapters(tower: nn.Module) -> bool:
    """Whether a tower has adapters."""
    return any(isinstance(module, AdaptedLayer) for module in tower.modules())


def drops_at_random(tower: nn.Module) -> bool:
    """Whether a tower has adapters that are dropped at random in training."""
    return any(isinstance(module, RAdapterLayer) and module.drop_prob > 0 for module in tower.modules())


def remove_adapters(tower: nn.Module, merge: bool = False) -> None:
    """Take the adapters away, in place; the layers are of their former classes again.

    Args:
        tower (nn.Module): A tower, or a model with one, with or without adapters.
        merge (bool): The weights become those that compute the same. False: they are the pretrained ones.
    """
    for layer in [module for module in tower.modules() if isinstance(module, AdaptedLayer)]:
        restore(layer, merge)
    for module in tower.modules():
        module._buffers.pop('adapter_base', None)


def copy_without_adapters(tower: nn.Module) -> nn.Module:
    """A copy of a tower without its adapters. With adapters, it shares the frozen weights."""
    shared = [weight for weight in tower.parameters() if not weight.requires_grad] if has_adapters(tower) else []
    copied = deepcopy(tower, {id(weight): weight for weight in shared})
    remove_adapters(copied)
    return copied


def uses_adapters(model: Mapping) -> bool:
    """Whether the ``model`` of a config has adapters."""
    return any((model.get('backbone') or {}).get(kind) is not None for kind in KINDS)


def forget_adapters(model: dict) -> None:
    """Drop the adapters from the ``model`` of a config, in place."""
    for kind in KINDS:
        (model.get('backbone') or {}).pop(kind, None)


def read_adapters(backbone: Mapping) -> Adapters | None:
    """The adapters of the ``model.backbone`` of a config.

    Raises:
        ConfigError: Two kinds, or wrong options.
    """
    given = [kind for kind in KINDS if backbone.get(kind) is not None]
    if len(given) > 1:
        raise ConfigError(f'model.backbone has {" and ".join(given)}: a tower has adapters of one kind, leave out one')
    if not given:
        return None
    with blame(f'model.backbone.{given[0]}'):
        return KINDS[given[0]](**backbone[given[0]])


def without_adapters(backbone: Mapping) -> dict[str, Any]:
    """The ``model.backbone`` of a config without the keys of adapters."""
    return {key: value for key, value in backbone.items() if key not in KINDS}


def _fingerprint(weights: Iterable[Tensor]) -> Tensor:
    """An integer that says which pretrained weights the adapters belong to."""
    digest = hashlib.sha256()
    for weight in weights:
        digest.update(weight.detach().float().cpu().numpy().tobytes())
    return torch.tensor(int.from_bytes(digest.digest()[:7], 'big'))
