"""Image features, and class embeddings as their class means."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.dataset import BaseDataset, pseudo_collate
from mmengine.dist import is_main_process
from rich.progress import track
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from ...distributed import cores_per_process, gather_shares, on_main, own_share
from ...errors import ConfigError
from .cache import cached, evaluating, hash_state, update_digest


def image_features(
    extract_feat: Callable[[Tensor], tuple],
    data_preprocessor: nn.Module,
    dataset: BaseDataset,
    indices: Sequence[int],
    batch_size: int = 64,
    num_workers: int | None = None,
) -> Tensor:
    """L2-normalised features (N, D), float32 on the CPU, of the images at ``indices``; arguments as
    :func:`prototype_class_weights`."""

    def features(inputs: Tensor) -> Tensor:
        with torch.no_grad(), torch.autocast(inputs.device.type, enabled=False):
            return F.normalize(extract_feat(inputs)[-1].float(), dim=-1).cpu()

    description = f'Features of {len(indices)} images'
    return map_images(features, data_preprocessor, dataset, indices, batch_size, num_workers, description)


def map_images(
    function: Callable[[Tensor], Tensor],
    data_preprocessor: nn.Module,
    dataset: BaseDataset,
    indices: Sequence[int],
    batch_size: int = 64,
    num_workers: int | None = None,
    description: str = '',
) -> Tensor:
    """What a function makes of images, in their order. Shows progress.

    The processes of a distributed run share the images; all must call this together, and all get all results.

    Args:
        function (Callable): Normalised images (B, 3, H, W) on the device of ``data_preprocessor`` to (B, ...).
        data_preprocessor (nn.Module): Maps a collated batch to a dict with ``inputs``.
        dataset (BaseDataset): An mmpretrain dataset whose pipeline ends in ``PackInputs``.
        indices (Sequence[int]): The images, at least one.
        batch_size (int): Images at once.
        num_workers (int, optional): Processes that read images. None: see :func:`fitting_workers`.
        description (str): Of the progress bar.

    Returns:
        Tensor: (N, ...) for N indices.
    """
    share = own_share(indices)
    batches = math.ceil(len(share) / batch_size)
    loader = DataLoader(
        Subset(dataset, share),
        batch_size,
        num_workers=fitting_workers(batches) if num_workers is None else num_workers,
        collate_fn=pseudo_collate,
    )
    shown = track(loader, description=description, disable=not is_main_process())
    return gather_shares(torch.cat([function(data_preprocessor(batch)['inputs']) for batch in shown]), len(indices))


def fitting_workers(batches: int) -> int:
    """How many processes should read ``batches`` batches: the cores of this process but one, at most 8; none for so few
    batches that they would hardly start."""
    return min(cores_per_process() - 1, batches // 4, 8)


def read_labels(dataset: BaseDataset, indices: Iterable[int]) -> Tensor:
    """Labels (N,), int64, without reading the images."""
    return torch.tensor([int(dataset.get_data_info(index)['gt_label']) for index in indices])


def prototype_class_weights(
    extract_feat: Callable[[Tensor], tuple],
    data_preprocessor: nn.Module,
    dataset: BaseDataset,
    indices: Iterable[int] | None = None,
    batch_size: int = 64,
    num_workers: int | None = None,
) -> Tensor:
    """Class means of image features: each L2-normalised, their mean per class, normalised again.

    Args:
        extract_feat: Normalised images (B, 3, H, W) to a tuple whose last entry is features (B, D).
        data_preprocessor: Maps a collated batch to a dict with ``inputs``.
        dataset: An mmpretrain dataset whose pipeline ends in ``PackInputs``.
        indices: The images to use, e.g. from :func:`draw_per_class`. None: all.

    Returns:
        (C, D) float32 on the CPU, rows L2-normalised; C is the number of classes in ``dataset.metainfo``, or the
        highest label + 1.

    Raises:
        ConfigError: A class without an image.
    """
    indices = list(range(len(dataset)) if indices is None else indices)
    labels = read_labels(dataset, indices)
    members = F.one_hot(labels, num_classes(dataset, labels.tolist())).float()  # (N, C)
    if (members.sum(dim=0) == 0).any():
        empty = [class_name(dataset, label) for label in range(members.shape[1]) if not members[:, label].any()]
        raise ConfigError(f'No image of the {len(empty)} classes {", ".join(empty[:5])} for their mean feature.')
    features = image_features(extract_feat, data_preprocessor, dataset, indices, batch_size, num_workers)
    return F.normalize(members.T @ features, dim=-1)


def draw_per_class(dataset: BaseDataset, per_class: int, seed: int = 0) -> list[int]:
    """Indices of ``per_class`` images of each class, drawn with a seed, ordered by class.

    Raises:
        ConfigError: A class with fewer images; the message gives its name and count.
    """
    labels = np.array([dataset.get_data_info(index)['gt_label'] for index in range(len(dataset))])
    rng = np.random.RandomState(seed)
    drawn, short, fewest = [], [], per_class
    for label in range(num_classes(dataset, labels.tolist())):
        members = rng.permutation(np.flatnonzero(labels == label))
        if len(members) < per_class:
            short.append(f'{class_name(dataset, label)} ({len(members)})')
            fewest = min(fewest, len(members))
        drawn += members[:per_class].tolist()
    if short:
        raise ConfigError(
            f'per_class={per_class}, but these {len(short)} classes have fewer images: {", ".join(short[:10])}. '
            f'Set model.head.class_weights.per_class to at most {max(fewest, 1)}, or give these classes more images.'
        )
    return drawn


def num_classes(dataset: BaseDataset, labels: Sequence[int]) -> int:
    """Number of classes by the dataset's class names, or by its labels if it has no names."""
    names = dataset.metainfo.get('classes')
    return len(names) if names else int(max(labels)) + 1


def class_name(dataset: BaseDataset, label: int) -> str:
    names = dataset.metainfo.get('classes')
    return names[label] if names else f'label {label}'


def cached_features(
    classifier: nn.Module,
    cfg: dict,
    dataset: BaseDataset,
    batch_size: int = 64,
    num_workers: int | None = None,
    cache_dir: str | None = None,
) -> Tensor:
    """L2-normalised features (N, D), float32 on the CPU, of all images of ``dataset``, which was built from ``cfg``;
    cached on disk per weights."""
    indices = range(len(dataset))

    def compute() -> Tensor:
        with evaluating(classifier):
            return image_features(
                classifier.extract_feat, classifier.data_preprocessor, dataset, indices, batch_size, num_workers
            )

    key = on_main(lambda: images_key('features', classifier, cfg, dataset, indices))
    return cached(key, compute, cache_dir)


def images_key(kind: str, classifier: nn.Module, cfg: dict, dataset: BaseDataset, indices: Iterable[int]) -> dict:
    """Everything that determines the features of some images."""
    preprocessor = classifier.data_preprocessor
    digest = hashlib.sha256()
    for index in indices:
        update_digest(digest, dataset.get_data_info(index))
    return dict(
        type=kind,
        dataset=cfg,
        images=digest.hexdigest(),
        weights=[hash_state(module) for module in (classifier.backbone, classifier.neck) if module is not None],
        tower=repr(classifier.backbone),  # activations, and sizes that no weight shows
        preprocessor={name: buffer.tolist() for name, buffer in preprocessor.named_buffers()},
        to_rgb=getattr(preprocessor, 'to_rgb', False),
    )
