from .auxiliary import CARFT, FLYP, L2SP, AuxiliaryLoss, LipsumFT, Step
from .classifier import CounterfactualClassifier
from .gate import ConformalGate
from .head import CLIPDistillHead
from .open_clip_backbone import OpenCLIPBackbone
from .preprocessor import CAMRefillDataPreprocessor
from .teacher import OpenCLIPTeacher

__all__ = [
    'CARFT', 'FLYP', 'L2SP', 'AuxiliaryLoss', 'CAMRefillDataPreprocessor', 'CLIPDistillHead', 'ConformalGate',
    'CounterfactualClassifier', 'LipsumFT', 'OpenCLIPBackbone', 'OpenCLIPTeacher', 'Step'
]
