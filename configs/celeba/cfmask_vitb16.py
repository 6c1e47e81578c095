# The headline variant of the publication: object mask and single fill, with the published threshold of the pair (0.3).
_base_ = '../_base_/celeba.py'
model = dict(
    teacher=dict(type='OpenCLIPTeacher'),
    losses=[dict(type='CounterfactualDistillation')],
    head=dict(distill='feature', distill_weight=30.0),
    data_preprocessor=dict(mask='object', fill='single'),
)
