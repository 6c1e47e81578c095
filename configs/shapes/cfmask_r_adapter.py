# CFMask with the adapters and the average of R-Adapter (Kim et al. 2024). The frozen tower is the teacher too. Nothing
# is dropped, so that student and teacher differ by what was learned alone.
_base_ = '../_base_/shapes.py'
optim_wrapper = dict(optimizer=dict(lr=5e-3, weight_decay=0.0))
custom_hooks = [*_base_.custom_hooks, dict(type='RelativeEMAHook', horizon=0.04)]
model = dict(
    backbone=dict(r_adapter=dict(drop=0.0)),
    teacher=dict(type='OpenCLIPTeacher'),
    losses=[dict(type='CounterfactualDistillation')],
    head=dict(distill='feature', distill_weight=30.0),
    data_preprocessor=dict(mask='object', fill='single'),
)
