from .hooks import CheckClassesHook, IterationSeedHook, RelativeEMAHook, StopOnInvalidLossHook
from .loops import MultiSetTestLoop, MultiSetValLoop, ResumableEpochLoop, ResumableSampler
from .optim import AutocastOptimWrapper, OneCycle
from .wise_ft import WiSEFTHook, WiSEFTLoop

__all__ = [
    'AutocastOptimWrapper', 'CheckClassesHook', 'IterationSeedHook', 'MultiSetTestLoop', 'MultiSetValLoop', 'OneCycle',
    'RelativeEMAHook', 'ResumableEpochLoop', 'ResumableSampler', 'StopOnInvalidLossHook', 'WiSEFTHook', 'WiSEFTLoop'
]
