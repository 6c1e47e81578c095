_base_ = '../cfmask_vitb16.py'
model = dict(data_preprocessor=dict(mask='random', fill='multi', value=0.5))
