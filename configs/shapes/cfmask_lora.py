# CFMask with LoRA (Hu et al. 2022): adapters of rank 8 and the head are trained. The frozen tower is the teacher too.
_base_ = '../_base_/shapes.py'
optim_wrapper = dict(optimizer=dict(lr=5e-3))
model = dict(
    backbone=dict(lora=dict(rank=8)),
    teacher=dict(type='OpenCLIPTeacher'),
    losses=[dict(type='CounterfactualDistillation')],
    head=dict(distill='feature', distill_weight=30.0),
    data_preprocessor=dict(mask='object', fill='single'),
)
