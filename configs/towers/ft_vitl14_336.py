# Plain fine-tuning with OpenAI's CLIP ViT-L/14, 336 pixels.
_base_ = '../_base_/imagenet.py'
image_size = 336
model = dict(backbone=dict(model_name='ViT-L-14-336-quickgelu', grad_checkpointing=True))
train_dataloader = dict(batch_size=16)  # 8 GPUs x 16 images, accumulated 4 times
