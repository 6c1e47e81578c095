from .classifier import CounterfactualClassifier
from .head import CLIPDistillHead
from .inference.knn_gate import KNNGate
from .losses.base import LossTerm, Step
from .losses.carft import CARFT
from .losses.flyp import FLYP
from .losses.l2sp import L2SP
from .losses.lipsum import LipsumFT
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
