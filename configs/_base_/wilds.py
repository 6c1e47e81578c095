# Plain fine-tuning of CLIP ViT-B/16 on an image classification set of WILDS with its official splits
# (docs/protocols.md): FMoW, tested in and out of distribution; groups are regions. As in WILDS, validation images out
# of distribution choose the checkpoint. Camelyon17 and RxRx1:
#   --cfg-options benchmark=camelyon17 num_classes=2 test_dataloader.id.dataset.split=id_val
#   --cfg-options benchmark=rxrx1 num_classes=1139
# iWildCam needs another head and another metric: docs/protocols.md.
_base_ = ['recipe.py', 'clip.py']
total_batch_size = 64

# An override of one of these variables reaches every key of its name that held the old value.
shared = ('benchmark', 'data_root', 'image_size', 'num_classes', 'pipeline')
benchmark = 'fmow'
num_classes = 62
# The folder of all sets, or that of the one.
data_root = 'data/'
image_size = 224

pipeline = [
    dict(type='LoadImageFromFile', imdecode_backend='pillow', color_type='color_ignore_orientation'),
    dict(type='ResizeCenterCrop', image_size=image_size),
    dict(type='PackInputs', meta_keys=('sample_idx', 'img_path', 'group')),
]
images = dict(type='WILDSDataset', data_root=data_root, benchmark=benchmark, pipeline=pipeline)
train_set = dict(**images, split='train')
test_loader = dict(
    batch_size=64,
    num_workers=4,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=False),
)

train_dataloader = dict(
    batch_size=64,
    num_workers=4,
    persistent_workers=True,
    drop_last=True,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='ResumableSampler', shuffle=True),
    dataset=train_set,
)
val_dataloader = dict(**test_loader, persistent_workers=True, dataset=dict(**images, split='val'))
val_evaluator = dict(type='ShiftAccuracy')
test_dataloader = dict(
    id=dict(**test_loader, dataset=dict(**images, split='id_test')),
    test=dict(**test_loader, dataset=dict(**images, split='test')),
)
# FMoW's worst region may not be 'Other', which other sets do not have.
test_evaluator = dict(type='GroupAccuracy', ignore=['Other'])

model = dict(
    backbone=dict(image_size=image_size),
    head=dict(num_classes=num_classes, class_weights=dict(type='prototype', dataset=train_set, per_class=20)),
)

test_cfg = dict(type='MultiSetTestLoop', id_set='id')
