# Plain fine-tuning of CLIP ViT-B/16 on CelebA (blond hair or not; 4 groups of hair and sex; docs/protocols.md) with its
# splits. The checkpoint is chosen by the accuracy on validation images, not by their worst group.
_base_ = ['recipe.py', 'clip.py']
total_batch_size = 64

# An override of one of these variables reaches every key of its name that held the old value.
shared = ('data_root', 'image_size', 'pipeline')
data_root = 'data/celeba/'
image_size = 224

pipeline = [
    dict(type='LoadImageFromFile', imdecode_backend='pillow', color_type='color_ignore_orientation'),
    dict(type='ResizeCenterCrop', image_size=image_size),
    dict(type='PackInputs', meta_keys=('sample_idx', 'img_path', 'group')),
]
faces = dict(type='CelebADataset', data_root=data_root, pipeline=pipeline)
train_set = dict(**faces, split='train')
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
val_dataloader = dict(**test_loader, persistent_workers=True, dataset=dict(**faces, split='val'))
val_evaluator = dict(type='GroupAccuracy')
test_dataloader = dict(test=dict(**test_loader, dataset=dict(**faces, split='test')))
test_evaluator = dict(type='GroupAccuracy')
test_cfg = dict(type='MultiSetTestLoop', id_set='test')

optim_wrapper = dict(optimizer=dict(lr=1e-5))
train_cfg = dict(max_epochs=1)

# The head is initialised from class means of training images, which needs no text tower.
model = dict(
    backbone=dict(image_size=image_size),
    head=dict(num_classes=2, class_weights=dict(type='prototype', dataset=train_set, per_class=60)),
)
