# ImageNet: training images get the test transform (no augmentation); 10,240 of them are held out to choose the checkpoint.
data_root = 'data/imagenet/'

pipeline = [
    dict(type='LoadImageFromFile', imdecode_backend='pillow', color_type='color_ignore_orientation'),
    dict(type='ResizeEdge', scale=224, edge='short', backend='pillow', interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=224),
    dict(type='PackInputs'),
]

train_dataloader = dict(
    batch_size=64,
    num_workers=8,
    persistent_workers=True,
    pin_memory=True,
    drop_last=True,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='ResumableSampler', shuffle=True),
    dataset=dict(
        type='ImageNetDataset',
        data_root=data_root,
        split_dir='train',
        holdout=dict(size=10240, seed=0, part='train'),
        pipeline=pipeline))
val_dataloader = dict(
    batch_size=256,
    num_workers=8,
    persistent_workers=True,
    pin_memory=True,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='ImageNetDataset',
        data_root=data_root,
        split_dir='train',
        holdout=dict(size=10240, seed=0, part='held_out'),
        pipeline=pipeline))
val_evaluator = dict(type='Accuracy', topk=(1, 5))
test_dataloader = dict(
    val=dict(
        batch_size=256,
        num_workers=8,
        pin_memory=True,
        collate_fn=dict(type='default_collate'),
        sampler=dict(type='DefaultSampler', shuffle=False),
        dataset=dict(type='ImageNetDataset', data_root=data_root, split_dir='val', pipeline=pipeline)))
test_evaluator = dict(type='Accuracy', topk=(1, 5))
