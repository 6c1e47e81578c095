# FLYP (Goyal et al. 2023): CLIP's contrastive loss with prompts of the labels. The text tower is trained too, and makes
# the head.
_base_ = '../_base_/shapes.py'
model = dict(
    losses=[dict(type='FLYP')],
    head=dict(cls_weight=0.0),
)
