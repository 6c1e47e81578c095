"""The fine-tuned model answers for images like those it was trained on, its start for all others."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from mmpretrain.registry import DATASETS, MODELS
from torch import Tensor, nn

from ...compat import autocast_dtype, no_autocast
from ...errors import ConfigError
from ...ranges import Count, OpenShare, Whole
from ..class_embeddings.features import cached_features, class_name, load_batches, num_classes, read_labels
from ..interpolation import fingerprint
from ..teacher import OpenCLIPTeacher
from .relevance_crop import predict_with_crop


@no_autocast()
def class_similarity(features: Tensor, classes: Tensor, bank: Tensor, bank_labels: Tensor, neighbours: int) -> Tensor:
    """Cosine similarity of each image to the k-th most similar training image of the class it is taken for.

    Args:
        features (Tensor): (B, D), L2-normalised.
        classes (Tensor): (B,) int64, the class that each is taken for.
        bank (Tensor): (N, D), L2-normalised features of training images.
        bank_labels (Tensor): (N,) int64.
        neighbours (int): k, at most the number of training images of any class.

    Returns:
        Tensor: (B,), of the dtype of ``bank``, in [-1, 1].
    """
    similarity = bank.new_empty(len(features))
    for label in classes.unique():  # by class: all images with all training images would not fit for ImageNet
        rows = classes == label
        members = features[rows].to(bank.dtype) @ bank[bank_labels == label].T
        similarity[rows] = members.topk(neighbours, dim=1).values[:, -1]
    return similarity


def conformal_threshold(held_out: Tensor, level: float) -> float:
    """What an image's similarity must reach for its conformal p-value to be above ``level``::

        p(x) = (1 + #{held-out images at most as similar as x}) / (n + 1)

    An image drawn as the held-out ones were falls below it with probability ``level`` at most (Bates et al., "Testing
    for Outliers with Conformal p-values", Annals of Statistics 2023, section 1.2), if its similarity is measured as
    theirs.

    Args:
        held_out (Tensor): (n,) similarities of the held-out images.
        level (float): In (0, 1).

    Raises:
        ValueError: As :func:`number_below`.
    """
    return held_out.sort().values[number_below(len(held_out), level) - 1].item()


def number_below(images: int, level: float) -> int:
    """With fewer held-out images than this as low, of ``images``, p ≤ ``level``.

    Raises:
        ValueError: Fewer than 1 / level - 1 held-out images, too few for any p-value to be as low as ``level``.
    """
    number = math.floor(level * (images + 1) + 1e-9)
    if number < 1:
        raise ConfigError(
            f'level={level:g} needs at least {math.ceil(1 / level) - 1} held-out images, but there are {images}'
        )
    return number


@MODELS.register_module()
class KNNGate(nn.Module):
    """A choice between the fine-tuned model and its start, made for every image::

        scores(x) = fine-tuned logits   if x is like the training images of the class that the fine-tuned model sees in
        it
                    start logits        otherwise

    Fine-tuning helps on images like those it saw and costs robustness on others; what an image is like is measured by
    the start, whose features were never fitted to the training images: by :func:`class_similarity`, against the
    :func:`conformal_threshold` of held-out images. Those, too, are compared with the class that the fine-tuned model
    sees in them, and not with their own: or the similarities of a model that errs would be measured in two ways, and
    many more images than ``level`` of the training distribution be sent away. No shift has a part in it. Costs a second
    forward pass, in float32 under autocast too, and one over the held-out images for every model (weights, precision,
    number of looks).

    Ours, not published; it is near to the weights that Zhu et al., "Robust Fine-tuning of Zero-shot Models via Variance
    Reduction" (NeurIPS 2024) give the two models by the distance to what the start gets wrong.

    Its owner keeps it out of ``named_modules()``, as the teacher: it is not part of checkpoints, whose start it
    therefore needs.

    Args:
        dataset (dict): The training images, an mmpretrain dataset with the pipeline of a test.
        held_out (dict): Images of the same distribution, none of them trained on.
        neighbours (int): k.
        level (float): Share of held-out images that the start may answer for, in (0, 1).
        batch_size, num_workers (int): Of reading the images, once.
        cache_dir (str, optional): As in :func:`mmcfmask.models.class_embeddings.build.build_class_weights`.

    Raises:
        ValueError: A class with fewer than ``neighbours`` images, too few held-out images for ``level``, or arguments
            outside their range.
    """

    def __init__(
        self,
        dataset: dict,
        held_out: dict,
        neighbours: Count = 5,
        level: OpenShare = 0.02,
        batch_size: Count = 64,
        num_workers: Whole = 0,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__()
        if neighbours < 1 or not 0 < level < 1:
            raise ConfigError(
                f'a gate needs neighbours of at least 1 and a level in (0, 1), but got neighbours={neighbours}, '
                f'level={level:g}'
            )
        if dataset == held_out:
            raise ConfigError(
                'the gate has the same dataset and held_out: the held-out images must be others than the training '
                'images'
            )
        self.dataset = dataset
        self.held_out = held_out
        self.neighbours = neighbours
        self.level = level
        self.reading = dict(batch_size=batch_size, num_workers=num_workers, cache_dir=cache_dir)

    def start_from(self, classifier: nn.Module) -> None:
        """Keep a copy of a classifier that holds its pre-trained weights, and what it makes of the training and the
        held-out images."""
        self.start = OpenCLIPTeacher()
        self.start.start_from(classifier.backbone, classifier.neck, classifier.head)
        (bank, labels), (held_out, _) = (self._read(classifier, cfg) for cfg in (self.dataset, self.held_out))
        number_below(len(held_out), self.level)  # an error now, and not in a test
        self.register_buffer('bank', bank)
        self.register_buffer('bank_labels', labels)
        self.register_buffer('held_out_features', held_out)
        self.thresholds: dict[tuple, float] = {}

    @torch.no_grad()
    def threshold(self, classifier: nn.Module, scores: Callable[[Tensor], Tensor]) -> float:
        """What the similarity of an image must reach, for the weights that ``classifier`` has now.

        Args:
            classifier (nn.Module): The fine-tuned model, of which :meth:`start_from` saw the start.
            scores (Callable): How it makes logits (B, C) of images (B, 3, H, W).
        """
        key = (classifier.crop_scale, autocast_dtype(self.bank.device.type), *fingerprint(classifier).tolist())
        if key not in self.thresholds:
            dataset = DATASETS.build(self.held_out)
            batches = load_batches(
                dataset,
                classifier.data_preprocessor,
                self.reading['batch_size'],
                self.reading['num_workers'],
                f'Predictions for {len(dataset)} held-out images',
            )
            predicted = torch.cat([scores(images).argmax(dim=1) for images in batches])
            similarity = class_similarity(
                self.held_out_features, predicted, self.bank, self.bank_labels, self.neighbours
            )
            self.thresholds[key] = conformal_threshold(similarity, self.level)
        return self.thresholds[key]

    def _read(self, classifier: nn.Module, cfg: dict) -> tuple[Tensor, Tensor]:
        """Features (N, D) and labels (N,) of a dataset."""
        dataset = DATASETS.build(cfg)
        labels = read_labels(dataset, range(len(dataset)))
        if cfg is self.dataset:
            counts = torch.bincount(labels, minlength=num_classes(dataset, labels.tolist())).tolist()
            short = [
                f'{class_name(dataset, label)} ({count})'
                for label, count in enumerate(counts)
                if count < self.neighbours
            ]
            if short:
                raise ConfigError(
                    f'gate.neighbours={self.neighbours}, but these {len(short)} classes have fewer images in '
                    f'gate.dataset: {", ".join(short[:10])}'
                )
        return cached_features(classifier, cfg, dataset, **self.reading), labels

    def train(self, mode: bool = True) -> KNNGate:
        """Stay in eval mode."""
        return super().train(False)

    def __deepcopy__(self, memo: dict) -> KNNGate:
        return self

    @torch.no_grad()
    def forward(
        self, images: Tensor, logits: Tensor, threshold: float, crop_scale: float | None = None
    ) -> tuple[Tensor, Tensor]:
        """Scores (B, C) of ``images`` (B, 3, H, W), where the fine-tuned model gives ``logits`` (B, C) and has this
        :meth:`threshold`; and bool (B,), True where they are those of the start, by :func:`predict_with_crop` with a
        ``crop_scale``."""
        with torch.autocast(images.device.type, enabled=False):  # as the bank and the threshold
            features = self.start(images)
            similarity = class_similarity(
                F.normalize(features, dim=-1), logits.argmax(dim=1), self.bank, self.bank_labels, self.neighbours
            )
            answered_by_zero_shot = similarity < threshold
            if crop_scale is None or not answered_by_zero_shot.any():
                answers = self.start.logits(features[answered_by_zero_shot])
            else:
                answers = predict_with_crop(
                    self.start.backbone, self.start.classify, images[answered_by_zero_shot], crop_scale
                )
        return logits.index_put((answered_by_zero_shot,), answers.to(logits.dtype)), answered_by_zero_shot
