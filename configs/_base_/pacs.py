# Plain fine-tuning of CLIP ViT-B/16 on PACS (7 classes, 4 domains, <data_root>/<domain>/<class>/<image>). Trained on
# eight tenths of photo; one tenth is held out to choose the checkpoint; tested on the last tenth (ID) and on the other
# three domains (OOD). The test part is fixed; holdout.seed='run' draws the other parts anew for every seed
# (studies/pacs.yaml).
_base_ = ['recipe.py', 'clip.py']
total_batch_size = 32

# An override of one of these variables reaches every key of its name that held the old value.
shared = ('data_root', 'image_size', 'pipeline')
data_root = 'data/pacs/'
image_size = 224

pipeline = [
    dict(type='LoadImageFromFile', imdecode_backend='pillow', color_type='color_ignore_orientation'),
    dict(type='ResizeCenterCrop', image_size=image_size),
    dict(type='PackInputs'),
]
photo = dict(type='PACSDataset', data_root=data_root, domain='photo', pipeline=pipeline)
split = dict(fraction=0.1, seed=0, test=0.1, test_seed=0)
train_set = dict(**photo, holdout=dict(**split, part='train'))
held_out_set = dict(**photo, holdout=dict(**split, part='held_out'))
test_set = dict(**photo, holdout=dict(**split, part='test'))
test_loader = dict(
    batch_size=64,
    num_workers=4,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=False),
)

train_dataloader = dict(
    batch_size=32,
    num_workers=4,
    persistent_workers=True,
    drop_last=True,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='ResumableSampler', shuffle=True),
    dataset=train_set,
)
val_dataloader = dict(**test_loader, persistent_workers=True, dataset=held_out_set)
val_evaluator = dict(type='ShiftAccuracy')
test_dataloader = dict(
    photo=dict(**test_loader, dataset=test_set),
    art_painting=dict(
        **test_loader, dataset=dict(type='PACSDataset', data_root=data_root, domain='art_painting', pipeline=pipeline)
    ),
    cartoon=dict(
        **test_loader, dataset=dict(type='PACSDataset', data_root=data_root, domain='cartoon', pipeline=pipeline)
    ),
    sketch=dict(
        **test_loader, dataset=dict(type='PACSDataset', data_root=data_root, domain='sketch', pipeline=pipeline)
    ),
)
test_evaluator = dict(type='ShiftAccuracy')

# The head is initialised from class means of training photos, which needs no text tower.
model = dict(
    backbone=dict(image_size=image_size),
    head=dict(num_classes=7, class_weights=dict(type='prototype', dataset=train_set, per_class=60)),
)

test_cfg = dict(type='MultiSetTestLoop', id_set='photo')
