"""Build the class embeddings that a head is initialised with, by the config ``class_weights``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from mmpretrain.registry import DATASETS
from safetensors.torch import load_file
from torch import Tensor, nn

from ...datasets.imagenet_labels import CLASS_ROWS, read_class_rows
from ...distributed import on_main
from ...errors import ConfigError, MissingFileError, StorageError
from ...files import check_whole
from ...messages import near_names
from ...ranges import Count, Positive, Seed, Whole
from ..towers.loading import NoTextTowerError
from ..towers.torchscript import is_torchscript
from ..towers.weight_files import explain_unreadable
from .cache import cached, evaluating, fastest_device
from .features import cached_features, draw_per_class, images_key, num_classes, prototype_class_weights, read_labels
from .linear_probe import STRENGTHS, fit_linear_probe
from .text import text_embeddings


def build_class_weights(cfg: dict, classifier: nn.Module) -> Tensor:
    """Class embeddings for a classifier's head, by config.

    Args:
        cfg: One of

            - ``dict(type='text', classnames=..., templates='openai', model_name=None, pretrained=None,
              cache_dir=None, rows=None)``: the mean over prompts of their text embeddings. ``classnames`` is
              ``'imagenet'``, a list, or a text file with one name per line; ``templates`` is ``'openai'`` (the 80
              ImageNet templates), ``'shapes'`` (those of the built-in benchmark) or a list of strings with a ``{}``.
              The text tower defaults to the backbone's own.
            - ``dict(type='file', path=..., rows=None)``: a tensor (C, D) in a .pt, .safetensors (key ``'weight'``) or
              .npy file. With ``rows``, a list of row indices for each class, each class is the normalised mean of these
              rows (:func:`mean_rows`), of a file or of text embeddings. ``'waterbirds'`` makes land and water birds of
              ImageNet's classes (``mmcfmask/datasets/class_maps/waterbirds.txt``).
            - ``dict(type='prototype', dataset=dict(...), per_class=60, batch_size=64, seed=0, num_workers=None,
              cache_dir=None)``: the mean feature of ``per_class`` images of each class of an mmpretrain dataset.
            - ``dict(type='linear_probe', dataset=dict(...), held_out=None, strengths=None, batch_size=64,
              num_workers=0, cache_dir=None)``: logistic regression on the frozen features of all images of
              ``dataset``, as in LP-FT. The regularisation strength is chosen on ``held_out``
              (:func:`.linear_probe.fit_linear_probe`), another dataset; None stands for the part that ``dataset``
              holds out by its ``holdout``.
        classifier: Has ``backbone``, ``neck``, ``extract_feat(inputs)[-1]`` -> (B, D) and ``data_preprocessor``.

    Returns:
        (C, D) float32 on the CPU, rows L2-normalised; for ``linear_probe`` (C, D + 1), weights with the biases in the
        last column.

    Raises:
        ConfigError: Unknown type, names or templates; weights without a text tower; too few images in a class.
        MissingFileError: A file that does not exist.
    """
    cfg = dict(cfg)
    kind = cfg.pop('type', None)
    if kind not in CLASS_WEIGHTS:
        raise ConfigError(f'class_weights.type={kind!r} is unknown: choose from {", ".join(map(repr, CLASS_WEIGHTS))}.')
    try:
        inspect.signature(CLASS_WEIGHTS[kind]).bind(classifier, **cfg)
    except TypeError as error:  # an unknown or missing key
        raise ConfigError(f'class_weights=dict(type={kind!r}, ...): {error}') from error
    return CLASS_WEIGHTS[kind](classifier, **cfg)


def load_class_weights(path: str | Path) -> Tensor:
    """Read class embeddings (C, D) from a .pt, .pth, .safetensors or .npy file, and normalise their rows.

    Raises:
        MissingFileError: The file does not exist.
        ConfigError: Not a finite (C, D) tensor, or a row of zeros.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise MissingFileError(f'class_weights.path={str(path)!r}: the file does not exist.')
    try:
        weight: Any
        if path.suffix == '.npy':
            weight = torch.from_numpy(np.load(path, allow_pickle=False))
        elif path.suffix == '.safetensors':
            weight = load_file(path)
        else:
            check_whole(path)
            if is_torchscript(path):
                raise ConfigError('it is a TorchScript archive')
            weight = torch.load(path, map_location='cpu', weights_only=True)
    except StorageError:
        raise
    except Exception as error:  # the readers raise pickle, zip, safetensors and value errors of many types
        raise ConfigError(f'{path} cannot be read as a tensor: {explain_unreadable(error)}') from None
    if isinstance(weight, dict):
        if 'weight' not in weight:
            raise ConfigError(f"{path} has no key 'weight'; its keys: {', '.join(map(str, list(weight)[:10]))}.")
        weight = weight['weight']
    if not isinstance(weight, Tensor) or weight.ndim != 2:
        shape = tuple(weight.shape) if isinstance(weight, Tensor) else type(weight).__name__
        raise ConfigError(f'{path} must hold a tensor (classes, features), but holds {shape}.')
    if not weight.is_floating_point() or weight.layout != torch.strided:
        raise ConfigError(
            f'{path} must hold an ordinary tensor of floating-point numbers, but holds {weight.dtype}, {weight.layout}.'
        )
    weight = weight.float()
    bad = (~torch.isfinite(weight)).any(dim=1) | (weight == 0).all(dim=1)
    if bad.any():
        raise ConfigError(
            f'{path}, shape {tuple(weight.shape)}: rows {bad.nonzero().flatten().tolist()[:10]} are zero or not finite.'
        )
    return F.normalize(weight, dim=-1)


