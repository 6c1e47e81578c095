"""Relevance of patches to the class: the class activation map of a transformer, and of other towers."""

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
from .attention import AttentionCall, AttentionRecord, AttentionWeights, record_attention
from .cleaning import SMOOTHINGS, find_outliers
from .cleaning import smooth as smooth_map
from .towers import ATTENTION_POOL, CLASS_TOKEN, TowerLayout

# Elements of the attention matrices processed at once: what fits into the cache of a CPU, and little for a GPU.
_CHUNK = {True: 2**19, False: 2**26}

LAYERS = ('all', 'last', 'feature_map')

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


def _through_layer(row: Tensor, call: AttentionCall | AttentionWeights, grad: Tensor) -> Tensor:
    """r Ā of one layer, with Ā = mean over heads of relu(A ∘ G).

    With o = A v, the gradient of the score with respect to A is G = (∂s/∂o) vᵀ. Since A ≥ 0, A ∘ relu(G) is the same.

    Args:
        row (Tensor): (B, T) float32, r at the T first queries; at the others it is 0.
        call (AttentionCall | AttentionWeights): The layer's attention, of T or more queries.
        grad (Tensor): ∂s/∂o, (B, heads, T or more, d), or ∂s/∂A, (B, heads, T or more, L).

    Returns:
        Tensor: (B, L) float32.
    """
    queries = row.shape[1]
    if isinstance(call, AttentionWeights):
        attention, gradient = (x.detach()[:, :, :queries].float() for x in (call.output, grad))
        return torch.einsum('bt,bhtl->bl', row / attention.shape[1], attention * gradient.relu())
    batch, heads, tokens, _ = call.key.shape
    if call.bias is None and kernels.fits_relevance(call.query, call.key, call.value, grad):
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
        scores = _biased(scores.mul_(call.scale), call, part)
        attention = scores.softmax(dim=-1).mul_(gradient.relu_())
        result.append(
            torch.bmm(weights[part].flatten(1).unsqueeze(1), attention.view(-1, heads * queries, tokens))[:, 0]
        )
    return torch.cat(result)


