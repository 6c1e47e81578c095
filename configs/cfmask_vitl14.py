# CFMask with ViT-L/14.
_base_ = '_base_/imagenet.py'
model = dict(
    backbone=dict(model_name='ViT-L-14-quickgelu', grad_checkpointing=True),
    teacher=dict(type='OpenCLIPTeacher'),
    losses=[dict(type='CounterfactualDistillation')],
    head=dict(distill='feature', distill_weight=30.0),
    data_preprocessor=dict(mask='object', fill='single'),
)
train_dataloader = dict(batch_size=32)  # 8 GPUs x 32 images, accumulated twice
