# R-Adapter (Kim et al. 2024), image part: linear adapters behind attention and MLP, dropped at random, and averaged
# over the same share of the run as in the paper. MPM-NCE compares the images with prompts of their labels. Needs the
# text tower. Test it re-scaled: python tools/wise_ft.py CONFIG CHECKPOINT --alphas 0.5
_base_ = '../_base_/shapes.py'
optim_wrapper = dict(optimizer=dict(lr=5e-3, weight_decay=0.0))
custom_hooks = [*_base_.custom_hooks, dict(type='RelativeEMAHook', horizon=0.04)]
model = dict(
    backbone=dict(r_adapter=dict(drop=0.2)),
    losses=[dict(type='MPMNCE', margin=0.05, smoothing=0.02)],
    head=dict(cls_weight=0.0),
)
