from .mask_quality import best_iou, mask_iou, pointing_hits

__all__ = ['best_iou', 'mask_iou', 'pointing_hits']
