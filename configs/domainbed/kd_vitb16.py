# Knowledge distillation (Hinton et al. 2015) on clean images. On counterfactual images: a config of CFMask with
# --cfg-options model.head.distill=logits
_base_ = '../_base_/domainbed.py'
model = dict(
    teacher=dict(type='OpenCLIPTeacher'),
    losses=[dict(type='Distillation')],
    head=dict(distill='logits', distill_weight=30.0, temperature=10.0),
)
