# CaRot (Oh et al. 2024) without the text tower: the projection is held orthogonal, and a moving average of the model
# teaches the class logits.
_base_ = '../_base_/imagenet.py'
model = dict(losses=[dict(type='CaRotImage', orthogonality=0.2, distillation=1.5)])
