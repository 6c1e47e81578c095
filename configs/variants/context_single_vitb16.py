_base_ = '../cfmask_vitb16.py'
model = dict(data_preprocessor=dict(mask='context', fill='single', value=0.5))
