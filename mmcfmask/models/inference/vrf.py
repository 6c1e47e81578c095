"""VRF: both models answer, by the distance to training images that only fine-tuning got right."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.dataset import BaseDataset
from mmengine.logging import print_log
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from ...errors import ConfigError
from ...evaluation.accuracy import mixture_scores
from ...precision import no_autocast
from ...ranges import Count, Finite, OpenShare, Positive, Whole
from ..class_embeddings.features import map_images
from .gate import Gate

TEMPERATURES = (0.1, 10.0)
"""Lowest and highest temperature, the range in which the authors' search starts."""


@no_autocast()
def failure_distance(features: Tensor, failures: Tensor, k: int) -> Tensor:
    """Squared distance ‖v − v₍ₖ₎‖² of each image to the k-th nearest image of the zero-shot failure set (Zhu et al.,
    "Robust Fine-tuning of Zero-shot Models via Variance Reduction", NeurIPS 2024). Infinite without failures.

    The paper writes the distance; its code squares it, and its constants a and b are for squares.

    Args:
        features (Tensor): (B, D), L2-normalised.
        failures (Tensor): (V, D), L2-normalised, V ≥ k or V = 0.
        k (int): At least 1.

    Returns:
        Tensor: (B,), in [0, 4] or infinite.
    """
    if not len(failures):
        return features.new_full((len(features),), torch.inf)
    similarity = features @ failures.to(features.dtype).T
    return (2 - 2 * similarity.topk(k, dim=1).values[:, -1]).clamp(min=0)  # ‖a − b‖² of unit vectors


def fine_tuned_weight(distance: Tensor, a: float, b: float) -> Tensor:
    """w = σ(−(d − a) / b), the weight of the fine-tuned model, (B,) in [0, 1] (Zhu et al. 2024)."""
    return torch.sigmoid(-(distance - a) / b)


