# FLYP with its authors' recipe: a warm-up of 2 %, constant betas, no clipping of gradients.
_base_ = '../_base_/shapes.py'
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=5e-4, betas=(0.9, 0.999), weight_decay=0.1, fused=True),
)
param_scheduler = dict(cycle_momentum=False, div_factor=1e3)
model = dict(
    losses=[dict(type='FLYP')],
    head=dict(cls_weight=0.0),
)
