# Feature distillation on the images as they are: no masks.
_base_ = './cfmask.py'
model = dict(data_preprocessor=dict(mask=None))
