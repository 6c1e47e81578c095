# SPD (Tian et al. 2024): where the gradient points back to the pretrained weights, a step does not lead away from them.
# In place of weight decay.
_base_ = '../_base_/pacs.py'
optim_wrapper = dict(optimizer=dict(type='AdamSPD', weight_decay=0.0, spd=1.0))
