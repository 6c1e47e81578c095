# Images whose objects are known, for tools/mask_quality.py: PACS' cartoons and sketches on white, and cartoons pasted
# on landscapes (docs/relevance.md). Nothing is trained.
_base_ = '../_base_/pacs.py'
train_cfg = train_dataloader = optim_wrapper = param_scheduler = val_cfg = val_dataloader = val_evaluator = None

# Folder of the scenes: ImageNet images in folders named by WordNet ids, of which these are landscapes.
scenes = 'data/imagenet/val/'
landscapes = (
    'n09193705',  # alp
    'n09246464',  # cliff
    'n09256479',  # coral reef
    'n09288635',  # geyser
    'n09332890',  # lakeside
    'n09399592',  # promontory
    'n09421951',  # sandbar
    'n09428293',  # seashore
    'n09468604',  # valley
    'n09472597',  # volcano
)
shared = (*_base_.shared, 'scenes')

objects = dict(
    type='ObjectsOnWhiteDataset',
    data_root=_base_.data_root,
    image_size=_base_.image_size,
    per_class=14,
    pipeline=[dict(type='PackInputs')],
)
pasted = dict(scenes=scenes, scene_folders=landscapes)
test_dataloader = dict(
    _delete_=True,
    cartoon=dict(**_base_.test_loader, dataset=dict(**objects, split_dir='cartoon')),
    cartoon_pasted=dict(**_base_.test_loader, dataset=dict(**objects, split_dir='cartoon', **pasted)),
    sketch=dict(**_base_.test_loader, dataset=dict(**objects, split_dir='sketch')),
)
model = dict(head=dict(class_weights=dict(per_class=16)))
test_cfg = dict(id_set='cartoon')
