# CFMask+ whose head starts from a linear probe, as in LP-FT, not from class means. No temperature of the
# cross-entropy, and a tenth of the weight: both were set for the probe of 0.1.0, which was less sure of itself than one
# that is chosen by its cross-entropy (docs/methods.md).
_base_ = './cfmask_plus_vitb16.py'
model = dict(
    head=dict(
        cls_temperature=1.0,
        distill_weight=3.0,
        class_weights=dict(_delete_=True, type='linear_probe', dataset={{_base_.train_dataloader.dataset}}),
    )
)
