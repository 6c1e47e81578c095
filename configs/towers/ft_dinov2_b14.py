# Plain fine-tuning with mmpretrain's DINOv2 ViT-B/14. The head starts from class means.
_base_ = '../_base_/imagenet.py'
weights = 'https://download.openmmlab.com/mmpretrain/v1.0/dinov2/vit-base-p14_dinov2-pre_3rdparty_20230426-ba246503.pth'
vit = dict(_delete_=True, type='VisionTransformer', arch='base', patch_size=14, layer_scale_init_value=1e-5)
model = dict(
    backbone=dict(**vit, init_cfg=dict(type='Pretrained', checkpoint=weights, prefix='backbone')),
    head=dict(class_weights=dict(_delete_=True, type='prototype', dataset={{_base_.train_dataloader.dataset}})),
    data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]),
)
