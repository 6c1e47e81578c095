# Feature distillation on clean images.
_base_ = '../_base_/wilds.py'
model = dict(
    teacher=dict(type='OpenCLIPTeacher'),
    losses=[dict(type='Distillation')],
    head=dict(distill='feature', distill_weight=30.0),
)
