from .classifier import CounterfactualClassifier
from .head import CLIPDistillHead
from .inference.knn_gate import KNNGate
from .losses.auxiliary import CARFT, FLYP, L2SP, LipsumFT, LossTerm, Step
from .preprocessor import CAMRefillDataPreprocessor
from .teacher import OpenCLIPTeacher
from .towers.backbone import OpenCLIPBackbone

__all__ = [
    'CARFT',
    'FLYP',
    'L2SP',
    'LossTerm',
    'CAMRefillDataPreprocessor',
    'CLIPDistillHead',
    'KNNGate',
    'CounterfactualClassifier',
    'LipsumFT',
    'OpenCLIPBackbone',
    'OpenCLIPTeacher',
    'Step',
]
