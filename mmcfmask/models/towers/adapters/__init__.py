"""Adapters of a frozen tower: LoRA and R-Adapter."""

from .apply import (
    KEYS,
    KINDS,
    add_adapters,
    copy_without_adapters,
    drops_at_random,
    forget_adapters,
    has_adapters,
    read_adapters,
    remove_adapters,
    uses_adapters,
    without_adapters,
)
from .base import Adapters, holds_adapters, is_adapter, is_scaled_by_another
from .lora import LoRA
from .r_adapter import RAdapter

__all__ = [
    'Adapters',
    'KEYS',
    'KINDS',
    'LoRA',
    'RAdapter',
    'add_adapters',
    'copy_without_adapters',
    'forget_adapters',
    'drops_at_random',
    'has_adapters',
    'holds_adapters',
    'is_adapter',
    'is_scaled_by_another',
    'read_adapters',
    'remove_adapters',
    'uses_adapters',
    'without_adapters',
]
