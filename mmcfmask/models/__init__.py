from typing import Any

from .classifier import CounterfactualClassifier
from .dual_head import DualHead
from .head import CLIPDistillHead
from .inference.knn_gate import KNNGate
from .inference.vrf import VRF
from .losses import (
    CARFT,
    FLYP,
    L2SP,
    MPMNCE,
    CaRot,
    CaRotImage,
    ContextDistillation,
    ContextInvariance,
    ContextTerm,
    CounterfactualCrossEntropy,
    CounterfactualDistillation,
    Distillation,
    DualRisk,
    LipsumFT,
    LossTerm,
    MixedCrossEntropy,
    StarFT,
    Step,
)
from .maker import CounterfactualMaker
from .preprocessor import CAMRefillDataPreprocessor
from .teacher import OpenCLIPTeacher
from .towers.backbone import OpenCLIPBackbone

__all__ = [
    'CAMRefillDataPreprocessor',
    'CARFT',
    'CaRot',
    'CaRotImage',
    'CLIPDistillHead',
    'ContextDistillation',
    'ContextInvariance',
    'ContextTerm',
    'CounterfactualClassifier',
    'CounterfactualCrossEntropy',
    'CounterfactualDistillation',
    'CounterfactualMaker',
    'Distillation',
    'DualHead',
    'DualRisk',
    'FLYP',
    'KNNGate',
    'L2SP',
    'LipsumFT',
    'LossTerm',
    'MPMNCE',
    'MixedCrossEntropy',
    'OpenCLIPBackbone',
    'OpenCLIPTeacher',
    'StarFT',
    'Step',
    'VRF',
]


def __getattr__(name: str) -> Any:
    if name in ('AuxiliaryLoss', 'auxiliary'):  # of version 0.1.0
        raise ImportError(
            f'mmcfmask.models.{name} was renamed: write `from mmcfmask.models.losses import LossTerm`; its method '
            'start is now setup',
            name=__name__,
        )
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
