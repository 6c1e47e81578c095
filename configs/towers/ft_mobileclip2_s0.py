# Plain fine-tuning with MobileCLIP2-S0, 256 pixels.
_base_ = '../_base_/imagenet.py'
image_size = 256
model = dict(
    backbone=dict(model_name='MobileCLIP2-S0', pretrained='dfndr2b'),
    data_preprocessor=dict(mean='pretrained', std='pretrained'),
)
