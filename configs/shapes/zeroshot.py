# CLIP as it comes, for tools/test.py without a checkpoint.
_base_ = './cfmask.py'
model = dict(teacher=None)
train_cfg = None
train_dataloader = None
optim_wrapper = None
param_scheduler = None
val_cfg = None
val_dataloader = None
val_evaluator = None
