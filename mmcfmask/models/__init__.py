from .classifier import CounterfactualClassifier
from .head import CLIPDistillHead
from .inference.knn_gate import KNNGate
from .losses import CARFT, FLYP, L2SP, CounterfactualDistillation, Distillation, LipsumFT, LossTerm, Step
from .preprocessor import CAMRefillDataPreprocessor
from .teacher import OpenCLIPTeacher
from .towers.backbone import OpenCLIPBackbone

__all__ = [
    'CAMRefillDataPreprocessor',
    'CARFT',
    'CLIPDistillHead',
    'CounterfactualClassifier',
    'CounterfactualDistillation',
    'Distillation',
    'FLYP',
    'KNNGate',
    'L2SP',
    'LipsumFT',
    'LossTerm',
    'OpenCLIPBackbone',
    'OpenCLIPTeacher',
    'Step',
]
