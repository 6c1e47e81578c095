from .effective_robustness import effective_robustness, fit_line, read_reference_models, reference_line, reference_points
from .mask_quality import best_iou, mask_iou, pointing_hits

__all__ = [
    'best_iou', 'effective_robustness', 'fit_line', 'mask_iou', 'pointing_hits', 'read_reference_models', 'reference_line',
    'reference_points'
]
