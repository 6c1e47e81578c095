# Plain fine-tuning: no teacher, no counterfactuals.
_base_ = './cfmask_vitb16.py'
model = dict(teacher=None)
