"""How well the relevance map of a model finds objects that are known."""

from __future__ import annotations

import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmpretrain.registry import DATASETS
from rich.progress import track

from ..counterfactual import check_value, patch_mask, relevance_map
from ..datasets.holdout import follow_run
from ..errors import ConfigError
from ..evaluation import best_iou, mask_iou, pointing_hits
from .checkpoints import check_checkpoint
from .testing import build_model


def measure_masks(
    cfg: Config, checkpoint: str | None = None, value: float = 0.3, batch_size: int = 100
) -> dict[str, dict[str, float]]:
    """Compare the object mask of a model with the objects, on the training set and all test sets of a config.

    Args:
        cfg: A config whose data sets know their objects (``gt_mask``); it is changed.
        checkpoint: Path of a checkpoint; None for the pretrained model.
        value: Threshold of the object mask, in [0, 1].
        batch_size: Images per batch.

    Returns:
        ``{set: results}``: number of ``images``, mean ``iou`` of the mask, ``best_iou`` that any mask of the patches
        reaches, and ``pointing``, the percentage of images whose most relevant patch is on the object.

    Raises:
        ConfigError: The value is outside [0, 1], the checkpoint does not fit, or a data set does not know its objects.
    """
    try:
        check_value('object', value)
    except ValueError as error:
        raise ConfigError(f'--value: {error}') from None
    follow_run(cfg, (cfg.get('randomness') or {}).get('seed'))
    init_default_scope('mmpretrain')
    loaded = check_checkpoint(checkpoint) if checkpoint else None
    model = build_model(cfg.model, loaded, checkpoint)
    loaders = {'train': cfg.get('train_dataloader'), **cfg.test_dataloader}
    return {
        name: _measure(model, loader.dataset, name, value, batch_size)
        for name, loader in loaders.items()
        if loader is not None
    }


def _measure(model: torch.nn.Module, config: dict, name: str, value: float, batch_size: int) -> dict[str, float]:
    dataset = DATASETS.build({**config, 'pipeline': []})
    if 'gt_mask' not in dataset[0]:
        raise ConfigError(f'{name}: {type(dataset).__name__} has no gt_mask, so there are no objects to compare with')
    sums = torch.zeros(3)
    for start in track(range(0, len(dataset), batch_size), f'{name:8}', transient=True):
        items = [dataset[i] for i in range(start, min(start + batch_size, len(dataset)))]
        images = torch.stack([torch.from_numpy(item['img']).permute(2, 0, 1) for item in items])
        inputs = model.data_preprocessor(dict(inputs=images))['inputs']
        objects = torch.stack([torch.from_numpy(item['gt_mask']) for item in items])
        relevance = relevance_map(model, inputs, torch.tensor([int(item['gt_label']) for item in items]))
        found = mask_iou(patch_mask(relevance, 'object', value), objects)
        best = best_iou(tuple(relevance.shape[1:]), objects)
        sums += torch.stack([found.sum(), best.sum(), pointing_hits(relevance, objects).sum()])
    iou, best, pointing = (sums / len(dataset)).tolist()
    return dict(images=len(dataset), iou=iou, best_iou=best, pointing=100 * pointing)
