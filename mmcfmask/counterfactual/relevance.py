"""Relevance of patches to the class: the class activation map of a transformer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import kernels
from ..errors import ConfigError
from ..precision import bfloat16_products, no_autocast
from .attention import AttentionCall, AttentionRecord, record_attention
from .cleaning import SMOOTHINGS, find_outliers
from .cleaning import smooth as smooth_map

# Elements of the attention matrices processed at once: what fits into the cache of a CPU, and little for a GPU.
_CHUNK = {True: 2**19, False: 2**26}

LAYERS = ('all', 'last')

_activations_only = False


@contextmanager
def activations_only() -> Iterator[None]:
    """Inside the context, backward passes of this process compute gradients of activations only, see
    :func:`needs_weight_gradients`. (Autograd still calls saved-tensor hooks for what only gradients of weights need.)
    """
    global _activations_only
    before, _activations_only = _activations_only, True
    try:
        yield
    finally:
        _activations_only = before


def needs_weight_gradients() -> bool:
    """Whether a backward pass that runs now may compute gradients of weights, in any thread."""
    return not _activations_only


def patch_grid(tower: nn.Module, inputs: Tensor) -> tuple[int, int]:
    """Rows and columns of patches that ``tower`` cuts ``inputs`` (B, 3, H, W) into.

    Raises:
        ValueError: The tower has no patches (a convolutional network).
    """
    patch = getattr(tower, 'patch_size', None)
    if patch is None and hasattr(tower, 'patch_embed'):  # mmpretrain's VisionTransformer
        patch = tower.patch_embed.projection.stride
    if patch is None:
        raise ConfigError(f'{type(tower).__name__} has no patches: counterfactual masks need a vision transformer')
    height, width = (patch, patch) if isinstance(patch, int) else patch
    return inputs.shape[-2] // height, inputs.shape[-1] // width


def _through_layer(row: Tensor, call: AttentionCall, grad: Tensor) -> Tensor:
    """r Ā of one layer, with Ā = mean over heads of relu(A ∘ G).

    With o = A v, the gradient of the score with respect to A is G = (∂s/∂o) vᵀ. Since A ≥ 0, A ∘ relu(G) is the same.

    Args:
        row (Tensor): (B, T) float32, r at the T ≤ L first tokens; at the others it is 0.
        call (AttentionCall): The layer's attention, of T or more queries.
        grad (Tensor): (B, heads, T or more, d), ∂s/∂o.

    Returns:
        Tensor: (B, L) float32.
    """
    batch, heads, tokens, _ = call.key.shape
    queries = row.shape[1]
    if kernels.fits_relevance(call.query, call.key, call.value, grad):
        return kernels.relevance_through_layer(
            row, call.query[:, :, :queries], call.key, call.value, grad[:, :, :queries], call.scale
        )
    exact = bfloat16_products if call.query.dtype == grad.dtype == torch.bfloat16 else nullcontext
    size = max(1, _CHUNK[call.key.device.type == 'cpu'] // (heads * queries * tokens))
    weights = (row[:, None] / heads).expand(-1, heads, -1)
    result = []
    for part in (slice(start, start + size) for start in range(0, batch, size)):
        # (images · heads, T or L, d)
        query, key, value, gradient = (
            x[part].float().flatten(0, 1)
            for x in (call.query[:, :, :queries], call.key, call.value, grad[:, :, :queries])
        )
        with exact():
            scores, gradient = torch.bmm(query, key.mT), torch.bmm(gradient, value.mT)
        attention = scores.mul_(call.scale).softmax(dim=-1).mul_(gradient.relu_())
        result.append(
            torch.bmm(weights[part].flatten(1).unsqueeze(1), attention.view(-1, heads * queries, tokens))[:, 0]
        )
    return torch.cat(result)


def check_relevance(layers: str = 'all', outliers: float | None = None, smooth: str | None = None) -> None:
    """Raise a ConfigError unless these are options of :func:`attention_relevance`."""
    if layers not in LAYERS:
        raise ConfigError(f'relevance: layers={layers!r} must be one of {", ".join(map(repr, LAYERS))}')
    number = isinstance(outliers, (int, float)) and not isinstance(outliers, bool)
    if outliers is not None and not (number and 0 <= outliers < math.inf):
        raise ConfigError(
            f'relevance: outliers={outliers!r} is the number of median absolute deviations above which a norm is an '
            'outlier, at least 0: 6.0, or None to keep all patches'
        )
    if smooth not in (None, *SMOOTHINGS):
        raise ConfigError(f'relevance: smooth={smooth!r} must be one of {", ".join(map(repr, SMOOTHINGS))} or None')


def attention_relevance(
    score: Tensor,
    calls: AttentionRecord,
    grid: tuple[int, int],
    retain_graph: bool = False,
    layers: str = 'all',
    outliers: float | None = None,
    smooth: str | None = None,
) -> Tensor:
    """Relevance of every patch to ``score`` by the attention of all layers.

    Chefer et al., "Generic Attention-model Explainability" (ICCV 2021), as used in "Masked Images Are Counterfactual
    Samples for Robust Fine-tuning" (CVPR 2023)::

        Ā_l = mean over heads of relu(A_l ∘ ∂s/∂A_l)
        R ← I;  for l = 1..N:  R ← R + Ā_l R
        relevance = R[CLS, patches]

    Only the CLS row of R is needed, so the product is computed from the left: r ← one-hot(CLS); for l = N..1:
    r ← r + r Ā_l. Everything after the gradient is float32, whatever the autocast state.

    With the defaults this is the published map. ``outliers`` and ``smooth`` are ours: on real CLIP ViT-B/16 the hottest
    patch of the published map is a speck of background in nine of ten images (docs/relevance.md).

    Args:
        score (Tensor): Scalar s = Σ_i logits[i, y_i].
        calls (AttentionRecord): The attention calls of the forward pass that gave the logits, first layer first.
        grid (tuple[int, int]): Rows and columns of patches.
        retain_graph (bool): Keep the graph, because the loss uses it too.
        layers (str): 'all', or 'last': the attention of the last layer alone.
        outliers (float, optional): The relevance of patches whose token is an outlier by this many deviations becomes 0
            (:func:`.cleaning.find_outliers`). Defaults to None: none.
        smooth (str, optional): Then the 'mean' or the 'median' of 3 × 3 patches (:func:`.cleaning.smooth`). Defaults to
            None: as it is.

    Returns:
        Tensor: (B, h, w) float32, not normalised, detached.

    Raises:
        ConfigError: The tokens are not one CLS token and h·w patches, no attention was recorded, or a wrong option.
    """
    options = dict(layers=layers, outliers=outliers, smooth=smooth)
    return attention_relevances(score, calls, grid, [options], retain_graph)[0]


def attention_relevances(
    score: Tensor,
    calls: AttentionRecord,
    grid: tuple[int, int],
    options: Sequence[dict[str, Any]],
    retain_graph: bool = False,
) -> list[Tensor]:
    """:func:`attention_relevance` with each of several options, by one backward pass.

    Args:
        score, calls, grid, retain_graph: See :func:`attention_relevance`.
        options (Sequence[dict]): ``layers``, ``outliers`` and ``smooth`` of each map.

    Returns:
        list[Tensor]: (B, h, w) float32 each.

    Raises:
        ConfigError: See :func:`attention_relevance`.
    """
    for option in options:
        check_relevance(**option)
    if not calls:
        raise ConfigError('no attention was recorded: the tower does not use scaled_dot_product_attention')
    tokens = calls[-1].key.shape[-2]
    if tokens != 1 + grid[0] * grid[1]:
        raise ConfigError(
            f'the tower has {tokens} tokens, but relevance needs one class token and {grid[0]} x {grid[1]} patches '
            '(other poolings and register tokens are not supported)'
        )
    with activations_only():
        grads = torch.autograd.grad(score, [call.output for call in calls], retain_graph=retain_graph)
    with torch.no_grad(), no_autocast():
        cls = torch.ones(len(grads[-1]), 1, device=score.device)
        # r is one-hot at first: of the last layer only the CLS row counts.
        row = F.pad(cls, (0, tokens - 1)) + _through_layer(cls, calls[-1], grads[-1])
        patches = dict(last=row[:, 1:])
        if any(option.get('layers', 'all') == 'all' for option in options):
            for call, grad in zip(calls[-2::-1], grads[-2::-1]):
                row = row + _through_layer(row, call, grad)
            patches['all'] = row[:, 1:]
        return [
            _clean(
                patches[option.get('layers', 'all')], calls.norms, grid, option.get('outliers'), option.get('smooth')
            )
            for option in options
        ]


def _clean(
    patches: Tensor, norms: Tensor | None, grid: tuple[int, int], outliers: float | None, smooth: str | None
) -> Tensor:
    """Relevance (B, h, w) of (B, n) patches without outliers, smoothed; ``norms`` (B, 1 + n) as recorded."""
    if outliers is not None:
        if norms is None:
            raise ConfigError('relevance: outliers needs the tokens of the last block, which this tower has not')
        patches = patches.masked_fill(find_outliers(norms[:, 1:], outliers), 0)
    relevance = patches.unflatten(1, grid)
    return relevance if smooth is None else smooth_map(relevance, smooth)


def relevance_map(model: nn.Module, inputs: Tensor, labels: Tensor, **relevance: Any) -> Tensor:
    """Relevance of every patch of ``inputs`` to its label (see :func:`attention_relevance`).

    Args:
        model (nn.Module): A classifier with a ``backbone`` that returns logits when called on images: any mmpretrain
            ``ImageClassifier`` over a vision transformer with a class token. It is not changed.
        inputs (Tensor): (B, 3, H, W), normalised images.
        labels (Tensor): (B,) int64 class indices.
        **relevance: ``layers``, ``outliers`` and ``smooth`` of :func:`attention_relevance`; those of a config are
            ``model.data_preprocessor.relevance``. Without them, the published map.

    Returns:
        Tensor: (B, h, w) float32, ≥ 0, not normalised.

    Raises:
        TypeError: A model without ``backbone``.
        ValueError: A tower without attention, or without a class token; see :func:`attention_relevance`.

    Example:
        >>> relevance = relevance_map(model, images, labels, outliers=6.0, smooth='mean')
        >>> mask = patch_mask(relevance, 'object', 0.3)
        >>> counterfactual = refill(images, mask, 'single')
    """
    if not hasattr(model, 'backbone'):
        raise TypeError(
            f'relevance_map needs a classifier with a backbone, like those of mmpretrain, but a {type(model).__name__} '
            'has none'
        )
    return logits_and_relevance(model.backbone, model, inputs, labels, **relevance)[1]


def logits_and_relevance(
    tower: nn.Module,
    classify: Callable[[Tensor], Tensor],
    inputs: Tensor,
    labels: Tensor | None = None,
    **relevance: Any,
) -> tuple[Tensor, Tensor]:
    """Logits and the relevance of every patch to a class, with one forward pass.

    Args:
        tower (nn.Module): The image tower, which ``classify`` calls once.
        classify (Callable): Images (B, 3, H, W) to logits (B, C).
        inputs (Tensor): (B, 3, H, W), normalised images.
        labels (Tensor, optional): (B,) int64. Defaults to the predicted classes.
        **relevance: See :func:`relevance_map`.

    Returns:
        tuple[Tensor, Tensor]: (B, C) logits, detached, and (B, h, w) relevance, see :func:`attention_relevance`.
    """
    logits, maps = _logits_and_maps(tower, classify, inputs, labels, [relevance])
    return logits, maps[0]


def compare_relevance(
    model: nn.Module, inputs: Tensor, labels: Tensor, options: Sequence[dict[str, Any]]
) -> list[Tensor]:
    """:func:`relevance_map` with each of several options, with one forward and one backward pass.

    Args:
        model, inputs, labels: See :func:`relevance_map`.
        options (Sequence[dict]): ``layers``, ``outliers`` and ``smooth`` of each map; ``{}`` is the published map.

    Returns:
        list[Tensor]: (B, h, w) each.
    """
    return _logits_and_maps(model.backbone, model, inputs, labels, options)[1]


def _logits_and_maps(
    tower: nn.Module,
    classify: Callable[[Tensor], Tensor],
    inputs: Tensor,
    labels: Tensor | None,
    options: Sequence[dict[str, Any]],
) -> tuple[Tensor, list[Tensor]]:
    for option in options:
        check_relevance(**option)
    grid = patch_grid(tower, inputs)
    with torch.inference_mode(False), torch.enable_grad():
        with record_attention(tower) as calls:
            logits = classify(inputs.clone() if inputs.is_inference() else inputs)
        labels = logits.argmax(dim=1) if labels is None else labels
        score = logits.gather(1, labels[:, None]).sum()
        # Outside the recording: checkpointed layers run again during the backward pass.
        return logits.detach(), attention_relevances(score, calls, grid, options)
