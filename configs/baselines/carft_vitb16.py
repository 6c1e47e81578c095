# CAR-FT (Mao et al. 2024): the distribution of an image over the contexts of prompts is held to its start. Needs the
# text tower.
_base_ = '../cfmask_vitb16.py'
model = dict(head=dict(distill=None), auxiliary=[dict(type='CARFT', weight=1.0)])
