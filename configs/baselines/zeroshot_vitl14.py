# CLIP as it comes, for tools/test.py without a checkpoint.
_base_ = '../cfmask_vitb16.py'
model = dict(backbone=dict(model_name='ViT-L-14-quickgelu'), teacher=None)
train_cfg = None
train_dataloader = None
optim_wrapper = None
param_scheduler = None
val_cfg = None
val_dataloader = None
val_evaluator = None
