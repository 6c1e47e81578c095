# CFMask with EVA02 ViT-B/16.
_base_ = '../_base_/imagenet.py'
model = dict(
    backbone=dict(model_name='EVA02-B-16', pretrained='merged2b_s8b_b131k'),
    teacher=dict(type='OpenCLIPTeacher'),
    losses=[dict(type='CounterfactualDistillation')],
    data_preprocessor=dict(mean='pretrained', std='pretrained', mask='object', fill='single'),
)
