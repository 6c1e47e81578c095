# Plain fine-tuning with PE-Core ViT-B/16.
_base_ = '../_base_/imagenet.py'
model = dict(
    backbone=dict(model_name='PE-Core-B-16', pretrained='meta'),
    data_preprocessor=dict(mean='pretrained', std='pretrained'),
)
