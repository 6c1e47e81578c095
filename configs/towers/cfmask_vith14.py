# CFMask with OpenCLIP's ViT-H-14.
_base_ = '../_base_/imagenet.py'
model = dict(
    backbone=dict(model_name='ViT-H-14', pretrained='laion2b_s32b_b79k', grad_checkpointing=True),
    teacher=dict(type='OpenCLIPTeacher'),
    losses=[dict(type='CounterfactualDistillation')],
    data_preprocessor=dict(mean='pretrained', std='pretrained', mask='object', fill='single'),
)
train_dataloader = dict(batch_size=16)  # 8 GPUs x 16 images, accumulated 4 times
