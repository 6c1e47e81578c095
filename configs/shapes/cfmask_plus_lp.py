# CFMask+ whose head starts from a linear probe, as in LP-FT, not from prompts. A regularised probe is not sure of itself, so that the
# cross-entropy needs no temperature; a tenth of the weight then holds the tower.
_base_ = './cfmask_plus.py'
model = dict(
    head=dict(
        cls_temperature=1.,
        distill_weight=3.,
        class_weights=dict(
            _delete_=True,
            type='linear_probe',
            dataset={{_base_.train_dataloader.dataset}},
            held_out={{_base_.val_dataloader.dataset}})))
