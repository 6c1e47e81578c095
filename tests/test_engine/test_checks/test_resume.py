"""A resumed run continues the same training."""

import pytest
from mmengine.config import Config

from mmcfmask.engine.checks.resume import check_same_run

RECIPE = dict(
    randomness=dict(seed=0),
    custom_hooks=[dict(type='RelativeEMAHook', horizon=0.2), dict(type='IterationSeedHook')],
    train_cfg=dict(max_epochs=10),
    total_batch_size=512,
    param_scheduler=dict(type='OneCycle', pct_start=0.02),
    optim_wrapper=dict(
        type='OptimWrapper',
        optimizer=dict(type='AdamW', lr=3e-5, betas=(0.9, 0.999), fused=True),
        clip_grad=dict(max_norm=1.0),
    ),
    model=dict(
        backbone=dict(model_name='ViT-B-16', pretrained='a.pt'),
        teacher=dict(type='OpenCLIPTeacher'),
        losses=[dict(type='L2SP')],
        head=dict(distill_weight=30.0, class_weights=dict(type='text')),
        data_preprocessor=dict(mask='object', mean=[1.0, -2.0]),
    ),
)


@pytest.mark.parametrize(
    'change, message',
    [
        (
            {'train_cfg.max_epochs': 20},
            'train_cfg.max_epochs = 10, but now it is 20: resume with the same config, or start another run',
        ),
        ({'optim_wrapper.optimizer.lr': 1e-5}, 'optim_wrapper.optimizer.lr = 3e-05, but now it is 1e-05'),
        ({'randomness.seed': 1}, 'randomness.seed = 0, but now it is 1'),
        ({'custom_hooks': []}, r"custom_hooks = \[\{.*'RelativeEMAHook'\}\], but now it is \[\]"),
        ({'custom_hooks.0.horizon': 0.5}, "custom_hooks = .*0.2.*, but now it is .*'horizon': 0.5"),
        (
            {'custom_hooks': [*RECIPE['custom_hooks'], dict(type='DistillWeightHook', start=9.0, end=1.0)]},
            'custom_hooks = .* is .*DistillWeight',
        ),
        ({'total_batch_size': 256}, 'total_batch_size = 512, but now it is 256'),
        ({'param_scheduler.pct_start': 0.1}, 'param_scheduler.pct_start = 0.02, but now it is 0.1'),
        ({'model.teacher': None}, 'model.teacher = {.*}, but now it is None'),
        ({'model.head.cls_weight': 0.0}, 'model.head.cls_weight = None, but now it is 0.0'),
        ({'model.losses': [dict(type='FLYP')]}, 'model.losses = .*L2SP.*, but now it is .*FLYP'),
        ({'model.backbone.model_name': 'ViT-B-32'}, 'model.backbone.model_name = ViT-B-16, but now it is ViT-B-32'),
        ({'model.data_preprocessor.mask': 'context'}, 'model.data_preprocessor.mask = object, but now it is context'),
    ],
)
def test_resume_needs_the_same_recipe(change, message):
    checkpoint = dict(meta=dict(cfg=Config(RECIPE).pretty_text))
    cfg = Config(RECIPE)
    cfg.merge_from_dict(change)
    with pytest.raises(ValueError, match=f'run.pth was trained with {message}'):
        check_same_run(cfg, checkpoint, 'run.pth')


def test_values_that_are_no_literals():
    infinite = {**RECIPE, 'optim_wrapper': dict(clip_grad=dict(max_norm=float('inf')), floor=-float('inf'))}
    checkpoint = dict(meta=dict(cfg=Config(infinite).pretty_text))
    check_same_run(Config(infinite), checkpoint, 'run.pth')
    with pytest.raises(ValueError, match='optim_wrapper.clip_grad.max_norm = inf, but now it is 1.0'):
        check_same_run(Config({**infinite, 'optim_wrapper': dict(clip_grad=dict(max_norm=1.0))}), checkpoint, 'run.pth')


def test_what_may_differ_in_a_resumed_run():
    checkpoint = dict(meta=dict(cfg=Config(RECIPE).pretty_text))
    cfg = Config(RECIPE)
    cfg.merge_from_dict(
        {
            'model.backbone.pretrained': 'moved/a.pt',
            'model.head.class_weights': None,
            'optim_wrapper.type': 'Autocast',
            'custom_hooks': [dict(type='RelativeEMAHook', horizon=0.2, interval=4), dict(type='WiSEFTHook')],
            'work_dir': 'elsewhere',
            'train_cfg.val_interval': 2,
            'optim_wrapper.accumulative_counts': 4,
        }
    )
    del cfg.optim_wrapper.optimizer['fused']
    check_same_run(cfg, checkpoint, 'run.pth')
