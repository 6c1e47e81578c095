# The built-in benchmark (docs/shapes.md): rendered shapes, no download. Fine-tuned on photo-like images whose
# background is tied to the class; tested on the same kind of images (ID) and on four shifts (OOD).
shared = ('pipeline',)  # an override reaches every data set
pipeline = [dict(type='PackInputs')]
test_loader = dict(
    batch_size=250,
    num_workers=0,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=False),
)

train_dataloader = dict(
    batch_size=64,
    num_workers=0,
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
test_evaluator = dict(type='ShiftAccuracy')

model = dict(
    type='CounterfactualClassifier',
    backbone=dict(type='OpenCLIPBackbone', model_name='ShapesCLIP-ViT-8-64', pretrained='shapes'),
    head=dict(
        type='CLIPDistillHead',
        num_classes=10,
        class_weights=dict(
            type='text',
            classnames=['circle', 'square', 'triangle', 'star', 'cross', 'heart', 'ring', 'crescent', 'bolt', 'bowtie'],
            templates='shapes',
        ),
    ),
    data_preprocessor=dict(
        type='CAMRefillDataPreprocessor',
        mean=[122.7709383, 116.7460125, 104.09373615],
        std=[68.5005327, 66.6321579, 70.32316305],
        to_rgb=False,
    ),
)

test_cfg = dict(type='MultiSetTestLoop', id_set='test')
