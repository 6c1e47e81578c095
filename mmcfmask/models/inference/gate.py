"""The pretrained model beside the fine-tuned one in a test: what the k-NN gate and VRF have in common."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from mmengine.dataset import BaseDataset
from mmpretrain.registry import DATASETS
from torch import Tensor, nn

from ...errors import ConfigError
from ...precision import autocast_dtype
from ..class_embeddings.features import cached_features, read_labels
from ..interpolation import fingerprint
from ..teacher import OpenCLIPTeacher


class Gate(nn.Module):
    """Decides how much the fine-tuned and the pretrained model say, by training and held-out images.

    Its owner keeps it out of ``named_modules()``, like the teacher. Checkpoints lack it, so a test with a gate
    needs the pretrained weights.

    Args:
        dataset (dict): The training images, an mmpretrain dataset with a test pipeline.
        held_out (dict): Images of the same distribution that were not trained on.
        batch_size (int): For reading the images, once.
        num_workers (int, optional): As of :func:`mmcfmask.models.class_embeddings.features.map_images`.
        cache_dir (str, optional): As in :func:`mmcfmask.models.class_embeddings.build.build_class_weights`.

    Raises:
        ConfigError: The held-out images are the training images.
    """

    zero_shot: OpenCLIPTeacher

    def __init__(
        self,
        dataset: dict,
        held_out: dict,
        batch_size: int = 64,
        num_workers: int | None = None,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__()
        if dataset == held_out:
            raise ConfigError(
                'knn_gate.dataset and knn_gate.held_out are the same: held-out images must not be training images'
            )
        self.dataset = dataset
        self.held_out = held_out
        self.reading: dict[str, Any] = dict(batch_size=batch_size, num_workers=num_workers, cache_dir=cache_dir)

    def setup(self, classifier: nn.Module) -> None:
        """Copy the classifier, which holds its pretrained weights."""
        self.zero_shot = OpenCLIPTeacher()
        self.zero_shot.setup(classifier.backbone, classifier.neck, classifier.head)

    def predict(self, classifier: nn.Module, images: Tensor, data_samples: list | None) -> list:
        """Predictions for normalised images (B, 3, H, W), as of mmpretrain's classifiers.

        Args:
            classifier (CounterfactualClassifier): The fine-tuned model.
            images (Tensor): (B, 3, H, W), normalised.
            data_samples (list, optional): Of the images.
        """
        raise NotImplementedError

    def _read(self, classifier: nn.Module, cfg: dict) -> tuple[BaseDataset, Tensor, Tensor]:
        """A dataset, its features (N, D) of the pretrained tower, L2-normalised, and its labels (N,)."""
        dataset = DATASETS.build(cfg)
        labels = read_labels(dataset, range(len(dataset)))
        return dataset, cached_features(classifier, cfg, dataset, **self.reading), labels

    def _key(self, classifier: nn.Module, device: str) -> Hashable:
        """What the predictions of a classifier depend on: weights, precision, crop and map."""
        options = tuple(sorted(classifier.data_preprocessor.relevance.items()))
        return (classifier.crop_scale, options, autocast_dtype(device), *fingerprint(classifier).tolist())

    def train(self, mode: bool = True) -> Gate:
        """Stay in eval mode."""
        return super().train(False)

    def __deepcopy__(self, memo: dict) -> Gate:
        return self
