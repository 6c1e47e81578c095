# Plain fine-tuning.
_base_ = '../_base_/imagenet.py'
model = dict(backbone=dict(model_name='ViT-L-14-quickgelu', grad_checkpointing=True))
train_dataloader = dict(batch_size=32)  # 8 GPUs x 32 images, accumulated twice
