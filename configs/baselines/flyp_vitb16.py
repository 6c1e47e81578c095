# FLYP (Goyal et al. 2023): CLIP's contrastive loss with prompts of the labels; the text tower is trained too, and makes
# the head.
_base_ = '../cfmask_vitb16.py'
model = dict(head=dict(cls_weight=0.0), teacher=None, auxiliary=[dict(type='FLYP')])
