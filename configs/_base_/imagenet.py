# Plain fine-tuning of CLIP ViT-B/16 on ImageNet. Training images get the test transform (no augmentation); 10,240 of
# them are held out to choose the checkpoint. Tested on the validation set (ID) and on the shifts that are found (OOD).
_base_ = ['recipe.py', 'clip.py']

# ImageNet's folder with train/ and val/, and the shifts in it or beside it; or a folder of all sets under the names of
# their unpacked archives (docs/data.md; tools/check_data.py lists what is found).
data_root = 'data/imagenet/'
# Height and width of images.
image_size = 224

# An override of one of these variables reaches every key of its name that held the old value.
shared = ('data_root', 'image_size', 'pipeline')

load = dict(type='LoadImageFromFile', imdecode_backend='pillow', color_type='color_ignore_orientation')
crop = dict(type='ResizeCenterCrop', image_size=image_size)
pipeline = [load, crop, dict(type='PackInputs')]
# ObjectNet's red border is cut off before the resize, which would smear it into the image.
objectnet_pipeline = [load, dict(type='CropBorder', border=2), crop, dict(type='PackInputs')]
corruption_pipeline = [
    load,
    crop,
    dict(type='PackInputs', meta_keys=('sample_idx', 'img_path', 'corruption', 'severity')),
]
group_pipeline = [load, crop, dict(type='PackInputs', meta_keys=('sample_idx', 'img_path', 'group', 'texture'))]

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
# Other benchmarks and how each is judged (docs/protocols.md). They run only on request: --shifts imagenet-9 cars …
test_dataloader.update(
    {
        name: dict(**test_loader, dataset=dict(**dataset, data_root=data_root, pipeline=group_pipeline))
        for name, dataset in {
            'imagenet-9': dict(type='ImageNet9Dataset'),
            'counteranimal': dict(type='CounterAnimalDataset'),
            'cue-conflict': dict(type='GeirhosDataset', stimuli='cue-conflict'),
            'silhouettes': dict(type='GeirhosDataset', stimuli='silhouettes'),
            'edges': dict(type='GeirhosDataset', stimuli='edges'),
            'imagenet-real': dict(type='ImageNetRealDataset'),
            'imagenet-x': dict(type='ImageNetXDataset'),
            'imagenet-d': dict(type='ImageNetDDataset'),
            'imagenet-hard': dict(type='ImageNetHardDataset'),
            'cifar10': dict(type='ZeroShotDataset', benchmark='cifar10'),
            'cifar100': dict(type='ZeroShotDataset', benchmark='cifar100'),
            'food101': dict(type='ZeroShotDataset', benchmark='food101'),
            'cars': dict(type='ZeroShotDataset', benchmark='cars'),
        }.items()
    }
)
test_evaluator = dict(
    type='ShiftAccuracy',
    evaluators={
        'imagenet-c': dict(type='CorruptionError'),
        'imagenet-9': dict(type='PartAccuracy', gaps=dict(bg_gap=['mixed_same', 'mixed_rand'])),
        'counteranimal': dict(type='PartAccuracy', gaps=dict(counter_drop=['common', 'counter'])),
        'cue-conflict': dict(type='ShapeBias'),
        'silhouettes': dict(type='CoarseAccuracy'),
        'edges': dict(type='CoarseAccuracy'),
        'imagenet-real': dict(type='ShiftAccuracy', apart=True),
        'imagenet-x': dict(type='FactorAccuracy', apart=True),
        'imagenet-d': dict(type='PartAccuracy'),
        'cifar10': dict(type='KeptZeroShot'),
        'cifar100': dict(type='KeptZeroShot'),
        'food101': dict(type='KeptZeroShot'),
        'cars': dict(type='KeptZeroShot'),
    },
)
# Shifts that are not found are left out, with a warning. ImageNet-C (3.75 million images) runs only on request.
test_cfg = dict(
    type='MultiSetTestLoop',
    id_set='imagenet',
    shifts=['imagenet-v2', 'imagenet-r', 'imagenet-a', 'imagenet-sketch', 'objectnet'],
    skip_missing=True,
)

# The head is initialised from the class names in OpenAI's 80 templates.
model = dict(
    backbone=dict(image_size=image_size),
    head=dict(num_classes=1000, class_weights=dict(type='text', classnames='imagenet', templates='openai')),
)