def _biased(scores: Tensor, call: AttentionCall, part: slice) -> Tensor:
    """``scores`` (images · heads, T, L) with the bias of the images ``part``, in place."""
    if call.bias is None:
        return scores
    batch, heads, keys, _ = call.key.shape
    bias = call.bias.expand(batch, heads, -1, keys)[part, :, : scores.shape[1]].flatten(0, 1)
    return scores.masked_fill_(~bias, -math.inf) if bias.dtype == torch.bool else scores.add_(bias)


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

    Towers that pool otherwise are beyond the publication (docs/backbones.md). Only the start of r differs, and the
    relevance of a patch is what attention adds to its start:

    - attention pool (CoCa, PE-Core, SigLIP, CLIP's ResNets): r ← Ā of the pool, summed over its queries, without the
      identity, because no residual leads around a pool (Chefer et al., on attention of one sequence to another);
    - mean of tokens: r ← 1/N at each of the N pooled tokens (the same for all, so it is not part of the relevance);
    - a feature map (convolutions, windows): the map F is Grad-CAM (Selvaraju et al., ICCV 2017):
      relu(Σ_c α_c F_c), α_c = mean over positions of ∂s/∂F_c.

    With the defaults this is the published map. ``outliers`` and ``smooth`` are ours: on real CLIP ViT-B/16 the hottest
    patch of the published map is a speck of background in nine of ten images (docs/relevance.md).

    Args:
        score (Tensor): Scalar s = Σ_i logits[i, y_i].
        calls (AttentionRecord): What :func:`record_attention` recorded of the forward pass that gave the logits.
        retain_graph (bool): Keep the graph, because the loss uses it too.
        layers (str): 'all', or 'last': the attention of the last layer alone (of the pool, if attention pools); or
            'feature_map': Grad-CAM, also of a tower whose feature map is pooled by attention (CLIP's ResNets).
        outliers (float, optional): The relevance of patches whose token is an outlier by this many deviations becomes 0
            (:func:`.cleaning.find_outliers`). Defaults to None: none.
        smooth (str, optional): Then the 'mean' or the 'median' of 3 × 3 patches (:func:`.cleaning.smooth`). Defaults to
            None: as it is.

    Returns:
        Tensor: (B, h, w) float32, not normalised, detached.

    Raises:
        ConfigError: Nothing was recorded, the tokens are not those of the layout, or a wrong option.
    """
    options = dict(layers=layers, outliers=outliers, smooth=smooth)
    return attention_relevances(score, calls, [options], retain_graph)[0]


def attention_relevances(
    score: Tensor,
    calls: AttentionRecord,
    options: Sequence[dict[str, Any]],
    retain_graph: bool = False,
) -> list[Tensor]:
    """:func:`attention_relevance` with each of several options, by one backward pass.

    Args:
        score, calls, retain_graph: See :func:`attention_relevance`.
        options (Sequence[dict]): ``layers``, ``outliers`` and ``smooth`` of each map.

    Returns:
        list[Tensor]: (B, h, w) float32 each.

    Raises:
        ConfigError: See :func:`attention_relevance`.
    """
    for option in options:
        check_relevance(**option)
    layout = calls.layout
    if layout is None or not calls and calls.feature_map is None:
        raise ConfigError('nothing was recorded: run the tower with record_attention, with gradients')
    asked = {option.get('layers', 'all') for option in options}
    if calls.feature_map is None and 'feature_map' in asked:
        raise ConfigError("relevance: layers='feature_map' needs a tower that ends in one: choose 'all' or 'last'")
    recorded = [call.output for call in calls] + ([] if calls.feature_map is None else [calls.feature_map])
    with activations_only():
        grads = torch.autograd.grad(score, recorded, retain_graph=retain_graph)
    with torch.no_grad(), no_autocast():
        patches: dict[str, Tensor] = {}
        if calls.feature_map is not None:
            patches = dict.fromkeys(LAYERS, grad_cam(calls.feature_map.detach(), grads[-1], layout.grid))
        if calls:
            patches.update(_patches_by_layers(calls, grads[: len(calls)], layout, 'all' in asked))
        return [
            _clean(
                patches[option.get('layers', 'all')], calls.norms, layout, option.get('outliers'), option.get('smooth')
            )
            for option in options
        ]


def _patches_by_layers(
    calls: AttentionRecord, grads: Sequence[Tensor], layout: TowerLayout, every: bool
) -> dict[str, Tensor]:
    """Relevance (B, n) of the patches by the ``'last'`` layer, and by ``'all'`` if asked for ``every`` one."""
    layers = zip(reversed(calls), reversed(grads))
    call, grad = next(layers)
    pool, patches = layout.pooling == ATTENTION_POOL, layout.grid[0] * layout.grid[1]
    tokens = layout.prefix + patches
    if call.num_keys != tokens and not (pool and call.num_keys == patches):
        raise ConfigError(
            f'the tower has {call.num_keys} tokens, but relevance needs {layout.prefix} and {layout.grid[0]} x '
            f'{layout.grid[1]} patches'
        )
    start = _start(layout, grad)
    added = F.pad(_through_layer(start, call, grad), (tokens - call.num_keys, 0))  # a pool may leave out the prefix
    found = dict(last=added[:, layout.prefix :])
    if every:
        # No residual leads around a pool.
        row = added if pool else F.pad(start, (0, tokens - start.shape[1])) + added
        for call, grad in layers:
            step = _through_layer(row, call, grad)
            row, added = row + step, added + step
        found['all'] = added[:, layout.prefix :]
    return found


def _start(layout: TowerLayout, grad: Tensor) -> Tensor:
    """r before the last layer (B, T), at the first T of its queries (B, heads, Q, ·)."""
    batch, _, queries, _ = grad.shape
    if layout.pooling == CLASS_TOKEN:  # one-hot: of the last layer only the CLS row counts
        return torch.ones(batch, 1, device=grad.device)
    if layout.pooling == ATTENTION_POOL:
        return torch.ones(batch, queries, device=grad.device)
    pooled = queries - layout.first_pooled
    return F.pad(torch.full((batch, pooled), 1 / pooled, device=grad.device), (layout.first_pooled, 0))


def grad_cam(feature_map: Tensor, grad: Tensor, grid: tuple[int, int]) -> Tensor:
    """Grad-CAM (Selvaraju et al., ICCV 2017): relu(Σ_c α_c F_c), α_c = mean over positions of ∂s/∂F_c.

    Args:
        feature_map, grad (Tensor): F and ∂s/∂F, (B, C, h, w), (B, h, w, C) or (B, h w, C).
        grid (tuple[int, int]): h and w.

    Returns:
        Tensor: (B, h w) float32.
    """
    features, grad = (
        x.flatten(2).mT if x.shape[2:] == grid else x.reshape(len(x), -1, x.shape[-1])
        for x in (feature_map, grad)  # (B, h w, C)
    )
    weights = grad.mean(dim=1, keepdim=True, dtype=torch.promote_types(grad.dtype, torch.float32))
    return (features * weights).sum(dim=-1).relu().float()


def _clean(
    patches: Tensor, norms: Tensor | None, layout: TowerLayout, outliers: float | None, smooth: str | None
) -> Tensor:
    """Relevance (B, h, w) of (B, n) patches without outliers, smoothed; ``norms`` (B, L) as recorded."""
    if outliers is not None:
        if norms is None:
            raise ConfigError('relevance: outliers needs the tokens of the last block, which this tower has not')
        patches = patches.masked_fill(find_outliers(norms[:, layout.prefix :], outliers), 0)
    relevance = patches.unflatten(1, layout.grid)
    return relevance if smooth is None else smooth_map(relevance, smooth)


def relevance_map(model: nn.Module, inputs: Tensor, labels: Tensor, **relevance: Any) -> Tensor:
    """Relevance of every patch of ``inputs`` to its label (see :func:`attention_relevance`).

    Args:
        model (nn.Module): A classifier with a ``backbone`` that returns logits when called on images: any mmpretrain
            ``ImageClassifier`` over a tower of docs/backbones.md. It is not changed.
        inputs (Tensor): (B, 3, H, W), normalised images.
        labels (Tensor): (B,) int64 class indices.
        **relevance: ``layers``, ``outliers`` and ``smooth`` of :func:`attention_relevance`; those of a config are
            ``model.data_preprocessor.relevance``. Without them, the published map.

    Returns:
        Tensor: (B, h, w) float32, ≥ 0, not normalised.

    Raises:
        TypeError: A model without ``backbone``.
        ConfigError: A tower of none of the known kinds, see :func:`.towers.tower_layout`.

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
    with torch.inference_mode(False), torch.enable_grad():
        inputs = inputs.clone() if inputs.is_inference() else inputs
        with record_attention(tower, inputs) as calls:
            logits = classify(inputs)
        labels = logits.argmax(dim=1) if labels is None else labels
        score = logits.gather(1, labels[:, None]).sum()
        # Outside the recording: checkpointed layers run again during the backward pass.
        return logits.detach(), attention_relevances(score, calls, options)
