# Plain fine-tuning.
_base_ = '../_base_/imagenet.py'
model = dict(backbone=dict(model_name='ViT-B-32-quickgelu'))
