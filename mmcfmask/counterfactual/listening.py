"""Other functions in place of the attention of a tower.

Most towers (open_clip's, mmpretrain's, timm's) call ``torch.nn.functional.scaled_dot_product_attention`` once per
layer. Some write attention out, and call a softmax. Replacing these functions gives access to attention. Fused
attention stays on, and no attention module is modified.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..compat import no_fused_transformer_layers


@contextmanager
def replace_attention(tower: nn.Module, make: Callable[[Callable], Callable]) -> Iterator[None]:
    """Inside the context, calls of ``scaled_dot_product_attention`` go to ``make(original)``.

    The replacement is global to the process for functions that look it up in ``torch.nn.functional`` (open_clip, timm)
    and per instance for mmpretrain's ``MultiheadAttention``, which keeps its own reference. Not for use by two threads.
    """
    original = F.scaled_dot_product_attention
    replacement = make(original)
    holders = [module for module in tower.modules() if 'scaled_dot_product_attention' in vars(module)]
    own: list[Any] = [module.scaled_dot_product_attention for module in holders]
    try:
        F.scaled_dot_product_attention = replacement
        for module, function in zip(holders, own):
            module.scaled_dot_product_attention = make(function)  # type: ignore[assignment]
        with no_fused_transformer_layers():
            yield
    finally:
        F.scaled_dot_product_attention = original
        for module, function in zip(holders, own):
            module.scaled_dot_product_attention = function


@contextmanager
def replace_softmax(function: Callable[..., Tensor]) -> Iterator[None]:
    """Inside the context, a softmax over the last dimension of scores (B, heads, T, L), however it is called, goes to
    ``function(original, scores, ...)``. For this thread."""
    with _SoftmaxMode(function):
        yield


class _SoftmaxMode(TorchFunctionMode):
    FUNCTIONS = (torch.softmax, F.softmax, Tensor.softmax)

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func in self.FUNCTIONS and args and args[0].ndim == 4:
            dim = kwargs.get('dim', args[1] if len(args) > 1 else None)
            if dim in (-1, 3):
                return self.function(func, *args, **kwargs)
        return func(*args, **kwargs)
