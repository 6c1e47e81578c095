# CFMask+ whose head starts from a linear probe, as in LP-FT, not from prompts.
_base_ = './cfmask_plus.py'
model = dict(
    head=dict(
        class_weights=dict(
            _delete_=True,
            type='linear_probe',
            dataset={{_base_.train_dataloader.dataset}},
            held_out={{_base_.val_dataloader.dataset}})))
