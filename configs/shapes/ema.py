# Plain fine-tuning with a moving average of the weights over a fifth of the run. The average is validated, saved and
# tested.
_base_ = '../_base_/shapes.py'
custom_hooks = [*_base_.custom_hooks, dict(type='RelativeEMAHook', horizon=0.2)]
