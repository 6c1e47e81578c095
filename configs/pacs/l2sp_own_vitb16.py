# L2-SP with its authors' recipe: SGD with momentum, batch 64, a tenth of the learning rate after six tenths of the
# training, no clipping of gradients, and the head decays to 0.
_base_ = '../_base_/pacs.py'
total_batch_size = 64
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=1e-2, momentum=0.9, weight_decay=0.0),
)
param_scheduler = dict(_delete_=True, type='MultiStepLR', milestones=[6], gamma=0.1)
model = dict(
    teacher=dict(type='OpenCLIPTeacher'),
    losses=[dict(type='L2SP', alpha=0.1, beta=0.01, head='zero')],
)
