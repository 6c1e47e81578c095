from .accuracy import (
    class_scores,
    confidence,
    label_rank,
    mean_probability_scores,
    negative_log_likelihood,
    per_class_accuracy,
    restrict_logits,
)
from .calibration import expected_calibration_error, reliability_bins
from .coarse import CoarseAccuracy, ShapeBias, shape_bias
from .corruption import ALEXNET_ERROR, corruption_error, mean_corruption_error
from .effective_robustness import (
    effective_robustness,
    fit_line,
    read_reference_models,
    reference_line,
    reference_points,
)
from .f1 import MacroF1, macro_f1
from .groups import (
    FactorAccuracy,
    GroupAccuracy,
    PartAccuracy,
    error_ratio,
    group_accuracies,
    group_average,
    worst_group,
)
from .kept import KeptZeroShot
from .mask_quality import (
    area_under,
    average_precision,
    best_iou,
    blurred,
    deletion_and_insertion,
    mask_iou,
    object_patches,
    pointing_hits,
)
from .metrics import CorruptionError, ShiftAccuracy, nll_key, preference
from .protocol import describe_checkpoint, describe_run, describe_set, list_notes, versions

__all__ = [
    'ALEXNET_ERROR',
    'CoarseAccuracy',
    'CorruptionError',
    'FactorAccuracy',
    'GroupAccuracy',
    'KeptZeroShot',
    'MacroF1',
    'PartAccuracy',
    'ShapeBias',
    'ShiftAccuracy',
    'area_under',
    'average_precision',
    'best_iou',
    'blurred',
    'class_scores',
    'confidence',
    'corruption_error',
    'deletion_and_insertion',
    'describe_checkpoint',
    'describe_run',
    'describe_set',
    'effective_robustness',
    'error_ratio',
    'expected_calibration_error',
    'fit_line',
    'group_accuracies',
    'group_average',
    'label_rank',
    'macro_f1',
    'mask_iou',
    'mean_corruption_error',
    'mean_probability_scores',
    'negative_log_likelihood',
    'nll_key',
    'list_notes',
    'object_patches',
    'per_class_accuracy',
    'pointing_hits',
    'preference',
    'read_reference_models',
    'reference_line',
    'reference_points',
    'reliability_bins',
    'restrict_logits',
    'shape_bias',
    'versions',
    'worst_group',
]
