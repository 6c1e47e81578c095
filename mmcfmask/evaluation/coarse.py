"""Sets whose classes are groups of the head's, decided by mean probabilities: silhouettes, edges, cue conflicts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from mmpretrain.registry import METRICS
from torch import Tensor

from ..errors import ConfigError
from .accuracy import mean_probability_scores
from .metrics import ShiftAccuracy, image_name


def shape_bias(shape: int, texture: int) -> float | None:
    """100 · shape / (shape + texture), of the numbers of images with conflicting cues that are answered by their shape
    and by their texture (Geirhos et al., ICLR 2019). None if there is no such answer."""
    return 100 * shape / (shape + texture) if shape + texture else None


@METRICS.register_module()
class CoarseAccuracy(ShiftAccuracy):
    """:class:`ShiftAccuracy` where the score of a class is the mean probability of its outputs
    (:func:`mmcfmask.evaluation.accuracy.mean_probability_scores`), as in the experiments of Geirhos et al.

    The softmax is over all outputs of the head, and the highest mean wins. Likelihood and calibration are those of the
    means, divided by their sum.

    Raises:
        ConfigError: A set without ``metainfo['label_groups']``; and as :class:`ShiftAccuracy`.
    """

    def _scored(self, data_samples: Sequence[dict]) -> tuple[Tensor, tuple | None]:
        if self.groups is None:
            raise ConfigError(
                f'{self.prefix}: {type(self).__name__} needs a set whose classes are groups of those of the head '
                '(GeirhosDataset, or metainfo=dict(label_groups=…))'
            )
        return mean_probability_scores(self._logits(data_samples, None), self.groups), None


@METRICS.register_module()
class ShapeBias(CoarseAccuracy):
    """Shape bias on images whose shape and texture belong to different classes (Geirhos et al., ICLR 2019).

    ``gt_label`` is the class of the shape. Data samples carry ``texture`` (int), that of the texture:
    ``PackInputs(meta_keys=(…, 'texture'))`` on :class:`mmcfmask.datasets.GeirhosDataset`. There is no ``top1``: the
    texture is no wrong answer.

    ====================  ===========================================================================================
    ``shape_bias``        Percent: :func:`shape_bias` over the images whose two cues differ. Not there if no image is
                          answered by one of its cues.
    ``shape_answers``     Percent of all images: cues that differ, answered by the shape.
    ``texture_answers``   The same by the texture.
    ====================  ===========================================================================================

    Raises:
        ConfigError: An item without a texture; and as :class:`CoarseAccuracy`.
    """

    def _extra(self, data_samples: Sequence[dict]) -> dict[str, np.ndarray]:
        for sample in data_samples:
            if 'texture' not in sample:
                raise ConfigError(
                    f'{self.prefix}: {image_name(sample)} has no texture: ShapeBias needs the cue-conflict images of '
                    "GeirhosDataset and a pipeline that ends in dict(type='PackInputs', meta_keys=('sample_idx', "
                    "'img_path', 'texture'))"
                )
        return dict(texture=np.array([int(sample['texture']) for sample in data_samples], dtype=np.int32))

    def compute_metrics(self, results: dict[str, np.ndarray]) -> dict[str, float]:
        """Metrics of all images, without the prefix, from their columns."""
        metrics = super().compute_metrics(results)
        conflict = results['labels'][:, 0] != results['texture']
        shape = int((conflict & (results['rank'] == 0)).sum())
        texture = int((conflict & (results['predicted'] == results['texture'])).sum())
        metrics = {name: value for name, value in metrics.items() if name not in ShiftAccuracy.NAMES}
        metrics.update(
            {f'{cue}_answers': 100 * n / len(conflict) for cue, n in dict(shape=shape, texture=texture).items()}
        )
        bias = shape_bias(shape, texture)
        if bias is None:
            self.details['notes'].append('no shape bias: no image was answered by its shape or its texture')
            return metrics
        return dict(shape_bias=bias, **metrics)
