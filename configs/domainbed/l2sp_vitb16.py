# L2-SP (Li et al. 2018): the weights are held to the pretrained weights, in place of weight decay.
_base_ = '../_base_/domainbed.py'
optim_wrapper = dict(optimizer=dict(weight_decay=0.0))
model = dict(
    teacher=dict(type='OpenCLIPTeacher'),
    losses=[dict(type='L2SP', alpha=0.1, beta=0.01)],
)
