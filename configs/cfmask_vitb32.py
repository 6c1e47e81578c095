# CFMask with ViT-B/32.
_base_ = '_base_/imagenet.py'
model = dict(
    backbone=dict(model_name='ViT-B-32-quickgelu'),
    teacher=dict(type='OpenCLIPTeacher'),
    losses=[dict(type='CounterfactualDistillation')],
    head=dict(distill='feature', distill_weight=30.0),
    data_preprocessor=dict(mask='object', fill='single'),
)
