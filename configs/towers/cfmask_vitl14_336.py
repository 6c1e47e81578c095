# CFMask (object mask, single fill) with OpenAI's CLIP ViT-L/14, 336 pixels.
_base_ = '../_base_/imagenet.py'
image_size = 336
model = dict(
    backbone=dict(model_name='ViT-L-14-336-quickgelu', grad_checkpointing=True),
    teacher=dict(type='OpenCLIPTeacher'),
    losses=[dict(type='CounterfactualDistillation')],
)
train_dataloader = dict(batch_size=16)  # 8 GPUs x 16 images, accumulated 4 times
