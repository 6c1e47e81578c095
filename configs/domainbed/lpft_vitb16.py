# LP-FT (Kumar et al. 2022): a linear probe to convergence, then fine-tuning from it. Tested without a checkpoint, it is
# the linear probe.
_base_ = '../_base_/domainbed.py'
shared = (*_base_.shared, 'train_dataloader.dataset')  # the probe follows it
model = dict(
    head=dict(
        class_weights=dict(
            _delete_=True,
            type='linear_probe',
            dataset={{_base_.train_dataloader.dataset}},
        )
    )
)
