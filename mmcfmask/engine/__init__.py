from .hooks import IterationSeedHook, StopOnInvalidLossHook
from .loops import MultiSetTestLoop, ResumableEpochLoop, ResumableSampler
from .optim import AutocastOptimWrapper, OneCycle

__all__ = [
    'AutocastOptimWrapper', 'IterationSeedHook', 'MultiSetTestLoop', 'OneCycle', 'ResumableEpochLoop', 'ResumableSampler',
    'StopOnInvalidLossHook'
]
