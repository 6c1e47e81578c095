# Plain fine-tuning, its weights averaged: validated, saved and tested is the moving average, which reaches back a fifth
# of the run.
_base_ = './cfmask.py'
custom_hooks = [*_base_.custom_hooks, dict(type='RelativeEMAHook', horizon=0.2)]
model = dict(teacher=None)
