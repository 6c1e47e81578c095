# Knowledge distillation (Hinton et al. 2015) on the images as they are: no masks. With masks: any config of
# counterfactuals and --cfg-options model.head.distill=logits
_base_ = './cfmask.py'
model = dict(head=dict(distill='logits', distill_weight=30.0, temperature=10.0), data_preprocessor=dict(mask=None))
