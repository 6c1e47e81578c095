# LP-FT with its authors' recipe: SGD with momentum, no weight decay, batch 64, cosine decay without a warm-up, no
# clipping of gradients. They choose the learning rate from a grid up to 3e-2.
_base_ = '../_base_/imagenet.py'
shared = (*_base_.shared, 'train_dataloader.dataset')  # the probe follows it
total_batch_size = 64
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=1e-3, momentum=0.9, weight_decay=0.0),
)
param_scheduler = dict(pct_start=0.0, cycle_momentum=False)
model = dict(
    head=dict(
        class_weights=dict(
            _delete_=True,
            type='linear_probe',
            dataset={{_base_.train_dataloader.dataset}},
        )
    )
)
