"""Data sets that share images."""

from mmengine.config import Config

TRAIN, HELD_OUT = (dict(fraction=0.2, seed=0, part=part) for part in ('train', 'held_out'))


def selection(train=TRAIN, held_out=HELD_OUT, save_best='accuracy/top1', val_cfg=None, root='data', **more):
    images = dict(type='FolderDataset', data_root=str(root), split_dir='train', pipeline=[])
    return Config(
        dict(
            default_hooks=dict(checkpoint=dict(type='CheckpointHook', save_best=save_best)),
            val_evaluator=dict(type='ShiftAccuracy'),
            **more,
            val_cfg=val_cfg or {},
            train_dataloader=dict(dataset=dict(images, holdout=train)),
            val_dataloader=dict(dataset=dict(images, holdout=held_out)),
        )
    )


def folder(root, **settings):
    return dict(type='FolderDataset', data_root=str(root), pipeline=[dict(type='LoadImageFromFile')], **settings)


def listed(root, name):
    return dict(type='CustomDataset', data_root=str(root), ann_file=f'{name}.txt', pipeline=[dict(type='PackInputs')])
