"""The loss terms: a file per method, its equation as a function and its class beside it."""

from .base import CounterfactualImages, LossTerm, Step, add_losses, check_teacher, find_terms
from .carft import CARFT, context_divergence
from .carot import CaRot, CaRotImage, orthogonality
from .context import (
    ContextDistillation,
    ContextInvariance,
    ContextTerm,
    CounterfactualCrossEntropy,
    context_invariance,
    counterfactual_cross_entropy,
)
from .distillation import (
    CounterfactualDistillation,
    Distillation,
    feature_distillation,
    knowledge_distillation,
    soft_cross_entropy,
)
from .dual_risk import DualRisk
from .flyp import FLYP
from .l2sp import L2SP, l2_sp
from .lipsum import LipsumFT, energy_gap
from .mixing import MixedCrossEntropy
from .mpm_nce import MPMNCE, mpm_nce
from .starft import StarFT, spurious_divergence

__all__ = [
    'CARFT',
    'CaRot',
    'CaRotImage',
    'ContextDistillation',
    'ContextInvariance',
    'ContextTerm',
    'CounterfactualCrossEntropy',
    'CounterfactualDistillation',
    'CounterfactualImages',
    'Distillation',
    'DualRisk',
    'FLYP',
    'L2SP',
    'LipsumFT',
    'LossTerm',
    'MPMNCE',
    'MixedCrossEntropy',
    'StarFT',
    'Step',
    'add_losses',
    'check_teacher',
    'context_divergence',
    'context_invariance',
    'counterfactual_cross_entropy',
    'energy_gap',
    'feature_distillation',
    'find_terms',
    'knowledge_distillation',
    'l2_sp',
    'mpm_nce',
    'orthogonality',
    'soft_cross_entropy',
    'spurious_divergence',
]
