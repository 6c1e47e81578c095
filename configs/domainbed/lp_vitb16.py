# Linear probe: the tower is frozen, the head is trained. A linear layer takes larger steps than a tower.
_base_ = '../_base_/domainbed.py'
optim_wrapper = dict(optimizer=dict(lr=1e-3, weight_decay=0.0))
model = dict(backbone=dict(frozen=True))
