"""Linear probing: logistic regression on the features of a frozen tower."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from rich.progress import track
from torch import Tensor

from ...errors import ConfigError

STRENGTHS = tuple(np.logspace(-7, 2, 50).tolist())
"""Values of C to choose from: 50 in the range of Kumar et al. (2022)."""
ROWS_PER_CHUNK = 65536


class LinearProbe(NamedTuple):
    """logits = features · weightᵀ + bias.

    Attributes:
        weight (Tensor): (C, D).
        bias (Tensor): (C,).
        strength (float): The C it was fitted with.
        accuracy (float): In percent, on the held-out images.
        nll (float): Mean cross-entropy on the held-out images.
    """

    weight: Tensor
    bias: Tensor
    strength: float
    accuracy: float
    nll: float


def logistic_regression(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    strength: float,
    start: tuple[Tensor, Tensor] | None = None,
    max_iter: int = 100,
) -> tuple[Tensor, Tensor]:
    """Multinomial logistic regression with an L2 penalty on the weights, not the biases, by L-BFGS::

        min over W, b of   ½ ‖W‖² + C Σ_i CE(W x_i + b, y_i)

    Args:
        features (Tensor): (N, D) float.
        labels (Tensor): (N,) int64.
        num_classes (int): Number of classes.
        strength (float): C > 0; small values regularise strongly.
        start (tuple[Tensor, Tensor], optional): W and b to start from. Defaults to zeros.
        max_iter (int): Maximum number of iterations.

    Returns:
        tuple[Tensor, Tensor]: W (num_classes, D) and b (num_classes,).
    """
    if start is None:
        start = features.new_zeros(num_classes, features.shape[1]), features.new_zeros(num_classes)
    weight, bias = (tensor.clone().requires_grad_() for tensor in start)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=max_iter, tolerance_grad=1e-6, tolerance_change=1e-9, line_search_fn='strong_wolfe'
    )

    @torch.enable_grad()
    def closure() -> Tensor:
        """The objective divided by C · N, and its gradient; in chunks, because the logits of all images may not fit."""
        optimizer.zero_grad()
        total = weight.square().sum() / (2 * strength * len(features))
        total.backward()
        total = total.detach()
        for x, y in zip(features.split(ROWS_PER_CHUNK), labels.split(ROWS_PER_CHUNK)):
            loss = F.cross_entropy(x @ weight.T + bias, y, reduction='sum') / len(features)
            loss.backward()
            total += loss.detach()
        return total

    optimizer.step(closure)
    return weight.detach(), bias.detach()


def fit_linear_probe(
    features: Tensor,
    labels: Tensor,
    held_out_features: Tensor,
    held_out_labels: Tensor,
    num_classes: int,
    strengths: Sequence[float] = STRENGTHS,
) -> LinearProbe:
    """Logistic regression with the strength that is best on held-out images: the linear probe of LP-FT (Kumar et al.,
    "Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution", ICLR 2022).

    Features are shifted and scaled, by one number each, to mean 0 and standard deviation 1, so that a strength means
    the same for any tower. Strengths are tried from the strongest penalty to the weakest, each fit initialised with the
    previous one. Among the probes within one standard error of the best accuracy, the one with the lowest cross-entropy
    wins: accuracy ignores confidence, and the strongest penalties rank the classes correctly with weights of almost 0.
    The result applies to the original features. A best strength at an end of ``strengths`` logs a warning.

    Args:
        features, held_out_features (Tensor): (N, D) and (M, D) float32.
        labels, held_out_labels (Tensor): (N,) and (M,) int64.
        num_classes (int): Number of classes.
        strengths (Sequence[float]): Values of C.

    Raises:
        ConfigError: No image or no strength; features that are not finite, or all equal.
    """
    if not len(features) or not len(held_out_features) or not len(strengths):
        raise ConfigError(
            f'a linear probe needs images and strengths, but got {len(features)} training images, '
            f'{len(held_out_features)} held-out images and {len(strengths)} strengths'
        )
    for name, values in {'training images': features, 'held-out images': held_out_features}.items():
        if not values.isfinite().all():
            raise ConfigError(f'the features of the {name} of a linear probe are not finite: the image tower is broken')
    if features.min() == features.max():
        raise ConfigError('all features of a linear probe are equal: the image tower is broken')
    mean, std = features.mean(), features.std()
    x, held_out_x = (features - mean) / std, (held_out_features - mean) / std
    probes, fitted, strengths = [], None, sorted(strengths)
    for strength in track(strengths, description='Linear probe'):
        fitted = logistic_regression(x, labels, num_classes, strength, fitted)
        weight, bias = fitted
        logits = held_out_x @ weight.T + bias
        accuracy = (logits.argmax(dim=1) == held_out_labels).double().mean().item()
        nll = F.cross_entropy(logits, held_out_labels).item()
        probes.append(LinearProbe(weight / std, bias - mean / std * weight.sum(dim=1), strength, 100 * accuracy, nll))
    highest = max(probe.accuracy for probe in probes)
    error = math.sqrt(highest * (100 - highest) / len(held_out_labels))
    best = min((probe for probe in probes if probe.accuracy >= highest - error), key=lambda probe: probe.nll)
    if len(strengths) > 1 and best.strength in (strengths[0], strengths[-1]):
        side = 'smallest' if best.strength == strengths[0] else 'largest'
        print_log(
            f'the linear probe is best at the {side} C of the list, {best.strength:g}: a better one may lie beyond it',
            'current',
            level=logging.WARNING,
        )
    return best