def resolve_rows(rows: str | Sequence[Sequence[int]]) -> list[list[int]]:
    """Row indices of every class: the lists themselves, or those of a shipped map, ``'waterbirds'``.

    Raises:
        ConfigError: An unknown name, or no lists of row indices.
    """
    if isinstance(rows, str):
        if rows not in CLASS_ROWS:
            raise ConfigError(
                f'class_weights.rows={rows!r} is unknown: give {" or ".join(map(repr, CLASS_ROWS))}, or a list of row '
                f'indices for every class.{near_names(rows, CLASS_ROWS)}'
            )
        return read_class_rows(rows)
    if not isinstance(rows, Sequence) or not rows:
        raise ConfigError(f'class_weights.rows={rows!r} must be a list of row indices for every class.')
    for label, members in enumerate(rows):
        listed = isinstance(members, Sequence) and len(members) > 0
        if not listed or any(type(row) is not int or row < 0 for row in members):
            raise ConfigError(
                f'class_weights.rows: class {label} is {members!r}, but must be a list of row indices from 0.'
            )
    return [[int(row) for row in members] for members in rows]


def mean_rows(weights: Tensor, rows: Sequence[Sequence[int]]) -> Tensor:
    """Class embeddings as means of others: w_c = m_c / ‖m_c‖ with m_c = Σ_{i ∈ rows_c} u_i / ‖u_i‖.

    Args:
        weights: (N, D), the u_i.
        rows: Indices into ``weights`` for each of C classes, not empty.

    Returns:
        (C, D), rows L2-normalised.

    Raises:
        ConfigError: A row that ``weights`` does not have; the mean of a class is zero.
    """
    highest = max(map(max, rows))
    if highest >= len(weights):
        raise ConfigError(f'class_weights.rows names row {highest}, but there are {len(weights)} (from 0).')
    unit = F.normalize(weights, dim=-1)
    means = torch.stack([unit[list(members)].mean(dim=0) for members in rows])
    zero = (means.norm(dim=-1) < 1e-6).nonzero().flatten().tolist()
    if zero:
        raise ConfigError(f'class_weights.rows: the rows of class {zero[0]} cancel out, their mean is zero.')
    return F.normalize(means, dim=-1)


