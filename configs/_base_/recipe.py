# The published recipe (CVPR 2023, section 4.1): optimizer, schedule, and what a run writes.
custom_imports = dict(imports=['mmcfmask'], allow_failed_imports=False)
default_scope = 'mmpretrain'

# Images per optimizer step over all processes. Fewer GPUs accumulate gradients.
total_batch_size = 512

optim_wrapper = dict(
    type='OptimWrapper',  # --amp: AutocastOptimWrapper (bfloat16)
    optimizer=dict(type='AdamW', lr=3e-5, betas=(0.9, 0.999), weight_decay=0.1, fused=True),
    clip_grad=dict(max_norm=1.0),
)
# The peak is the optimizer's lr, the length is train_cfg.max_epochs, and it advances with every optimizer step. beta1
# falls from 0.95 to 0.85 while the learning rate rises, and then rises again: betas[0] above has no effect.
param_scheduler = dict(
    type='OneCycle',
    pct_start=0.02,
    anneal_strategy='cos',
    div_factor=25.0,
    final_div_factor=1e4,
    cycle_momentum=True,
    convert_to_iter_based=True,
)
train_cfg = dict(type='ResumableEpochLoop', max_epochs=10, val_interval=1)
val_cfg = dict()

randomness = dict(seed=0)
env_cfg = dict(
    cudnn_benchmark=True, mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0), dist_cfg=dict(backend='nccl')
)
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    # Chosen by accuracy on images held out of the training set, never by a test set or a shift.
    checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=2, save_best='accuracy/top1', rule='greater'),
    sampler_seed=dict(type='DistSamplerSeedHook'),
)
custom_hooks = [
    dict(type='IterationSeedHook'),
    dict(type='CheckClassesHook'),
    dict(type='StopOnInvalidLossHook'),
    # To resume mid-epoch.
    dict(
        type='CheckpointHook',
        by_epoch=False,
        interval=1000,
        max_keep_ckpts=2,
        filename_tmpl='resume_{}.pth',
        save_last=False,
    ),
]
visualizer = dict(type='UniversalVisualizer', vis_backends=[dict(type='LocalVisBackend')])
log_processor = dict(type='MeanLogProcessor')
log_level = 'INFO'
load_from = None
resume = False
