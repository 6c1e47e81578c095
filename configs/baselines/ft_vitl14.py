# Plain fine-tuning: no teacher, no counterfactuals.
_base_ = '../cfmask_vitb16.py'
model = dict(backbone=dict(model_name='ViT-L-14-quickgelu'), teacher=None)
