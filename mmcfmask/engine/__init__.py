from .checkpoint_hook import CheckpointHook
from .checks.classes import CheckClassesHook
from .fsdp import FullyShardedDataParallel, GatherCheckpointHook, SplitCheckpointHook
from .header import HeaderHook
from .hooks import DistillWeightHook, IterationSeedHook, LossTermHook, RelativeEMAHook, StopOnInvalidLossHook
from .logs import MeanLogProcessor
from .optim import AutocastOptimWrapper, OneCycle
from .spd import AdamSPD
from .test_loop import MultiSetTestLoop, MultiSetValLoop, OneSetTestLoop
from .train_loop import ResumableEpochLoop, ResumableSampler, ShardSampler
from .wise_ft import WiSEFTHook, WiSEFTLoop

__all__ = [
    'AdamSPD',
    'AutocastOptimWrapper',
    'CheckClassesHook',
    'CheckpointHook',
    'DistillWeightHook',
    'FullyShardedDataParallel',
    'GatherCheckpointHook',
    'HeaderHook',
    'IterationSeedHook',
    'LossTermHook',
    'MeanLogProcessor',
    'MultiSetTestLoop',
    'MultiSetValLoop',
    'OneCycle',
    'OneSetTestLoop',
    'RelativeEMAHook',
    'ResumableEpochLoop',
    'ResumableSampler',
    'ShardSampler',
    'SplitCheckpointHook',
    'StopOnInvalidLossHook',
    'WiSEFTHook',
    'WiSEFTLoop',
]
