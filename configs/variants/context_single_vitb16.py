# CFMask with context mask and single fill, at the published threshold.
_base_ = '../_base_/imagenet.py'
model = dict(
    teacher=dict(type='OpenCLIPTeacher'),
    losses=[dict(type='CounterfactualDistillation')],
    head=dict(distill='feature', distill_weight=30.0),
    data_preprocessor=dict(mask='context', fill='single', value=0.5),
)
