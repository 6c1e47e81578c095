# CFMask+, ours, beyond the publication. A temperature of the cross-entropy lets all training images count, not only
# those that the zero-shot model gets wrong. The counterfactual images also get other views and mixed colours. The
# moving average of the weights is validated, saved and tested.
_base_ = '../_base_/waterbirds.py'
custom_hooks = [*_base_.custom_hooks, dict(type='RelativeEMAHook', horizon=0.2)]
model = dict(
    teacher=dict(type='OpenCLIPTeacher'),
    losses=[dict(type='CounterfactualDistillation')],
    head=dict(distill='feature', distill_weight=30.0, cls_temperature=10.0),
    data_preprocessor=dict(mask='object', fill='single', views=dict(probability=0.5), color_mixing=0.7),
)