def _build_text(
    classifier: nn.Module,
    *,
    classnames: str | Sequence[str],
    templates: str | Sequence[str] = 'openai',
    model_name: str | None = None,
    pretrained: str | None = None,
    cache_dir: str | None = None,
    rows: str | Sequence[Sequence[Whole]] | None = None,
) -> Tensor:
    try:
        weights = text_embeddings(classifier, 'text', classnames, templates, model_name, pretrained, cache_dir)
    except NoTextTowerError as error:
        raise NoTextTowerError(f"{error}; use class_weights=dict(type='prototype', ...) or type='file'.") from None
    return weights if rows is None else mean_rows(weights, resolve_rows(rows))


def _build_file(classifier: nn.Module, *, path: str, rows: str | Sequence[Sequence[Whole]] | None = None) -> Tensor:
    weights = load_class_weights(path)
    return weights if rows is None else mean_rows(weights, resolve_rows(rows))


def _build_prototype(
    classifier: nn.Module,
    *,
    dataset: dict,
    per_class: Count = 60,
    batch_size: Count = 64,
    seed: Seed = 0,
    num_workers: Whole | None = None,
    cache_dir: str | None = None,
) -> Tensor:
    images = DATASETS.build(dataset)
    indices = draw_per_class(images, per_class, seed)

    def compute() -> Tensor:
        with evaluating(classifier):
            return prototype_class_weights(
                classifier.extract_feat, classifier.data_preprocessor, images, indices, batch_size, num_workers
            )

    key = on_main(lambda: images_key('prototype', classifier, dataset, images, indices))
    return cached(key, compute, cache_dir)


def _build_linear_probe(
    classifier: nn.Module,
    *,
    dataset: dict,
    held_out: dict | None = None,
    strengths: Sequence[Positive] | None = None,
    batch_size: Count = 64,
    num_workers: Whole | None = None,
    cache_dir: str | None = None,
) -> Tensor:
    strengths = list(STRENGTHS if strengths is None else strengths)
    if held_out is None:
        if (dataset.get('holdout') or {}).get('part') != 'train':
            raise ConfigError(
                "class_weights=dict(type='linear_probe', ...) chooses its strength on held-out images: set held_out to "
                "a dataset, or dataset.holdout=dict(fraction=0.2, part='train')"
            )
        held_out = {key: value for key, value in dataset.items() if key != 'per_class'}
        held_out['holdout'] = {**dataset['holdout'], 'part': 'held_out'}
    parts = [(cfg, DATASETS.build(cfg)) for cfg in (dataset, held_out)]
    keys = on_main(
        lambda: [images_key('features', classifier, cfg, part, range(len(part))) for cfg, part in parts]
    )
    labels = [read_labels(part, range(len(part))) for _, part in parts]
    classes = num_classes(parts[0][1], labels[0].tolist())

    def compute() -> Tensor:
        features = [
            cached_features(classifier, cfg, part, batch_size, num_workers, cache_dir) for cfg, part in parts
        ]
        return on_main(lambda: fit(features))

    def fit(features: list[Tensor]) -> Tensor:
        device = fastest_device()
        (x, y), (held_out_x, held_out_y) = (
            (feature.to(device), target.to(device)) for feature, target in zip(features, labels)
        )
        probe = fit_linear_probe(x, y, held_out_x, held_out_y, classes, strengths)
        print_log(
            f'Linear probe: C = {probe.strength:.3g} is best on the held-out images ({probe.accuracy:.2f} %, '
            f'cross-entropy {probe.nll:.3f}).',
            'current',
        )
        return torch.cat([probe.weight, probe.bias[:, None]], dim=1).cpu()

    key = dict(type='linear_probe', features=keys, strengths=strengths, chosen_by='nll within a standard error')
    return cached(key, compute, cache_dir)


# class_weights.type to the function that builds the class embeddings.
CLASS_WEIGHTS: dict[str, Callable[..., Tensor]] = dict(
    text=_build_text, file=_build_file, prototype=_build_prototype, linear_probe=_build_linear_probe
)
