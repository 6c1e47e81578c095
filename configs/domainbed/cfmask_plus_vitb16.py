# CFMask+, ours, beyond the publication: the object stays, its context is another class's, and the label stays. The
# counterfactual images also get other views and mixed colours. The moving average of the weights is validated, saved
# and tested. docs/methods.md says how it was chosen.
_base_ = '../_base_/domainbed.py'
custom_hooks = [*_base_.custom_hooks, dict(type='RelativeEMAHook', horizon=0.2)]
model = dict(
    teacher=dict(type='OpenCLIPTeacher'),
    losses=[dict(type='CounterfactualDistillation'), dict(type='CounterfactualCrossEntropy', weight=1.0)],
    head=dict(distill='feature', distill_weight=30.0),
    data_preprocessor=dict(
        mask='context',
        mask_share=0.6,
        fill='single',
        relevance=dict(outliers=6.0, smooth='mean'),
        donors='other_class',
        views=dict(probability=0.5),
        color_mixing=0.7,
    ),
)
