# Plain fine-tuning with OpenAI's CLIP ResNet-50.
_base_ = '../_base_/imagenet.py'
model = dict(
    backbone=dict(model_name='RN50-quickgelu', pretrained='openai'),
    data_preprocessor=dict(mean='pretrained', std='pretrained'),
)
