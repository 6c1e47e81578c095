from .classifier import CounterfactualClassifier
from .head import CLIPDistillHead
from .open_clip_backbone import OpenCLIPBackbone
from .preprocessor import CAMRefillDataPreprocessor
from .teacher import OpenCLIPTeacher

__all__ = ['CAMRefillDataPreprocessor', 'CLIPDistillHead', 'CounterfactualClassifier', 'OpenCLIPBackbone', 'OpenCLIPTeacher']
