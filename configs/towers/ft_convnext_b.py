# Plain fine-tuning with OpenCLIP's ConvNeXt-B, 256 pixels.
_base_ = '../_base_/imagenet.py'
image_size = 256
model = dict(
    backbone=dict(model_name='convnext_base_w', pretrained='laion2b_s13b_b82k_augreg'),
    data_preprocessor=dict(mean='pretrained', std='pretrained'),
)
