_base_ = ['../_base_/recipe.py', '../_base_/shapes.py']
total_batch_size = 64
optim_wrapper = dict(optimizer=dict(lr=5e-4))  # the tower has 1/70 of the weights of ViT-B/16
train_cfg = dict(max_epochs=10)
default_hooks = dict(logger=dict(interval=10))
model = dict(
    head=dict(distill='feature', distill_weight=30.),
    teacher=dict(type='OpenCLIPTeacher'),
    data_preprocessor=dict(mask='object', fill='single', value=0.3))
