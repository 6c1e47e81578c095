from .checkpoints import CheckpointHook
from .hooks import CheckClassesHook, DistillWeightHook, IterationSeedHook, RelativeEMAHook, StopOnInvalidLossHook
from .logs import MeanLogProcessor
from .optim import AutocastOptimWrapper, OneCycle
from .test_loop import MultiSetTestLoop, MultiSetValLoop
from .train_loop import ResumableEpochLoop, ResumableSampler
from .wise_ft import WiSEFTHook, WiSEFTLoop

__all__ = [
    'AutocastOptimWrapper',
    'CheckClassesHook',
    'CheckpointHook',
    'DistillWeightHook',
    'IterationSeedHook',
    'MeanLogProcessor',
    'MultiSetTestLoop',
    'MultiSetValLoop',
    'OneCycle',
    'RelativeEMAHook',
    'ResumableEpochLoop',
    'ResumableSampler',
    'StopOnInvalidLossHook',
    'WiSEFTHook',
    'WiSEFTLoop',
]
