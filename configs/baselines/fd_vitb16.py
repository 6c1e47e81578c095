# Feature distillation on the images as they are: no masks.
_base_ = '../cfmask_vitb16.py'
model = dict(data_preprocessor=dict(mask=None))
