"""A relevance map without the tokens that a vision transformer uses as registers."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

SMOOTHINGS = ('mean', 'median')


def find_outliers(norms: Tensor, deviations: float) -> Tensor:
    """Patches that a vision transformer uses for something else than the image there (Darcet et al., "Vision
    Transformers Need Registers", ICLR 2024): the norm of their token is far above that of the others.

    Outlier: norm > median + ``deviations`` × median absolute deviation, over the patches of the image.

    Args:
        norms (Tensor): (B, n) float32, norms of the tokens of the patches that enter the last block.
        deviations (float): At least 0.

    Returns:
        Tensor: (B, n) bool.
    """
    median = norms.median(dim=1, keepdim=True).values
    spread = (norms - median).abs().median(dim=1, keepdim=True).values
    return norms > median + deviations * spread


def smooth(relevance: Tensor, how: str) -> Tensor:
    """Mean or median of the 3 × 3 patches around each patch; at the border, the border repeats.

    Args:
        relevance (Tensor): (B, h, w).
        how (str): 'mean' or 'median'.

    Returns:
        Tensor: (B, h, w).
    """
    padded = F.pad(relevance[:, None], (1, 1, 1, 1), mode='replicate')
    around = F.unfold(padded, 3).unflatten(2, relevance.shape[1:])  # (B, 9, h, w)
    return around.mean(dim=1) if how == 'mean' else around.median(dim=1).values
