# CFMask with OpenAI's CLIP ResNet-50.
_base_ = '../_base_/imagenet.py'
model = dict(
    backbone=dict(model_name='RN50-quickgelu', pretrained='openai'),
    teacher=dict(type='OpenCLIPTeacher'),
    losses=[dict(type='CounterfactualDistillation')],
    data_preprocessor=dict(mean='pretrained', std='pretrained', mask='object', fill='single'),
)
