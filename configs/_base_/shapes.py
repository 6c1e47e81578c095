# Plain fine-tuning on the built-in benchmark (docs/shapes.md): rendered shapes and a small CLIP, no download. Trained
# on photo-like images whose background depends on the class; tested on such images (ID), on four shifts (OOD), and on
# groups: classes on their own and on other classes' backgrounds.
_base_ = ['recipe.py', 'clip.py']
total_batch_size = 64
# The best of 1e-4, 2e-4 and 5e-4 for plain fine-tuning, by accuracy on val (docs/shapes.md).
optim_wrapper = dict(optimizer=dict(lr=5e-4))
default_hooks = dict(logger=dict(interval=10))

# An override of this variable reaches every key of its name that held the old value.
shared = ('pipeline',)
pipeline = [dict(type='PackInputs', algorithm_keys=('gt_mask',), meta_keys=('sample_idx', 'group'))]
test_loader = dict(
    batch_size=250,
    num_workers=0,
    persistent_workers=False,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=False),
)

train_dataloader = dict(
    batch_size=64,
    num_workers=0,
    persistent_workers=False,
    drop_last=True,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='ResumableSampler', shuffle=True),
    dataset=dict(type='ShapesDataset', split='train', size=2000, pipeline=pipeline),
)
val_dataloader = dict(**test_loader, dataset=dict(type='ShapesDataset', split='val', size=500, pipeline=pipeline))
val_evaluator = dict(type='ShiftAccuracy')
test_dataloader = {
    split: dict(**test_loader, dataset=dict(type='ShapesDataset', split=split, size=1000, pipeline=pipeline))
    for split in ('test', 'v2', 'r', 'sketch', 'a')
}
test_dataloader['groups'] = dict(
    **test_loader, dataset=dict(type='ShapesDataset', split='groups', size=2000, pipeline=pipeline)
)
test_evaluator = dict(type='ShiftAccuracy', evaluators=dict(groups=dict(type='GroupAccuracy')))

model = dict(
    backbone=dict(model_name='ShapesCLIP-ViT-8-64', pretrained='shapes'),
    head=dict(
        num_classes=10,
        class_weights=dict(
            type='text',
            classnames=['circle', 'square', 'triangle', 'star', 'cross', 'heart', 'ring', 'crescent', 'bolt', 'bowtie'],
            templates='shapes',
        ),
    ),
    data_preprocessor=dict(to_rgb=False),  # rendered as RGB
)

test_cfg = dict(type='MultiSetTestLoop', id_set='test')
