"""Zero-shot ability that fine-tuning kept, on data sets with other classes than the head's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from mmpretrain.registry import METRICS

from ..errors import ConfigError
from .accuracy import label_rank
from .metrics import ShiftAccuracy, image_name


@METRICS.register_module()
class KeptZeroShot(ShiftAccuracy):
    """How much of its zero-shot accuracy the tower lost, besides what :class:`ShiftAccuracy` gives.

    Both the fine-tuned and the pretrained tower classify the images of a :class:`mmcfmask.datasets.ZeroShotDataset`
    with the class embeddings of the set. Data samples carry ``pretrained_logits`` (float, (C,)) beside ``pred_logits``,
    which :class:`mmcfmask.engine.test_loop.MultiSetTestLoop` arranges.

    ========================  =======================================================================================
    ``accuracy``              Percent of images, of the fine-tuned tower. It is no ``top1``: the set is no shift.
    ``pretrained_accuracy``   The same of the pretrained tower.
    ``zero_shot_drop``        Percentage points: the second minus the first.
    ========================  =======================================================================================

    Raises:
        ConfigError: An item without ``pretrained_logits``; and as :class:`ShiftAccuracy`.
    """

    def __init__(self, keep_predictions: bool = False, prefix: str | None = None) -> None:
        super().__init__(keep_predictions=keep_predictions, apart=True, prefix=prefix)

    def _extra(self, data_samples: Sequence[dict]) -> dict[str, np.ndarray]:
        for sample in data_samples:
            if 'pretrained_logits' not in sample:
                raise ConfigError(
                    f'{self.prefix}: {image_name(sample)} has no answer of the pretrained model: KeptZeroShot needs a '
                    'ZeroShotDataset and a CounterfactualClassifier'
                )
        logits = torch.stack([sample['pretrained_logits'] for sample in data_samples]).float()
        labels = torch.stack([sample['gt_label'][0] for sample in data_samples]).to(logits.device)
        return dict(pretrained_right=(label_rank(logits, labels) == 0).cpu().numpy())

    def compute_metrics(self, results: dict[str, np.ndarray]) -> dict[str, float]:
        """Metrics of all images, without the prefix, from their columns."""
        metrics = super().compute_metrics(results)
        before = 100 * results['pretrained_right'].mean()
        return dict(metrics, pretrained_accuracy=before, zero_shot_drop=before - metrics['top1'])