def confidence_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature T at which mean confidence, max softmax(l / T), equals accuracy, as in the authors' code. It is
    found by bisection, since confidence falls with T, within :data:`TEMPERATURES`.

    Args:
        logits (Tensor): (N, C) of held-out images.
        labels (Tensor): (N,) int64.
    """
    logits = logits.double()
    accuracy = (logits.argmax(dim=1) == labels).double().mean()
    low, high = TEMPERATURES
    for _ in range(50):
        middle = (low * high) ** 0.5
        too_sure = (logits / middle).softmax(dim=1).amax(dim=1).mean() > accuracy
        low, high = (middle, high) if too_sure else (low, middle)
    return high


@dataclass
class Fit:
    """What is found once for the weights of a fine-tuned model.

    Attributes:
        failures (Tensor): (V, D), its L2-normalised features of the zero-shot failure set.
        k (int): The neighbour to which distances are measured.
        temperature (float): T of the fine-tuned model.
    """

    failures: Tensor
    k: int
    temperature: float


@MODELS.register_module()
class VRF(Gate):
    """Mixes the predictions of the fine-tuned and the pretrained model for every image::

        p = w softmax(l / T) + (1 − w) softmax(l₀ / T₀)        w = σ(−(d − a) / b)

    d is the distance to the zero-shot failure set: training images that the pretrained model gets wrong and the
    fine-tuned one right (:func:`failure_distance`, in the features of the fine-tuned tower). Zhu et al. 2024.

    - The temperatures are fitted on held-out images (:func:`confidence_temperature`); in the authors' code, on the ID
      test set.
    - Where no training image is a failure, fine-tuning has gained nothing on them: d is infinite, w = 0, and the
      pretrained model answers, with T₀.
    - k is a share of the failure set, and at least 1. In the authors' code it is 1000 times the share of the training
      images that are failures: 0.08 % of the failure set of ImageNet.

    On a set with some of the head's classes, both softmaxes are over the classes of the set. It costs a second forward
    pass, and for every model (weights, precision) one pass over the held-out images and over the training images that
    the pretrained model gets wrong.

    Args:
        dataset, held_out, batch_size, num_workers, cache_dir: As of :class:`Gate`.
        a, b (float): Of w. The authors chose them on ImageNet.
        k_share (float): k as a share of the failure set, in (0, 1).

    Raises:
        ConfigError: With a relevance crop, of which the paper has none.
    """

    def __init__(
        self,
        dataset: dict,
        held_out: dict,
        a: Finite = 1.5,
        b: Positive = 0.6,
        k_share: OpenShare = 0.001,
        batch_size: Count = 64,
        num_workers: Whole | None = None,
        cache_dir: str | None = None,
    ) -> None:
        if b <= 0 or not 0 < k_share < 1:
            raise ConfigError(f'VRF needs b above 0 and k_share in (0, 1), but got b={b:g}, k_share={k_share:g}')
        super().__init__(dataset, held_out, batch_size, num_workers, cache_dir)
        self.a, self.b, self.k_share = a, b, k_share

    def setup(self, classifier: nn.Module) -> None:
        """Copy the classifier, which holds its pretrained weights, and find what it gets wrong."""
        if classifier.crop_scale is not None:
            raise ConfigError('VRF predicts from the whole image: leave out --relevance-crop (model.crop_scale=None)')
        super().setup(classifier)
        self.training_images, features, labels = self._read(classifier, self.dataset)
        wrong = self.zero_shot.logits(features).argmax(dim=1) != labels
        self.wrong = wrong.nonzero().flatten().tolist()
        self.held_out_images, features, held_out_labels = self._read(classifier, self.held_out)
        self.zero_shot_temperature = confidence_temperature(self.zero_shot.logits(features), held_out_labels)
        self.register_buffer('wrong_labels', labels[wrong])
        self.register_buffer('held_out_labels', held_out_labels)
        self.fits: dict[Hashable, Fit] = {}

    def _apply(self, fn: Callable, *args: Any, **kwargs: Any) -> nn.Module:
        self.fits = {}  # they are on the old device
        return super()._apply(fn, *args, **kwargs)

    @torch.no_grad()
    def fit(self, classifier: nn.Module) -> Fit:
        """Failure set and temperature of the current weights of ``classifier``, found once."""
        key = self._key(classifier, self.wrong_labels.device.type)
        if key not in self.fits:
            held_out = range(len(self.held_out_images))
            _, logits = self._run(classifier, self.held_out_images, held_out, 'held-out images')
            temperature = confidence_temperature(logits, self.held_out_labels)
            failures = logits.new_empty(0, classifier.head.in_channels)
            if self.wrong:
                what = 'training images that the pretrained model gets wrong'
                features, logits = self._run(classifier, self.training_images, self.wrong, what)
                failures = features[logits.argmax(dim=1) == self.wrong_labels]
            k = max(1, round(self.k_share * len(failures)))
            self.fits[key] = Fit(failures, k, temperature)
            print_log(
                f'VRF: {len(failures)} of {len(self.training_images)} training images are zero-shot failures that '
                f'fine-tuning mended, k={k}; temperatures {temperature:.3f} (fine-tuned) and '
                f'{self.zero_shot_temperature:.3f} (pretrained)'
                + ('' if len(failures) else '. Without such an image the pretrained model answers for all'),
                'current',
            )
        return self.fits[key]

    def _run(
        self, classifier: nn.Module, dataset: BaseDataset, indices: Sequence[int], what: str
    ) -> tuple[Tensor, Tensor]:
        """L2-normalised features (N, D) and logits (N, C) of images of a dataset, float32."""

        def run(images: Tensor) -> Tensor:
            feats = classifier.extract_feat(images)
            return torch.cat([F.normalize(feats[-1].float(), dim=-1), classifier.head(feats).float()], dim=1)

        sizes = self.reading['batch_size'], self.reading['num_workers']
        found = map_images(run, classifier.data_preprocessor, dataset, indices, *sizes, f'{len(indices)} {what}')
        width = classifier.head.in_channels
        return found[:, :width], found[:, width:]

    def predict(self, classifier: nn.Module, images: Tensor, data_samples: list | None) -> list:
        """The mixture makes the predictions. Its parts are in ``mixed_logits`` (2, C) and ``mixed_weights`` (2,)."""
        logits, weights = self(classifier, images)
        data_samples = classifier.head._get_predictions(mixture_scores(logits, weights), data_samples)
        for sample, parts, shares in zip(data_samples, logits, weights):
            sample.mixed_logits, sample.mixed_weights = parts, shares
        return data_samples

    @torch.no_grad()
    def forward(self, classifier: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
        """l / T and l₀ / T₀ (B, 2, C), and w and 1 − w (B, 2), float32, for images (B, 3, H, W)."""
        fit = self.fit(classifier)
        feats = classifier.extract_feat(images)
        distance = failure_distance(F.normalize(feats[-1].float(), dim=-1), fit.failures, fit.k)
        weight = fine_tuned_weight(distance, self.a, self.b)
        with torch.autocast(images.device.type, enabled=False):  # as its temperature
            pretrained = self.zero_shot.logits(self.zero_shot(images))
        logits = classifier.head(feats).float() / fit.temperature, pretrained.float() / self.zero_shot_temperature
        return torch.stack(logits, dim=1), torch.stack([weight, 1 - weight], dim=1)
