# Plain fine-tuning of CLIP ViT-B/16 on Waterbirds (2 classes, each on land and on water: 4 groups;
# <data_root>/metadata.csv). Trained, validated and tested on the published splits; the checkpoint is chosen by the
# accuracy on validation images, not by their worst group. There are no other test sets: the groups of the test split,
# which are balanced, are what training does not prepare for.
_base_ = ['recipe.py', 'clip.py']
total_batch_size = 32

# An override of one of these variables reaches every key of its name that held the old value.
shared = ('class_weights', 'data_root', 'image_size', 'pipeline')
data_root = 'data/waterbirds/'
image_size = 224
# Text embeddings of ImageNet's 1000 classes, (1000, 512): a class is the mean of ImageNet's land birds or of its water
# birds (docs/data.md says how to make the file).
class_weights = dict(type='file', path='data/imagenet_text_embeddings.npy', rows='waterbirds')

pipeline = [
    dict(type='LoadImageFromFile', imdecode_backend='pillow', color_type='color_ignore_orientation'),
    dict(type='ResizeCenterCrop', image_size=image_size),
    dict(type='PackInputs', meta_keys=('sample_idx', 'img_path', 'group')),
]
birds = dict(type='WaterbirdsDataset', data_root=data_root, pipeline=pipeline)
test_loader = dict(
    batch_size=64,
    num_workers=2,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=False),
)

train_dataloader = dict(
    batch_size=32,
    num_workers=2,
    persistent_workers=True,
    drop_last=True,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='ResumableSampler', shuffle=True),
    dataset=dict(**birds, split='train'),
)
val_dataloader = dict(**test_loader, persistent_workers=True, dataset=dict(**birds, split='val'))
val_evaluator = dict(type='GroupAccuracy')
test_dataloader = dict(test=dict(**test_loader, dataset=dict(**birds, split='test')))
test_evaluator = dict(type='GroupAccuracy')
test_cfg = dict(type='MultiSetTestLoop', id_set='test')

optim_wrapper = dict(optimizer=dict(lr=1e-5))
train_cfg = dict(max_epochs=1)

model = dict(
    backbone=dict(image_size=image_size),
    head=dict(num_classes=2, class_weights=class_weights),
)
