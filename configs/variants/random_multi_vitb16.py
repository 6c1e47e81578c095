# CFMask with random mask and multi fill, at the published probability.
_base_ = '../_base_/imagenet.py'
model = dict(
    teacher=dict(type='OpenCLIPTeacher'),
    losses=[dict(type='CounterfactualDistillation')],
    head=dict(distill='feature', distill_weight=30.0),
    data_preprocessor=dict(mask='random', fill='multi', value=0.5),
)
