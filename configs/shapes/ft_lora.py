# Plain fine-tuning with LoRA (Hu et al. 2022): adapters of rank 8 and the head are trained, the tower stays frozen.
_base_ = '../_base_/shapes.py'
optim_wrapper = dict(optimizer=dict(lr=5e-3))
model = dict(backbone=dict(lora=dict(rank=8)))
