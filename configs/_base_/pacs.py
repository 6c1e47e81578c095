# PACS (7 classes, 4 domains, <data_root>/<domain>/<class>/<image>): fine-tuned on photo, a fifth of it held out to choose the
# checkpoint, tested on that fifth (ID) and on the other three domains (OOD).
data_root = 'data/pacs/'

pipeline = [
    dict(type='LoadImageFromFile', imdecode_backend='pillow', color_type='color_ignore_orientation'),
    dict(type='ResizeEdge', scale=224, edge='short', backend='pillow', interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=224),
    dict(type='PackInputs'),
]
train_set = dict(
    type='PACSDataset', data_root=data_root, domain='photo', holdout=dict(fraction=0.2, seed=0, part='train'), pipeline=pipeline)
held_out_set = dict(
    type='PACSDataset', data_root=data_root, domain='photo', holdout=dict(fraction=0.2, seed=0, part='held_out'), pipeline=pipeline)
test_loader = dict(
    batch_size=64, num_workers=4, collate_fn=dict(type='default_collate'), sampler=dict(type='DefaultSampler', shuffle=False))

train_dataloader = dict(
    batch_size=32,
    num_workers=4,
    persistent_workers=True,
    drop_last=True,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='ResumableSampler', shuffle=True),
    dataset=train_set)
val_dataloader = dict(**test_loader, persistent_workers=True, dataset=held_out_set)
val_evaluator = dict(type='Accuracy', topk=(1, ))
test_dataloader = dict(
    photo=dict(**test_loader, dataset=held_out_set),
    art_painting=dict(**test_loader, dataset=dict(type='PACSDataset', data_root=data_root, domain='art_painting', pipeline=pipeline)),
    cartoon=dict(**test_loader, dataset=dict(type='PACSDataset', data_root=data_root, domain='cartoon', pipeline=pipeline)),
    sketch=dict(**test_loader, dataset=dict(type='PACSDataset', data_root=data_root, domain='sketch', pipeline=pipeline)))
test_evaluator = dict(type='ShiftAccuracy')

# The head starts from the class means of training photos (no text tower needed).
model = dict(
    type='CounterfactualClassifier',
    backbone=dict(type='OpenCLIPBackbone', model_name='ViT-B-16-quickgelu', pretrained='openai'),
    head=dict(type='CLIPDistillHead', num_classes=7, class_weights=dict(type='prototype', dataset=train_set, per_class=60)),
    data_preprocessor=dict(
        type='CAMRefillDataPreprocessor',
        mean=[122.7709383, 116.7460125, 104.09373615],
        std=[68.5005327, 66.6321579, 70.32316305],
        to_rgb=True))

test_cfg = dict(type='MultiSetTestLoop', id_set='photo')
