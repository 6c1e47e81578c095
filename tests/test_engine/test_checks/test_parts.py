"""Small parts of a config are built and thrown away."""

from pathlib import Path

import mmpretrain
import pytest
import torch

from mmcfmask.engine.checks import check_config
from mmcfmask.engine.config import load_config
from mmcfmask.errors import ConfigError, UserError


@pytest.mark.parametrize(
    'part, setting, near',
    [
        ('head', 'distil_weight', 'CLIPDistillHead has no .*distill_weight'),
        ('backbone', 'modelname', 'OpenCLIPBackbone has no .*model_name'),
        ('data_preprocessor', 'maks', 'CAMRefillDataPreprocessor has no .*mask'),
        ('data_preprocessor', 'to_rbg', '.* has no .*to_rgb'),
        ('teacher', 'precison', 'OpenCLIPTeacher has no .*precision'),
        ('knn_gate', 'levels', 'KNNGate has no .*level'),
    ],
)
def test_settings_that_a_part_does_not_take(part, setting, near):
    cfg = load_config('configs/shapes/cfmask.py', {})  # which has none
    cfg.model[part] = {**(cfg.model.get(part) or {}), setting: 1}
    with pytest.raises(ValueError, match=f'model.{part}: {near}'):
        check_config(cfg)


def test_a_head_of_another_kind():
    cfg = load_config('configs/shapes/cfmask.py', {})
    cfg.model.head = dict(type='LinearClsHead', num_classes=10, in_channels=16)
    with pytest.raises(
        ConfigError, match="model.head.type='LinearClsHead': a CounterfactualClassifier needs 'CLIPDist"
    ):
        check_config(cfg)


@pytest.mark.parametrize(
    'option, value, message',
    [
        (
            'optim_wrapper.optimizer.learning_rate',
            1e-4,
            "optim_wrapper.optimizer: AdamW has no 'learning_rate'. It takes .*, lr, ",
        ),
        ('optim_wrapper.optimizer.weight_decy', 0.1, "AdamW has no 'weight_decy'.*weight_decay"),
        ('param_scheduler.pct_strat', 0.1, "param_scheduler: OneCycle has no 'pct_strat'.*pct_start"),
        (
            'model.data_preprocessor.mask',
            'foreground',
            "model.data_preprocessor: unknown mask 'foreground': choose from object",
        ),
        ('model.data_preprocessor.value', 3.0, 'model.data_preprocessor.value=3.0: it must be less than or equal to 1'),
        ('model.data_preprocessor.views', dict(turn=3), 'model.data_preprocessor: .*turn'),
        ('model.head.distill', 'feat', "model.head: unknown distill='feat'"),
    ],
)
def test_settings_that_cannot_be_built(option, value, message):
    with pytest.raises(ValueError, match=message):
        load_config('configs/shapes/cfmask.py', {option: value})


