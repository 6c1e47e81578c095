# Lipsum-FT with its authors' recipe: no weight decay, a warm-up of 10 %, no clipping of
# gradients, and the logit scale outside of the head: with Adam the head moves 26 times as fast.
_base_ = '../_base_/shapes.py'
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=5e-4, betas=(0.9, 0.999), weight_decay=0.0, fused=True),
    paramwise_cfg=dict(custom_keys={'head': dict(lr_mult=26)}),
)
param_scheduler = dict(pct_start=0.1, cycle_momentum=False, div_factor=1e3)
model = dict(
    teacher=dict(type='OpenCLIPTeacher'),
    losses=[dict(type='LipsumFT', weight=1.0, num_texts=80, length=8)],
)
