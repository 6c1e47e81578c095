# Plain fine-tuning with OpenCLIP's ViT-bigG-14, for --fsdp.
_base_ = '../_base_/imagenet.py'
model = dict(
    backbone=dict(model_name='ViT-bigG-14', pretrained='laion2b_s39b_b160k', grad_checkpointing=True),
    data_preprocessor=dict(mean='pretrained', std='pretrained'),
)
train_dataloader = dict(batch_size=8)  # 8 GPUs x 8 images, accumulated 8 times
