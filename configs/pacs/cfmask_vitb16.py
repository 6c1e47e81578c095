_base_ = ['../_base_/recipe.py', '../_base_/pacs.py']
total_batch_size = 32
model = dict(
    head=dict(distill='feature', distill_weight=30.0),
    teacher=dict(type='OpenCLIPTeacher'),
    data_preprocessor=dict(mask='object', fill='single'),
)
