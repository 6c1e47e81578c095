# Plain fine-tuning: no teacher, no counterfactuals.
_base_ = './cfmask.py'
model = dict(teacher=None)
