# ImageNet: training images get the test transform (no augmentation); 10,240 of them are held out to choose the
# checkpoint. Tested on the validation set (ID) and on the shifts that are found (OOD).
#
# data_root: ImageNet's own folder with train/ and val/, and the shifts in it or beside it, or a folder of all sets
# under the names of their archives as unpacked (docs/data.md; tools/check_data.py tells what is found).
shared = ('data_root', 'pipeline')  # an override of one of them reaches every data set
data_root = 'data/imagenet/'

pipeline = [
    dict(type='LoadImageFromFile', imdecode_backend='pillow', color_type='color_ignore_orientation'),
    dict(type='ResizeEdge', scale=224, edge='short', backend='pillow', interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=224),
    dict(type='PackInputs'),
]
# ObjectNet's red border goes before the resize, which would smear it into the image.
objectnet_pipeline = [
    dict(type='LoadImageFromFile', imdecode_backend='pillow', color_type='color_ignore_orientation'),
    dict(type='CropBorder', border=2),
    dict(type='ResizeEdge', scale=224, edge='short', backend='pillow', interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=224),
    dict(type='PackInputs'),
]
corruption_pipeline = [
    dict(type='LoadImageFromFile', imdecode_backend='pillow', color_type='color_ignore_orientation'),
    dict(type='ResizeEdge', scale=224, edge='short', backend='pillow', interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=224),
    dict(type='PackInputs', meta_keys=('sample_idx', 'img_path', 'corruption', 'severity')),
]
test_loader = dict(
    batch_size=256,
    num_workers=8,
    pin_memory=True,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=False),
)

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
        pipeline=pipeline,
    ),
)
val_dataloader = dict(
    **test_loader,
    persistent_workers=True,
    dataset=dict(
        type='ImageNetDataset',
        data_root=data_root,
        split_dir='train',
        holdout=dict(size=10240, seed=0, part='held_out'),
        pipeline=pipeline,
    ),
)
val_evaluator = dict(type='ShiftAccuracy')
test_dataloader = {
    'imagenet': dict(
        **test_loader, dataset=dict(type='ImageNetDataset', data_root=data_root, split_dir='val', pipeline=pipeline)
    ),
    'imagenet-v2': dict(**test_loader, dataset=dict(type='ImageNetV2Dataset', data_root=data_root, pipeline=pipeline)),
    'imagenet-r': dict(**test_loader, dataset=dict(type='ImageNetRDataset', data_root=data_root, pipeline=pipeline)),
    'imagenet-a': dict(**test_loader, dataset=dict(type='ImageNetADataset', data_root=data_root, pipeline=pipeline)),
    'imagenet-sketch': dict(
        **test_loader, dataset=dict(type='ImageNetSketchDataset', data_root=data_root, pipeline=pipeline)
    ),
    'objectnet': dict(
        **test_loader, dataset=dict(type='ObjectNetDataset', data_root=data_root, pipeline=objectnet_pipeline)
    ),
    'imagenet-c': dict(
        **test_loader, dataset=dict(type='ImageNetCDataset', data_root=data_root, pipeline=corruption_pipeline)
    ),
}
test_evaluator = dict(type='ShiftAccuracy', evaluators={'imagenet-c': dict(type='CorruptionError')})
# The shifts that are not found are left out, and named. ImageNet-C (3.75 million images) runs only where it is asked
# for.
test_cfg = dict(
    type='MultiSetTestLoop',
    id_set='imagenet',
    shifts=['imagenet-v2', 'imagenet-r', 'imagenet-a', 'imagenet-sketch', 'objectnet'],
    skip_missing=True,
)
