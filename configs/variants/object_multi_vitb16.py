_base_ = '../cfmask_vitb16.py'
model = dict(data_preprocessor=dict(mask='object', fill='multi', value=0.6))
