# CFMask with context mask and no fill, at the published threshold.
_base_ = '../_base_/imagenet.py'
model = dict(
    teacher=dict(type='OpenCLIPTeacher'),
    losses=[dict(type='CounterfactualDistillation')],
    head=dict(distill='feature', distill_weight=30.0),
    data_preprocessor=dict(mask='context', fill='none', value=0.6),
)