@pytest.mark.parametrize(
    'term, message',
    [
        (dict(counterfactual=dict(maks='context')), r"model.losses\[1\].counterfactual: .* has no 'maks'. .*'mask'"),
        (dict(counterfactul={}), r"model.losses\[1\]: .* has no 'counterfactul'. Did you mean 'counterfactual'"),
        (dict(counterfactual='context'), r"model.losses\[1\].counterfactual='context': it must be a dict or None"),
        (
            dict(counterfactual=dict(mask_share=2.0)),
            r'model.losses\[1\].counterfactual.mask_share=2.0: it must be less',
        ),
        (dict(counterfactual=dict(value=True)), r'model.losses\[1\].counterfactual.value=True: it must be a number'),
        (dict(counterfactual=dict(mask='contxt')), r"model.losses\[1\]: .*counterfactual: unknown mask 'contxt'"),
        (dict(counterfactual=dict(mask='context', value=0.3, mask_share=0.4)), 'set one of them'),
        (dict(counterfactual=dict(mask='context', views=dict(turn=3))), r'model.losses\[1\]: .*turn'),
        (dict(counterfactual=dict(mask='context', fill='none', donors='other_class')), "but fill='none'"),
        (dict(counterfactual=dict(fill='multi')), r"model.losses\[1\]: .* keep their object, .* has mask='object'"),
        ({}, r"model.losses\[1\]: .* keep their object, but model.data_preprocessor has mask='object'"),
        (dict(weight=-1.0), r'model.losses\[1\].weight=-1.0: it must be greater than or equal to 0'),
    ],
)
@pytest.mark.parametrize('kind', ['CounterfactualCrossEntropy', 'ContextInvariance', 'ContextDistillation'])
def test_images_of_a_term(kind, term, message):
    losses = [dict(type='CounterfactualDistillation'), dict(type=kind, **term)]
    with pytest.raises(ConfigError, match=message):
        load_config('configs/shapes/cfmask.py', {'model.losses': losses})
    good = dict(type=kind, counterfactual=dict(mask='context', mask_share=0.6, donors='other_class'))
    cfg = load_config('configs/shapes/cfmask.py', {'model.losses': [losses[0], good]})
    assert cfg.model.losses[1] == good


def test_pipelines_pack_their_images():
    load, pack = dict(type='LoadImageFromFile'), dict(type='PackInputs')
    cfg = load_config('configs/shapes/ft.py')
    for pipeline in ([], [load], [load, dict(type='CenterCrop', crop_size=32)]):
        for key in ('train_dataloader.dataset', 'test_dataloader.r.dataset'):
            wrong = load_config('configs/shapes/ft.py')
            wrong.merge_from_dict({f'{key}.pipeline': pipeline})
            with pytest.raises(ConfigError, match=f"{key}.pipeline=.*: it must end with dict\\(type='PackInputs'\\)"):
                check_config(wrong)
    for pipeline in ([load, pack], [dict(type='RandomApply', transforms=[pack])]):
        cfg.train_dataloader.dataset.pipeline = pipeline
        check_config(cfg)


def test_random_numbers_are_left_as_they_were():
    state = torch.get_rng_state()
    load_config('configs/shapes/cfmask.py', {})
    assert torch.equal(torch.get_rng_state(), state)


def test_no_workers_is_no_contradiction():
    cfg = load_config('configs/cfmask_vitb16.py', {'train_dataloader.num_workers': 0})
    assert cfg.train_dataloader.persistent_workers  # which build_runner switches off


@pytest.mark.parametrize('name', ['resnet/resnet18_8xb32_in1k.py', 'vision_transformer/vit-base-p16_64xb64_in1k.py'])
def test_configs_of_mmpretrain_are_read(name):
    """They have a hook that cannot be made without a Runner."""
    load_config(str(Path(mmpretrain.__file__).parent / '.mim' / 'configs' / name), {})


class OwnTransform:
    """A transform of the user that fails in the way that it is told to."""

    def __init__(self, failure):
        if failure == 'value':
            raise ValueError('this value is wrong')
        self.size = self.missing if failure == 'attribute' else None + 1


def test_bugs_in_classes_of_the_user_keep_their_traceback():
    def load(**arguments):
        pipeline = [dict(type=OwnTransform, **arguments), dict(type='PackInputs')]
        load_config('configs/shapes/ft.py', {'train_dataloader.dataset.pipeline': pipeline})

    key = r'train_dataloader.dataset.pipeline\[0\]'
    with pytest.raises(ConfigError, match=f'{key}: this value is wrong'):
        load(failure='value')
    with pytest.raises(ConfigError, match=f'{key}: OwnTransform has no .fail'):
        load(fail=1)
    with pytest.raises(AttributeError, match='missing') as found:
        load(failure='attribute')
    assert not isinstance(found.value, UserError) and found.traceback[-1].name == '__init__'
    with pytest.raises(TypeError, match='unsupported operand') as found:
        load(failure='type')
    assert not isinstance(found.value, UserError)
