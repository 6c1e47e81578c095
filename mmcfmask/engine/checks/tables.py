"""Ranges, registries and exceptions that the signatures of classes leave open."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Optional, Union

import torch
from annotated_types import Ge, Gt, Le, Len, Lt, MinLen
from mmengine.hooks import CheckpointHook, EarlyStoppingHook, EMAHook, Hook
from mmengine.model import ImgDataPreprocessor, MomentumAnnealingEMA
from mmengine.optim import OptimWrapper
from mmengine.optim.scheduler.param_scheduler import _ParamScheduler
from mmengine.registry import FUNCTIONS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, LogProcessor, Runner
from mmengine.utils.dl_utils import set_multi_processing
from mmengine.visualization import Visualizer
from mmpretrain import registry as registries
from mmpretrain.datasets import CenterCrop, ResizeEdge
from mmpretrain.models import ClsDataPreprocessor, CrossEntropyLoss, ImageClassifier
from mmpretrain.registry import (
    DATA_SAMPLERS,
    DATASETS,
    HOOKS,
    LOOPS,
    METRICS,
    MODELS,
    OPTIMIZERS,
    PARAM_SCHEDULERS,
    TRANSFORMS,
)
from torch.utils.data import DataLoader

from ...models import (
    CAMRefillDataPreprocessor,
    CLIPDistillHead,
    ContextTerm,
    CounterfactualClassifier,
    CounterfactualMaker,
    DualHead,
)
from ...models.class_embeddings.build import CLASS_WEIGHTS
from ...models.towers.adapters import KINDS
from ...ranges import Count, Finite, NonNegative, OpenShare, Pixels, Positive, Seed, Share, Whole

Text = Annotated[str, MinLen(1)]

Never = Literal[-1]  # in mmengine

BelowOne = Annotated[float, Ge(0), Lt(1)]

Rule = Literal['greater', 'less']

Intervals = list[tuple[Whole, Count]]

# Ranges that the type hints of torch, mmengine and mmpretrain leave open, for the settings that recipes use: class or
# function to parameter to type.
RANGES: dict[Any, dict[str, Any]] = {
    torch.optim.Optimizer: dict(
        lr=Annotated[float, Gt(0), Le(1e4)],
        weight_decay=Annotated[float, Ge(0), Le(1e4)],
        eps=NonNegative,
        betas=tuple[BelowOne, ...],
        momentum=BelowOne,
        alpha=Share,
        dampening=Share,
        nesterov=bool,
    ),
    torch.nn.utils.clip_grad_norm_: dict(max_norm=Annotated[float, Gt(0)], norm_type=Annotated[float, Gt(0)]),
    torch.nn.utils.clip_grad_value_: dict(clip_value=Annotated[float, Gt(0)]),
    OptimWrapper: dict(accumulative_counts=Count),
    DataLoader: dict(
        batch_size=Annotated[int, Ge(1), Le(10**6)],
        num_workers=Annotated[int, Ge(0), Le(10**4)],
        drop_last=bool,
        prefetch_factor=Optional[Annotated[int, Ge(1), Le(10**4)]],
        timeout=NonNegative,
        pin_memory=bool,
        persistent_workers=bool,
    ),
    EpochBasedTrainLoop: dict(max_epochs=Count, val_interval=Count, val_begin=Whole, dynamic_intervals=Intervals),
    IterBasedTrainLoop: dict(max_iters=Count, val_interval=Count, val_begin=Whole, dynamic_intervals=Intervals),
    Hook: dict(interval=Count),
    CheckpointHook: dict(
        interval=Union[Count, Never], max_keep_ckpts=Union[Count, Never], save_begin=Whole, rule=Union[Rule, list[Rule]]
    ),
    EarlyStoppingHook: dict(patience=Whole, min_delta=NonNegative, rule=Rule, stopping_threshold=Finite),
    EMAHook: dict(momentum=OpenShare, begin_iter=Whole, begin_epoch=Whole),
    LogProcessor: dict(window_size=Count, by_epoch=bool, num_digits=Annotated[int, Ge(0), Le(20)]),
    Visualizer: dict(name=str, vis_backends=Optional[list]),
    _ParamScheduler: dict(
        by_epoch=bool,
        begin=Whole,
        end=Count,
        T_max=Count,
        step_size=Count,
        total_steps=Count,
        gamma=Positive,
        factor=NonNegative,
        eta_min=NonNegative,
        eta_max=NonNegative,
        eta_min_ratio=Share,
        start_factor=Annotated[float, Gt(0), Le(1)],
        end_factor=Share,
        power=NonNegative,
        milestones=list[Whole],
        pct_start=Share,
        div_factor=Positive,
        final_div_factor=Positive,
        anneal_strategy=Literal['cos', 'linear'],
        patience=Whole,
        cooldown=Whole,
        rule=Rule,
        periods=list[Count],
        threshold=NonNegative,
    ),
    CAMRefillDataPreprocessor: dict(
        mean=Union[Sequence[Finite], Literal['pretrained']], std=Union[Sequence[Positive], Literal['pretrained']]
    ),
    ClsDataPreprocessor: dict(mean=Sequence[Finite], std=Sequence[Positive]),
    ImgDataPreprocessor: dict(mean=Sequence[Finite], std=Sequence[Positive]),
    ResizeEdge: dict(
        scale=Pixels, interpolation=Literal['nearest', 'bilinear', 'bicubic', 'box', 'lanczos', 'hamming', 'area']
    ),
    CenterCrop: dict(crop_size=Union[Pixels, tuple[Pixels, Pixels]]),
    CrossEntropyLoss: dict(
        class_weight=Annotated[Sequence[Annotated[float, Ge(0), Le(1e6)]], Len(1)], loss_weight=NonNegative
    ),
    Runner.__init__: dict(
        launcher=Literal['none', 'pytorch', 'slurm', 'mpi'],
        load_from=Annotated[str, Len(1)],
    ),
    set_multi_processing: dict(mp_start_method=Literal['fork', 'forkserver', 'spawn'], opencv_num_threads=Whole),
    Runner.set_randomness: dict(seed=Optional[Seed]),
}

# Of DefaultOptimWrapperConstructor.
Mult = NonNegative

PARAMWISE = dict(
    bias_lr_mult=Mult,
    bias_decay_mult=Mult,
    norm_decay_mult=Mult,
    dwconv_decay_mult=Mult,
    flat_decay_mult=Mult,
    dcn_offset_lr_mult=Mult,
    bypass_duplicate=bool,
    custom_keys=dict[str, dict[str, Any]],
)

CUSTOM = dict(lr_mult=Mult, decay_mult=Mult)  # and, of custom_keys, what the optimizer takes

# mmpretrain's constructor with decay by layer reads these alone, and no lr_mult.
LAYER_DECAY = dict(
    {key: PARAMWISE[key] for key in ('bias_decay_mult', 'norm_decay_mult', 'flat_decay_mult', 'custom_keys')},
    layer_decay_rate=Annotated[float, Gt(0), Le(1)],
)

# Top-level keys of a config, by dotted name.
TOP_LEVEL = {
    'total_batch_size': Count,
    'cache_dir': Text,
    'work_dir': Text,
    'load_from': Text,
    'experiment_name': Text,
    'tf32': bool,
    'find_unused_parameters': bool,
    'compile': Union[bool, dict],
    'sync_bn': Literal['torch', 'mmcv'],
    'activation_checkpointing': Union[list[str], str],
    'efficient_conv_bn_eval': Union[list[str], str],
    'custom_imports': dict,
    'custom_imports.imports': Union[Text, list[Text]],
    'custom_imports.allow_failed_imports': bool,
    'env_cfg': dict,
}

# Keys of env_cfg, which Runner.setup_env reads.
ENVIRONMENT = dict(cudnn_benchmark=bool, mp_cfg=dict, dist_cfg=dict, resource_limit=Count)

# Keys of env_cfg.dist_cfg, which mmengine.dist.init_dist and torch.distributed.init_process_group read.
DISTRIBUTED = dict(
    backend=Literal['nccl', 'gloo', 'mpi', 'ucc', 'xccl', 'smddp', 'hccl', 'cncl', 'mccl'],
    init_backend=Literal['torch', 'deepspeed', 'colossalai'],
    timeout=Positive,
    port=Annotated[int, Ge(1), Le(65535)],
    init_method=Text,
    group_name=str,
    device_id=Any,
    pg_options=Any,
)

# Type hints that are wrong or missing in many classes, by the name of the parameter.
CORRECTED = dict(
    init_cfg=Union[dict, list[dict], None],
    neck=Union[dict, list[dict], None],
    loss_scale=Union[Literal['dynamic'], float, dict],
    bias=Any,
    keys=Any,
    out_indices=Any,
    eigvec=Any,
    input_size=Any,
    log_level=Union[Literal['DEBUG', 'INFO', 'WARNING', 'ERROR', 'CRITICAL', 'NOTSET'], int],
)

# The function that gets the ``**kwargs`` of a class.
FORWARDED = {CheckpointHook: Runner.save_checkpoint, EMAHook: MomentumAnnealingEMA.__init__}

# The type of a part without one, by the class that owns the part.
DEFAULTS = {
    CounterfactualClassifier: dict(data_preprocessor='CAMRefillDataPreprocessor', knn_gate='KNNGate'),
    ImageClassifier: dict(data_preprocessor='ClsDataPreprocessor'),
}

# Parts whose type is a word that only their owner knows.
OWN_TYPES = {CLIPDistillHead: dict(class_weights=CLASS_WEIGHTS), DualHead: dict(descriptions=CLASS_WEIGHTS)}

# Dicts of arguments, by the class that owns the dict: what takes them.
OPTIONS = {ContextTerm: dict(counterfactual=CounterfactualMaker)}

# Keys of a part that the class which owns the part takes for itself, and what their dicts are arguments of.
TAKEN = {CounterfactualClassifier: dict(backbone=KINDS)}

# Keys whose dicts, or lists of dicts, name a class of this registry, anywhere in a config.
REGISTRIES = dict(
    model=MODELS,
    backbone=MODELS,
    neck=MODELS,
    head=MODELS,
    teacher=MODELS,
    data_preprocessor=MODELS,
    knn_gate=MODELS,
    losses=MODELS,
    dataset=DATASETS,
    datasets=DATASETS,
    held_out=DATASETS,
    pipeline=TRANSFORMS,
    transforms=TRANSFORMS,
    sampler=DATA_SAMPLERS,
    batch_sampler=DATA_SAMPLERS,
    collate_fn=FUNCTIONS,
    worker_init_fn=FUNCTIONS,
    optimizer=OPTIMIZERS,
    vis_backends=registries.VISBACKENDS,
)

# By registry: keys of a part besides the arguments of its class, with their types; and arguments that mmengine gives.
BESIDES = {HOOKS: dict(priority=Any), PARAM_SCHEDULERS: dict(convert_to_iter_based=bool)}

GIVEN = {
    OPTIMIZERS: ('params',),
    PARAM_SCHEDULERS: ('optimizer', 'param_name', 'epoch_length'),
    LOOPS: ('runner', 'dataloader', 'evaluator'),
    DATA_SAMPLERS: ('dataset', 'seed', 'sampler', 'batch_size'),
    registries.MODEL_WRAPPERS: ('module',),
    registries.OPTIM_WRAPPERS: ('optimizer',),
    registries.VISBACKENDS: ('save_dir',),
}

# Registries to search for the type of a part under an unknown key.
ALL_REGISTRIES = (
    MODELS,
    registries.BATCH_AUGMENTS,
    TRANSFORMS,
    DATASETS,
    METRICS,
    HOOKS,
    registries.WEIGHT_INITIALIZERS,
)
