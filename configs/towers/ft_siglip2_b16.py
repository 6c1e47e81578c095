# Plain fine-tuning with SigLIP 2 ViT-B/16.
_base_ = '../_base_/imagenet.py'
model = dict(
    backbone=dict(model_name='ViT-B-16-SigLIP2', pretrained='webli'),
    data_preprocessor=dict(mean='pretrained', std='pretrained'),
)
