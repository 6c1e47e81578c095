# Zero-shot CLIP: nothing is trained, tools/test.py tests it without a checkpoint.
_base_ = '../_base_/celeba.py'
train_cfg = train_dataloader = optim_wrapper = param_scheduler = val_cfg = val_dataloader = val_evaluator = None
