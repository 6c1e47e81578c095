# CFMask+ whose head starts from a linear probe, as in LP-FT, not from class means.
_base_ = './cfmask_plus_vitb16.py'
model = dict(head=dict(class_weights=dict(_delete_=True, type='linear_probe', dataset={{_base_.train_dataloader.dataset}})))
