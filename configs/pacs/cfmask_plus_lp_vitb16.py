# CFMask+ whose head is initialised from a linear probe, as in LP-FT, not from class means. No temperature of the
# cross-entropy, and a tenth of the weight (docs/methods.md).
_base_ = '../_base_/pacs.py'
shared = (*_base_.shared, 'train_dataloader.dataset')  # the probe follows it
custom_hooks = [*_base_.custom_hooks, dict(type='RelativeEMAHook', horizon=0.2)]
model = dict(
    teacher=dict(type='OpenCLIPTeacher'),
    losses=[dict(type='CounterfactualDistillation')],
    head=dict(
        distill='feature',
        distill_weight=3.0,
        class_weights=dict(
            _delete_=True,
            type='linear_probe',
            dataset={{_base_.train_dataloader.dataset}},
        ),
    ),
    data_preprocessor=dict(mask='object', fill='single', views=dict(probability=0.5), color_mixing=0.7),
)
