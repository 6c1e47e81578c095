"""The fine-tuned and the pretrained tower on a data set with classes of its own."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import ConfigError, blame
from ..class_embeddings.build import build_class_weights
from ..teacher import OpenCLIPTeacher


class ZeroShotTransfer(nn.Module):
    """Classifies by given class embeddings instead of the head: logits = s · W z/‖z‖, z of the fine-tuned tower
    (``pred_logits``) and of the pretrained one (``pretrained_logits``).

    A k-NN gate, VRF and a relevance crop take no part. Like the teacher, it is kept out of ``named_modules()``.

    Args:
        pretrained (OpenCLIPTeacher): The pretrained tower.
        class_weights (Tensor): W, (C, D), rows L2-normalised.
        logit_scale (float): s.
    """

    class_weights: Tensor

    def __init__(self, pretrained: OpenCLIPTeacher, class_weights: Tensor, logit_scale: float) -> None:
        super().__init__()
        self.pretrained = pretrained
        self.register_buffer('class_weights', class_weights)
        self.logit_scale = logit_scale

    def logits(self, features: Tensor) -> Tensor:
        """(B, C) float32 of features (B, D), under autocast too."""
        with torch.autocast(features.device.type, enabled=False):
            return self.logit_scale * F.normalize(features.float(), dim=-1) @ self.class_weights.T

    def predict(self, classifier: nn.Module, images: Tensor, data_samples: list | None) -> list:
        """Predictions for normalised images (B, 3, H, W), as of mmpretrain's classifiers."""
        logits = self.logits(classifier.extract_feat(images)[-1])
        before = self.logits(self.pretrained(images))
        samples = classifier.head._get_predictions(logits, data_samples)
        for sample, row in zip(samples, before):
            sample.pretrained_logits = row
        return samples


def build_transfers(classifier: nn.Module, sets: Mapping[str, dict]) -> dict[str, ZeroShotTransfer]:
    """A transfer for each set, with one copy of the pretrained tower for all.

    Args:
        classifier (CounterfactualClassifier): It holds its pretrained weights.
        sets (Mapping[str, dict]): Metainfo by name, with ``class_weights`` (see
            :func:`mmcfmask.models.class_embeddings.build.build_class_weights`) and ``classes``.

    Raises:
        ConfigError: Class embeddings that cannot be made, or of another number or width than the set has classes and
            the tower features.
    """
    transfers: dict[str, ZeroShotTransfer] = {}
    pretrained = OpenCLIPTeacher()
    pretrained.setup(classifier.backbone, classifier.neck)
    device = classifier.head.fc.weight.device
    for name, metainfo in sets.items():
        with blame(f'the class_weights of {name}'):
            weights = build_class_weights(metainfo['class_weights'], classifier)
            wanted = (len(metainfo['classes']), classifier.head.in_channels)
            if tuple(weights.shape) != wanted:
                raise ConfigError(
                    f'{weights.shape[0]} class embeddings of width {weights.shape[1]}, but the set has {wanted[0]} '
                    f'classes, and the image features have width {wanted[1]}'
                )
        scale = getattr(classifier.backbone, 'logit_scale', 100.0)
        transfers[name] = ZeroShotTransfer(pretrained, weights.to(device), scale)
    return transfers
