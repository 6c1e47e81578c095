# Ours, beyond the publication: the counterfactual images also get other views and colours, so that a tenth of the weight holds the tower in
# more of what it saw before; the moving average of the weights is validated, saved and tested.
_base_ = './cfmask_vitb16.py'
custom_hooks = [*_base_.custom_hooks, dict(type='RelativeEMAHook', horizon=0.2)]
model = dict(head=dict(distill_weight=3.), data_preprocessor=dict(views=dict(probability=0.5), colors=0.7))
