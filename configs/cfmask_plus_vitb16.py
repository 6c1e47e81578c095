# Ours, beyond the publication: a temperature of the cross-entropy lets all training images count, and not only those
# that the start gets wrong; the counterfactual images also get other views and colours; the moving average of the
# weights is validated, saved and tested.
_base_ = './cfmask_vitb16.py'
custom_hooks = [*_base_.custom_hooks, dict(type='RelativeEMAHook', horizon=0.2)]
model = dict(head=dict(cls_temperature=10.0), data_preprocessor=dict(views=dict(probability=0.5), colors=0.7))
