"""The method, plainly: section 3 of "Masked Images Are Counterfactual Samples for Robust Fine-tuning" (CVPR 2023), and
what it is for other towers.

Explicit attention with autograd through it, and the full recursion of relevance matrices. Tests and
``tools/benchmark.py`` compare the fast code with it; no training uses it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def explicit_features(
    visual: nn.Module,
    images: Tensor,
    attentions: list[Tensor] | None = None,
    hidden: Tensor | None = None,
    kept: Tensor | None = None,
) -> Tensor:
    """z = f(x), the image embedding (B, D) before normalisation, by an open_clip ViT with a class token.

    Args:
        visual (nn.Module): The image tower.
        images (Tensor): (B, 3, H, W), normalised.
        attentions (list, optional): The attention matrix (B, heads, L, L) of every layer is appended to it.
        hidden (Tensor, optional): (B, h, w) bool, patches that no token attends to.
        kept (Tensor, optional): (B, k) int64, the only patches that the tower sees.
    """
    x = visual.conv1(images).flatten(2).transpose(1, 2)
    x = torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], dim=1) + visual.positional_embedding
    if kept is not None:
        x = torch.stack([torch.cat([tokens[:1], tokens[1:][index]]) for tokens, index in zip(x, kept)])
    x = visual.ln_pre(x)
    for block in visual.transformer.resblocks:
        attn, normed = block.attn, block.ln_1(x)
        q, k, v = F.linear(normed, attn.in_proj_weight, attn.in_proj_bias).chunk(3, dim=-1)
        q, k, v = (part.unflatten(2, (attn.num_heads, -1)).transpose(1, 2) for part in (q, k, v))
        scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
        if hidden is not None:
            scores = scores.masked_fill(F.pad(hidden.flatten(1), (1, 0))[:, None, None, :], float('-inf'))
        attention = scores.softmax(dim=-1)
        if attentions is not None:
            attentions.append(attention)
        x = x + attn.out_proj((attention @ v).transpose(1, 2).flatten(2))
        mlp = block.mlp.c_fc(block.ln_2(x))
        mlp = mlp * torch.sigmoid(1.702 * mlp) if 'QuickGELU' in type(block.mlp.gelu).__name__ else block.mlp.gelu(mlp)
        x = x + block.mlp.c_proj(mlp)
    return visual.ln_post(x)[:, 0] @ visual.proj


def explicit_relevance(
    visual: nn.Module, classify: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor
) -> Tensor:
    """R ← I, then R ← R + Ā R layer by layer, with Ā = mean over heads of relu(A ∘ ∂s/∂A) and s = Σ logits[i, y_i]
    (Chefer et al. 2021). Returns the row of the class token in R, (B, h, w).

    ``classify`` maps features (B, D) to logits (B, C).
    """
    attentions: list[Tensor] = []
    score = classify(explicit_features(visual, images, attentions)).gather(1, labels[:, None]).sum()
    relevance = torch.eye(attentions[0].shape[-1], dtype=images.dtype, device=images.device).expand(len(images), -1, -1)
    for attention, grad in zip(attentions, torch.autograd.grad(score, attentions)):
        relevance = relevance + (attention * grad).clamp(min=0).mean(dim=1).detach() @ relevance
    return relevance[:, 0, 1:].unflatten(1, visual.grid_size)


def explicit_attention(attentions: list[Tensor]) -> Callable[..., Tensor]:
    """A plain ``scaled_dot_product_attention`` that appends its attention matrix (B, heads, T, L) to ``attentions``."""

    def attend(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
    ) -> Tensor:
        scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
        attentions.append((scores if attn_mask is None else scores + attn_mask).softmax(dim=-1))
        return attentions[-1] @ value

    return attend


def explicit_recursion(
    score: Tensor, attentions: list[Tensor], pooling: str, prefix: int = 0, first_pooled: int = 0
) -> Tensor:
    """Relevance of patches (B, n) by the full recursion of matrices, for every way to pool tokens.

    R ← I, then R ← R + Ā R layer by layer. A class token has its row of R; a mean has the mean of the rows of the
    pooled tokens, without the identity; an attention pool has Ā R, summed over its queries.

    Args:
        score (Tensor): s, a scalar.
        attentions (list[Tensor]): Of all layers, (B, heads, T, L); the last one is the pool, if attention pools.
        pooling (str): 'class token', 'mean of tokens' or 'attention pool'.
        prefix (int): Tokens before those of the patches.
        first_pooled (int): The first token of the mean.
    """
    layers = [
        (attention * grad).clamp(min=0).mean(dim=1).detach()
        for attention, grad in zip(attentions, torch.autograd.grad(score, attentions))
    ]
    pool = layers.pop() if pooling == 'attention pool' else None
    identity = torch.eye(attentions[0].shape[-1], dtype=score.dtype).expand(len(attentions[0]), -1, -1)
    relevance = identity
    for layer in layers:
        relevance = relevance + layer @ relevance
    if pool is not None:  # of all tokens, or of the last ones
        return (pool @ relevance[:, -pool.shape[-1] :]).sum(dim=1)[:, prefix:]
    if pooling == 'class token':
        return relevance[:, 0, prefix:]
    return (relevance - identity)[:, first_pooled:].mean(dim=1)[:, prefix:]


def explicit_grad_cam(feature_map: Tensor, grad: Tensor) -> Tensor:
    """Grad-CAM (Selvaraju et al. 2017) of a feature map and ∂s/∂ of it, (B, C, h, w), image by image: (B, h, w)."""
    maps = []
    for features, slopes in zip(feature_map, grad):
        weighted = [slope.mean() * channel for channel, slope in zip(features, slopes)]
        maps.append(torch.stack(weighted).sum(dim=0).clamp(min=0))
    return torch.stack(maps)


def explicit_mask(relevance: Tensor, kind: str, value: float) -> Tensor:
    """(B, h, w) bool: c > ``value`` (object) or not (context), with c = relevance / (its maximum + 1e-8)."""
    hot = torch.stack([image / (image.max() + 1e-8) > value for image in relevance])
    return hot if kind == 'object' else ~hot


def explicit_refill(images: Tensor, mask: Tensor, donors: Tensor) -> Tensor:
    """(B, C, H, W) ``images`` whose masked patches, (B, h, w), come from the images ``donors``, (B, h, w) int64. For a
    single fill, all patches of an image have the same donor."""
    (batch, _, height, width), (rows, cols) = images.shape, mask.shape[1:]
    source = torch.where(mask, donors, torch.arange(batch, device=images.device)[:, None, None])
    row, col = torch.arange(height, device=images.device)[:, None], torch.arange(width, device=images.device)
    source = source[:, row * rows // height, col * cols // width]
    return images[source, :, row, col].permute(0, 3, 1, 2)


def explicit_losses(
    student: nn.Module,
    teacher: nn.Module,
    classify: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    counterfactual: Tensor,
    weight: float = 30.0,
    **visible: Any,
) -> tuple[Tensor, Tensor]:
    """CE(logits(x), y) and ``weight`` · mean of (f(x̃) − f₀(x̃))², for the towers f and f₀.

    Args:
        images, counterfactual (Tensor): x and x̃, (B, 3, H, W), normalised.
        **visible: ``hidden`` or ``kept`` of :func:`explicit_features`, if patches are hidden and not refilled.
    """
    loss_cls = F.cross_entropy(classify(explicit_features(student, images)), labels)
    features = explicit_features(student, counterfactual, **visible)
    with torch.no_grad():
        target = explicit_features(teacher, counterfactual, **visible)
    return loss_cls, weight * ((features - target) ** 2).mean()
