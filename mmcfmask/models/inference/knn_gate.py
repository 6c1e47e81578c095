"""k-NN gate: the fine-tuned model answers for images like its training images, the zero-shot model for all others."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.dataset import BaseDataset
from mmpretrain.registry import DATASETS, MODELS
from torch import Tensor, nn

from ...errors import ConfigError
from ...precision import no_autocast
from ...ranges import Count, OpenShare, Whole
from ..class_embeddings.features import class_name, map_images, num_classes
from .gate import Gate
from .relevance_crop import predict_with_crop


@no_autocast()
def class_similarity(features: Tensor, classes: Tensor, train_features: Tensor, train_labels: Tensor, k: int) -> Tensor:
    """Cosine similarity of each image to the k-th most similar training image of its predicted class.

    Args:
        features (Tensor): (B, D), L2-normalised.
        classes (Tensor): (B,) int64, the predicted classes.
        train_features (Tensor): (N, D), L2-normalised features of the training images.
        train_labels (Tensor): (N,) int64.
        k (int): At most the number of training images of any class.

    Returns:
        Tensor: (B,), of the dtype of ``train_features``, in [-1, 1].
    """
    similarity = train_features.new_empty(len(features))
    for label in classes.unique():  # by class: all images times all training images would not fit for ImageNet
        rows = classes == label
        members = features[rows].to(train_features.dtype) @ train_features[train_labels == label].T
        similarity[rows] = members.topk(k, dim=1).values[:, -1]
    return similarity


def conformal_threshold(held_out: Tensor, level: float) -> float:
    """The lowest similarity whose conformal p-value is above ``level``::

        p(x) = (1 + #{held-out images at most as similar as x}) / (n + 1)

    An image from the distribution of the held-out images falls below the threshold with probability ``level`` at most,
    if its similarity is measured in the same way (Bates et al., "Testing for Outliers with Conformal p-values", Annals
    of Statistics 2023, section 1.2).

    Args:
        held_out (Tensor): (n,) similarities of the held-out images.
        level (float): In (0, 1).

    Raises:
        ConfigError: See :func:`number_below`.
    """
    return held_out.sort().values[number_below(len(held_out), level) - 1].item()


def number_below(images: int, level: float) -> int:
    """p ≤ ``level`` holds if fewer than this number of ``images`` held-out images are at most as similar.

    Raises:
        ConfigError: Fewer than 1 / level - 1 held-out images, so that no p-value can be as low as ``level``.
    """
    number = math.floor(level * (images + 1) + 1e-9)
    if number < 1:
        raise ConfigError(
            f'level={level:g} needs at least {math.ceil(1 / level) - 1} held-out images, but there are {images}'
        )
    return number


@MODELS.register_module()
class KNNGate(Gate):
    """Chooses between the fine-tuned and the zero-shot model for every image::

        scores(x) = fine-tuned logits   if x is similar to the training images of the predicted class
                    zero-shot logits    otherwise

    Fine-tuning helps on images like the training images and costs robustness on others. The features of the pretrained
    tower measure similarity, because they were not fitted to the training images: :func:`class_similarity` is compared
    with the :func:`conformal_threshold` of held-out images. The fine-tuned model predicts the class of held-out images
    too. With their true class instead, the two similarities would be measured in different ways, and many more images
    of the training distribution than ``level`` would be rejected. No distribution shift is used.

    It costs a second forward pass, in float32 under autocast too, and one pass over the held-out images for every model
    (weights, precision, crop scale).

    Ours, not published. Zhu et al., "Robust Fine-tuning of Zero-shot Models via Variance Reduction" (NeurIPS 2024)
    weigh the two models in a similar way, by the distance to images that the zero-shot model gets wrong.

    Args:
        dataset (dict): The training images, an mmpretrain dataset with a test pipeline.
        held_out (dict): Images of the same distribution that were not trained on.
        k (int): Compare with the k-th most similar training image.
        level (float): Share of the held-out images that the zero-shot model may answer for, in (0, 1).
        batch_size, num_workers (int): For reading the images, once.
        cache_dir (str, optional): As in :func:`mmcfmask.models.class_embeddings.build.build_class_weights`.

    Raises:
        ConfigError: A class with fewer than ``k`` images, too few held-out images for ``level``, or arguments outside
            their range.
    """

    def __init__(
        self,
        dataset: dict,
        held_out: dict,
        k: Count = 5,
        level: OpenShare = 0.02,
        batch_size: Count = 64,
        num_workers: Whole | None = None,
        cache_dir: str | None = None,
    ) -> None:
        if k < 1 or not 0 < level < 1:
            raise ConfigError(f'a k-NN gate needs k of at least 1 and level in (0, 1), but got k={k}, level={level:g}')
        super().__init__(dataset, held_out, batch_size, num_workers, cache_dir)
        self.k = k
        self.level = level

    def setup(self, classifier: nn.Module) -> None:
        """Copy the classifier, which holds its pretrained weights, and compute its features of the training and the
        held-out images."""
        super().setup(classifier)
        dataset, features, labels = self._read(classifier, self.dataset)
        self._check_counts(dataset, labels)
        _, held_out, _ = self._read(classifier, self.held_out)
        number_below(len(held_out), self.level)  # an error now, and not in a test
        self.register_buffer('train_features', features)
        self.register_buffer('train_labels', labels)
        self.register_buffer('held_out_features', held_out)
        self.thresholds: dict[Hashable, float] = {}

    def predict(self, classifier: nn.Module, images: Tensor, data_samples: list | None) -> list:
        """The chosen scores make the predictions, and ``answered_by_zero_shot`` (bool) says whose they are."""
        scores = classifier.scores(images)
        scores, answered_by_zero_shot = self(
            images,
            scores,
            self.threshold(classifier, classifier.scores),
            classifier.crop_scale,
            **classifier.data_preprocessor.relevance,
        )
        data_samples = classifier.head._get_predictions(scores, data_samples)
        for sample, zero_shot in zip(data_samples, answered_by_zero_shot.tolist()):
            sample.set_field(zero_shot, 'answered_by_zero_shot', dtype=bool)
        return data_samples

    @torch.no_grad()
    def threshold(self, classifier: nn.Module, scores: Callable[[Tensor], Tensor]) -> float:
        """The similarity that an image must reach, for the current weights of ``classifier``.

        Args:
            classifier (nn.Module): The fine-tuned model.
            scores (Callable): Its logits (B, C) of images (B, 3, H, W).
        """
        key = self._key(classifier, self.train_features.device.type)
        if key not in self.thresholds:
            dataset = DATASETS.build(self.held_out)
            predicted = map_images(
                lambda images: scores(images).argmax(dim=1),
                classifier.data_preprocessor,
                dataset,
                range(len(dataset)),
                self.reading['batch_size'],
                self.reading['num_workers'],
                f'Predictions for {len(dataset)} held-out images',
            )
            similarity = self._similarity(self.held_out_features, predicted)
            self.thresholds[key] = conformal_threshold(similarity, self.level)
        return self.thresholds[key]

    def _similarity(self, features: Tensor, classes: Tensor) -> Tensor:
        return class_similarity(features, classes, self.train_features, self.train_labels, self.k)

    def _check_counts(self, dataset: BaseDataset, labels: Tensor) -> None:
        counts = torch.bincount(labels, minlength=num_classes(dataset, labels.tolist())).tolist()
        short = [f'{class_name(dataset, label)} ({count})' for label, count in enumerate(counts) if count < self.k]
        if short:
            raise ConfigError(
                f'knn_gate.k={self.k}, but these {len(short)} classes have fewer images in knn_gate.dataset: '
                f'{", ".join(short[:10])}'
            )

    @torch.no_grad()
    def forward(
        self, images: Tensor, logits: Tensor, threshold: float, crop_scale: float | None = None, **relevance: Any
    ) -> tuple[Tensor, Tensor]:
        """Choose between the models.

        Args:
            images (Tensor): (B, 3, H, W), normalised.
            logits (Tensor): (B, C) of the fine-tuned model.
            threshold (float): See :meth:`threshold`.
            crop_scale (float, optional): The zero-shot model predicts by :func:`predict_with_crop` too.
            **relevance: Options of its map, see :func:`mmcfmask.counterfactual.relevance_map`.

        Returns:
            tuple[Tensor, Tensor]: Scores (B, C), and (B,) bool, True where they are zero-shot.
        """
        with torch.autocast(images.device.type, enabled=False):  # as the training features and the threshold
            features = self.zero_shot(images)
            similarity = self._similarity(F.normalize(features, dim=-1), logits.argmax(dim=1))
            answered_by_zero_shot = similarity < threshold
            if crop_scale is None or not answered_by_zero_shot.any():
                answers = self.zero_shot.logits(features[answered_by_zero_shot])
            else:
                answers = predict_with_crop(
                    self.zero_shot.backbone,
                    self.zero_shot.classify,
                    images[answered_by_zero_shot],
                    crop_scale,
                    **relevance,
                )
        return logits.index_put((answered_by_zero_shot,), answers.to(logits.dtype)), answered_by_zero_shot
