# Plain fine-tuning of CLIP ViT-B/16 on all domains of a benchmark but one (DomainBed's layout,
# <data_root>/<benchmark>/<domain>/<class>/<image>; docs/protocols.md): 'pacs', 'vlcs', 'office-home',
# 'terra-incognita' or 'domainnet'. Of each training domain a tenth is held out to choose the checkpoint, and another
# tenth tests in distribution. The domain that is left out is the shift. Other benchmarks:
#   --cfg-options benchmark=office-home left_out=Art num_classes=65
_base_ = ['recipe.py', 'clip.py']
total_batch_size = 32

# An override of one of these variables reaches every key of its name that held the old value.
shared = ('benchmark', 'data_root', 'image_size', 'left_out', 'num_classes', 'pipeline')
benchmark = 'vlcs'
left_out = 'SUN09'
num_classes = 5
# The folder of all benchmarks, or that of the one.
data_root = 'data/'
image_size = 224

pipeline = [
    dict(type='LoadImageFromFile', imdecode_backend='pillow', color_type='color_ignore_orientation'),
    dict(type='ResizeCenterCrop', image_size=image_size),
    dict(type='PackInputs', meta_keys=('sample_idx', 'img_path', 'group')),
]
domains = dict(type='DomainDataset', data_root=data_root, benchmark=benchmark, left_out=left_out, pipeline=pipeline)
split = dict(fraction=0.1, seed=0, test=0.1, test_seed=0)
train_set = dict(**domains, holdout=dict(**split, part='train'))
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
val_dataloader = dict(
    **test_loader, persistent_workers=True, dataset=dict(**domains, holdout=dict(**split, part='held_out'))
)
val_evaluator = dict(type='ShiftAccuracy')
test_dataloader = dict(
    domains=dict(**test_loader, dataset=dict(**domains, holdout=dict(**split, part='test'))),
    left_out=dict(**test_loader, dataset=dict(**domains, use='left_out')),
)
# The accuracy of each training domain besides that of all.
test_evaluator = dict(type='ShiftAccuracy', evaluators=dict(domains=dict(type='PartAccuracy')))

# The head is initialised from class means of training images, which needs no text tower.
model = dict(
    backbone=dict(image_size=image_size),
    head=dict(num_classes=num_classes, class_weights=dict(type='prototype', dataset=train_set, per_class=60)),
)

test_cfg = dict(type='MultiSetTestLoop', id_set='domains')
