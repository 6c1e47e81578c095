# Linear probe: the tower is frozen, the head is trained. A linear layer takes larger steps than a tower.
_base_ = '../_base_/shapes.py'
# The best of 1e-3, 1e-2 and 1e-1, by accuracy on val.
optim_wrapper = dict(optimizer=dict(lr=1e-1, weight_decay=0.0))
model = dict(backbone=dict(frozen=True))
