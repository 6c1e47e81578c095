from .hooks import CheckClassesHook, IterationSeedHook, StopOnInvalidLossHook
from .loops import MultiSetTestLoop, ResumableEpochLoop, ResumableSampler
from .optim import AutocastOptimWrapper, OneCycle

__all__ = [
    'AutocastOptimWrapper', 'CheckClassesHook', 'IterationSeedHook', 'MultiSetTestLoop', 'OneCycle', 'ResumableEpochLoop',
    'ResumableSampler', 'StopOnInvalidLossHook'
]
