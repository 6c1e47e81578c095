# Plain fine-tuning, its weights averaged: validated, saved and tested is the moving average. Its horizon, 1/momentum optimizer steps, is a
# fifth of the run.
_base_ = '../cfmask_vitb16.py'
custom_hooks = [*_base_.custom_hooks, dict(type='EMAHook', momentum=2e-4)]
model = dict(teacher=None)
