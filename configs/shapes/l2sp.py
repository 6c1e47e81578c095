# L2-SP (Li et al. 2018): weights are held to their start, in place of weight decay.
_base_ = './cfmask.py'
optim_wrapper = dict(optimizer=dict(weight_decay=0.0))
model = dict(head=dict(distill=None), auxiliary=[dict(type='L2SP', alpha=0.1, beta=0.01)])
