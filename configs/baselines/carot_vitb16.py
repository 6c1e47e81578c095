# CaRot (Oh et al. 2024) on FLYP: the projection is held orthogonal, and a moving average of both towers teaches the
# similarities of the batch. Needs the text tower.
_base_ = '../_base_/imagenet.py'
model = dict(
    losses=[dict(type='CaRot', orthogonality=0.2, distillation=1.5)],
    head=dict(cls_weight=0.0),
)
