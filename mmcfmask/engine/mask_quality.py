"""How well the relevance map of a model finds objects that are known, and how much its predictions depend on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmpretrain.registry import DATASETS
from rich.progress import track
from torch import Tensor, nn

from ..counterfactual import check_share, check_value, compare_relevance, patch_grid, patch_mask
from ..datasets.holdout import follow_run
from ..errors import ConfigError
from ..evaluation import (
    area_under,
    average_precision,
    best_iou,
    deletion_and_insertion,
    mask_iou,
    object_patches,
    pointing_hits,
)
from ..evaluation.accuracy import head_labels
from ..messages import short_list_with_nearest
from .checkpoints import check_checkpoint
from .testing import build_model

MAPS: dict[str, dict[str, Any]] = {
    'published': {},
    'published-median': dict(smooth='median'),
    'last': dict(layers='last'),
    'last-median': dict(layers='last', smooth='median'),
    'outliers': dict(outliers=6.0),
    'outliers-mean': dict(outliers=6.0, smooth='mean'),
    'outliers-median': dict(outliers=6.0, smooth='median'),
}
"""Maps that ``--maps`` compares, and their options."""

THRESHOLDS = tuple(step / 20 for step in range(1, 20))
RANDOM = 'random'


@dataclass
class SetQuality:
    """Results on one set.

    Attributes:
        images (int): Number of images.
        objects (int): Number of images with a patch that is object; 0 where objects are not known.
        object_share (float): Share of the patches that is object.
        best_iou (float): Highest IoU in pixels that any masks of whole patches reach, on average.
        maps (dict): ``{map: {column: number}}``, means over the images; see :func:`measure_masks`.
        curves (dict): ``{map: (deletion, insertion)}``, (steps + 1, 2) each: mean probability of the label, and top-1.
    """

    images: int
    objects: int = 0
    object_share: float = 0.0
    best_iou: float = 0.0
    maps: dict[str, dict[str, float]] = field(default_factory=dict)
    curves: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)


def measure_masks(
    cfg: Config,
    checkpoint: str | None = None,
    value: float = 0.3,
    batch_size: int = 100,
    *,
    compare: Sequence[str] = (),
    shares: Sequence[float] = (0.3, 0.4, 0.5),
    steps: int = 0,
    sets: Sequence[str] | None = None,
    num: int | None = None,
    seed: int = 0,
    amp: bool = False,
    device: torch.device | str = 'cpu',
) -> dict[str, SetQuality]:
    """Measure relevance maps of a model on the training set and all test sets of a config.

    Where a data set knows its objects (``gt_mask`` in its items), the maps are compared with the patches of which the
    object covers more than half. Columns of every map, means over the images:

    - ``ap``: average precision of the patches ranked by relevance (images without such a patch are left out);
    - ``pointing``: percentage of images whose most relevant patch is object;
    - ``iou`` and ``masked``: IoU of the object mask of threshold ``value`` with the object, and its share of patches;
    - ``threshold_iou`` and ``threshold``: IoU of the best threshold of the set out of 0.05, 0.1, ..., 0.95;
    - ``iou_top_S``: IoU of the mask of the most relevant share S of the patches;
    - ``pixel_iou``: IoU of the mask of threshold ``value`` with the pixels of the object.

    With ``steps``: ``deletion`` and ``insertion``, areas under the curves of the label's probability
    (:func:`mmcfmask.evaluation.deletion_and_insertion`), and ``deletion_top1`` and ``insertion_top1``, those of top-1.
    A map in random order is measured beside them.

    Args:
        cfg: A config; it is changed.
        checkpoint: Path of a checkpoint; None for the pretrained model.
        value: Threshold of the object mask, in [0, 1].
        batch_size: Images per batch.
        compare: Names in :data:`MAPS`, measured beside the map of the config.
        shares: Shares of patches, in [0, 1].
        steps: Steps of the curves; 0 for none.
        sets: Names of the sets to measure. None: all.
        num: Number of images of every set, drawn by ``seed``. None: all.
        seed: Seed of the draw and of the random order.
        amp: bfloat16 autocast.
        device: Where the model runs.

    Returns:
        Results of every set; sets that do not know their objects are left out, unless there are curves.

    Raises:
        ConfigError: A value or share outside [0, 1], an unknown map or set, a checkpoint that does not fit, or no set
            knows its objects and there are no curves.
    """
    for option, check, numbers in ('--value', check_value, [value]), ('--share', check_share, shares):
        for number in numbers:
            try:
                check('object', number)
            except ValueError as error:
                raise ConfigError(f'{option}: {error}') from None
    unknown = [name for name in compare if name not in MAPS]
    if unknown:
        raise ConfigError(f'--maps: {short_list_with_nearest(unknown, list(MAPS))}; choose from {", ".join(MAPS)}')
    found = find_sets(cfg, sets)
    follow_run(cfg, (cfg.get('randomness') or {}).get('seed'))
    init_default_scope(cfg.get('default_scope', 'mmpretrain'))
    loaded = check_checkpoint(checkpoint) if checkpoint else None
    model = build_model(cfg.model, loaded, checkpoint).to(device)
    own = dict(getattr(model.data_preprocessor, 'relevance', {}))
    maps = {name: MAPS[name] for name in MAPS if name in compare}
    if own not in maps.values():
        maps[describe_map(own)] = own
    measurement = _Measurement(model, maps, value, tuple(shares), steps, batch_size, seed, amp)
    results = {}
    for name, config in found.items():
        dataset = DATASETS.build(config)
        if steps or 'gt_mask' in dataset.get_data_info(0):
            chosen = np.random.default_rng(seed).permutation(len(dataset))[:num]
            results[name] = measurement.measure(dataset, np.sort(chosen).tolist(), name)
    if not results:
        kinds = ', '.join(sorted({config['type'] for config in found.values()}))
        raise ConfigError(
            f'no set of the config has gt_mask ({kinds}), so there are no objects to compare with: use configs/shapes '
            'or configs/pacs/objects_vitb16.py, or --curves, which need no objects'
        )
    return results


def describe_map(options: dict[str, Any]) -> str:
    """The name of a map in tables: that of :data:`MAPS`, or its options."""
    named = [name for name, known in MAPS.items() if known == options]
    return named[0] if named else ', '.join(f'{key}={value!r}' for key, value in options.items())


def find_sets(cfg: Config, names: Sequence[str] | None) -> dict[str, dict]:
    """Configs of the training set and all test sets by name, or of those named.

    Raises:
        ConfigError: There is no such set.
    """
    tests = cfg.get('test_dataloader') or {}
    tests = {'test': tests} if 'dataset' in tests else tests
    found = {'train': cfg.train_dataloader.dataset} if cfg.get('train_dataloader') else {}
    for name, loader in tests.items():
        found[f'test/{name}' if name in found else name] = loader['dataset']
    unknown = [name for name in names or () if name not in found]
    if unknown:
        raise ConfigError(f'--sets: {short_list_with_nearest(unknown, list(found))}; the config has {", ".join(found)}')
    return found if names is None else {name: found[name] for name in names}


@dataclass
class _Measurement:
    """What to measure on a set; see :func:`measure_masks`."""

    model: nn.Module
    maps: dict[str, dict[str, Any]]
    value: float
    shares: tuple[float, ...]
    steps: int
    batch_size: int
    seed: int
    amp: bool

    def measure(self, dataset: Any, chosen: list[int], name: str) -> SetQuality:
        """Results on the chosen images of a data set."""
        labels_of_maps = [*self.maps, *([RANDOM] if self.steps else [])]
        rows: dict[str, list[dict[str, Tensor]]] = {label: [] for label in labels_of_maps}
        curves: dict[str, list[tuple[Tensor, Tensor]]] = {label: [] for label in labels_of_maps}
        truths: list[tuple[Tensor, Tensor]] = []
        generator = torch.Generator().manual_seed(self.seed)
        for start in track(range(0, len(chosen), self.batch_size), f'{name:8}', transient=True):
            indices = chosen[start : start + self.batch_size]
            items = [dataset[i] for i in indices]
            samples = [item['data_samples'] for item in items]
            data = dict(inputs=[item['inputs'] for item in items], data_samples=samples)
            inputs = self.model.data_preprocessor(data)['inputs']
            own = [int(sample.gt_label) for sample in samples]
            labels = torch.tensor(head_labels(own, dataset.metainfo.get('label_groups')), device=inputs.device)
            with self.autocast(inputs):
                found = compare_relevance(self.model, inputs, labels, list(self.maps.values()))
            maps = dict(zip(self.maps, found))
            if self.steps:
                maps[RANDOM] = torch.rand(found[0].shape, generator=generator).to(inputs.device)
            masks = [dataset.get_data_info(i).get('gt_mask') for i in indices]
            if all(mask is not None for mask in masks):
                objects = torch.from_numpy(np.stack(masks)).to(inputs.device)
                if objects.shape[1:] != inputs.shape[2:]:
                    raise ConfigError(
                        f'{name}: its pipeline resizes images, but not their gt_mask: leave the resize out'
                    )
                grid = patch_grid(self.model.backbone, inputs)
                patches = object_patches(objects, grid)
                truths.append((patches.flatten(1).float().mean(dim=1).cpu(), best_iou(grid, objects).cpu()))
                for label, relevance in maps.items():
                    rows[label].append(_compare(relevance, patches, objects, self.value, self.shares))
            for label, relevance in maps.items() if self.steps else ():
                deletion, insertion = deletion_and_insertion(self.classify, inputs, labels, relevance, self.steps)
                curves[label].append((deletion.cpu(), insertion.cpu()))
        return _collect(len(chosen), rows, curves, truths)

    def autocast(self, inputs: Tensor) -> torch.autocast:
        return torch.autocast(inputs.device.type, dtype=torch.bfloat16, enabled=self.amp)

    @torch.no_grad()
    def classify(self, inputs: Tensor) -> Tensor:
        with self.autocast(inputs):
            return self.model(inputs)


def _collect(
    images: int,
    rows: dict[str, list[dict[str, Tensor]]],
    curves: dict[str, list[tuple[Tensor, Tensor]]],
    truths: list[tuple[Tensor, Tensor]],
) -> SetQuality:
    """Results of all batches of a set."""
    result = SetQuality(images)
    if truths:
        share, best = (torch.cat(parts) for parts in zip(*truths))
        result.objects, result.object_share = int((share > 0).sum()), share.mean().item()
        result.best_iou = best.mean().item()
    for label, batches in rows.items():
        result.maps[label] = _summarise(batches)
        if curves[label]:
            deletion, insertion = (torch.cat(parts).mean(dim=0) for parts in zip(*curves[label]))
            result.curves[label] = deletion.numpy(), insertion.numpy()
            for key, curve in dict(deletion=deletion, insertion=insertion).items():
                probability, top1 = area_under(curve.T).tolist()
                result.maps[label].update({key: probability, f'{key}_top1': top1})
    return result


def _compare(
    relevance: Tensor, patches: Tensor, objects: Tensor, value: float, shares: Sequence[float]
) -> dict[str, Tensor]:
    """Columns of a map, one number per image (B,); ``thresholds`` (B, 19)."""
    mask = patch_mask(relevance, 'object', value)
    columns = dict(
        ap=average_precision(relevance, patches),
        pointing=100 * pointing_hits(relevance, patches).float(),
        iou=mask_iou(mask, patches),
        masked=mask.flatten(1).float().mean(dim=1),
        pixel_iou=mask_iou(mask, objects),
        thresholds=torch.stack([mask_iou(patch_mask(relevance, 'object', t), patches) for t in THRESHOLDS], dim=1),
        **{f'iou_top_{share:g}': mask_iou(patch_mask(relevance, 'object', share=share), patches) for share in shares},
    )
    return {key: column.cpu() for key, column in columns.items()}


def _summarise(batches: list[dict[str, Tensor]]) -> dict[str, float]:
    """Means over all images; the best threshold is that of their mean."""
    if not batches:
        return {}
    columns = {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}
    thresholds = columns.pop('thresholds').mean(dim=0)
    means = {key: column.nanmean().item() for key, column in columns.items()}
    return dict(means, threshold_iou=thresholds.max().item(), threshold=THRESHOLDS[int(thresholds.argmax())])
