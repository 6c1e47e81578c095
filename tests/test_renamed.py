"""Names of version 0.1.0: refused in one line with the new name, and understood where a checkpoint records them."""

import importlib

import pytest
import torch
from mmengine.config import Config
from mmengine.runner.checkpoint import load_state_dict
from mmpretrain.registry import MODELS
from terms import NAMES, TEMPLATES, build

from mmcfmask.engine import provenance
from mmcfmask.engine.checkpoints import check_checkpoint
from mmcfmask.engine.checks.resume import check_same_run
from mmcfmask.engine.config import load_config
from mmcfmask.renamed import rename_weights, update_model, update_training_settings

SHAPES = 'configs/shapes'


@pytest.fixture(autouse=True)
def from_the_root(monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)


@pytest.mark.parametrize(
    'option, message',
    [
        ({'model.auxiliary': [dict(type='L2SP')]}, 'model.auxiliary is now model.losses, which also holds the'),
        ({'model.gate': dict(level=0.1)}, 'model.gate is now model.knn_gate'),
        ({'model.second_look': 0.9}, 'model.second_look is now model.crop_scale'),
        (
            {'model.teacher': None},
            'model.teacher=None is no longer needed: .* such as mmcfmask::baselines/ft_vitb16.py',
        ),
        ({'model.losses': None}, r'model.losses=None must be a list: .* model.losses=\[\]'),
        ({'model.head.distill': None}, 'model.head.distill=None is no longer needed'),
        (
            {'model.data_preprocessor.mask': None},
            r"mask=None is no longer needed: .*losses=\[dict\(type='Distillation'",
        ),
        ({'model.data_preprocessor.colors': 0.7}, 'model.data_preprocessor.colors is now color_mixing'),
        (
            {'model.data_preprocessor.relevance': 'attention'},
            "model.data_preprocessor.relevance='attention' is now a dict of options",
        ),
        ({'model.losses': [dict(type='L2SP', head='start')]}, r"losses\[0\].head='start' is now head='pretrained'"),
        (
            {'model.losses': [dict(type='Distillation', weight=3.0)]},
            'weight takes no weight|set model.head.distill_weight',
        ),
        ({'model.losses.0.weight': 3.0}, r'model.losses\[0\].weight .*set model.head.distill_weight'),
        ({'model.knn_gate': dict(neighbours=3)}, 'model.knn_gate.neighbours is now k'),
        ({'model.knn_gate': dict(type='ConformalGate')}, "model.knn_gate.type='ConformalGate' is now 'KNNGate'"),
    ],
)
def test_an_old_key_names_the_new_one(option, message):
    with pytest.raises(ValueError, match=message) as error:
        load_config(f'{SHAPES}/cfmask.py', option)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    'change, message',
    [
        (dict(auxiliary=[dict(type='L2SP')]), 'model.auxiliary is now model.losses'),
        (dict(gate=dict()), 'model.gate is now model.knn_gate'),
        (dict(second_look=0.9), 'model.second_look is now model.crop_scale'),
    ],
)
def test_a_model_that_no_schema_checked_says_it_too(change, message):
    """As with mmpretrain's tools."""
    model = dict(
        type='CounterfactualClassifier',
        backbone=dict(type='OpenCLIPBackbone', model_name='tiny-vit'),
        head=dict(type='CLIPDistillHead', num_classes=5),
    )
    with pytest.raises(ValueError, match=message):
        MODELS.build({**model, **change})


def test_a_teacher_without_a_term_is_refused():
    """It distilled in 0.1.0, and would silently do nothing."""
    model = dict(
        type='CounterfactualClassifier',
        backbone=dict(type='OpenCLIPBackbone', model_name='tiny-vit'),
        head=dict(type='CLIPDistillHead', num_classes=5),
        teacher=dict(type='OpenCLIPTeacher'),
    )
    with pytest.raises(ValueError, match='no term of model.losses uses model.teacher: .*CounterfactualDistillation'):
        MODELS.build(model)


@pytest.mark.parametrize('name', ['AuxiliaryLoss', 'auxiliary'])
def test_a_loss_module_of_a_user_names_the_new_base_class(tmp_path, monkeypatch, request, name):
    (tmp_path / f'old_{name}.py').write_text(f'from mmcfmask.models import {name}')
    monkeypatch.syspath_prepend(str(tmp_path))
    message = 'from mmcfmask.models.losses import LossTerm`; its method start is now setup'
    with pytest.raises(ImportError, match=message):
        importlib.import_module(f'old_{name}')
    imports = dict(imports=['mmcfmask', f'old_{name}'])
    (tmp_path / 'own.py').write_text(f"_base_ = '{request.config.rootpath}/{SHAPES}/ft.py'\ncustom_imports = {imports}")
    for path, options in ((str(tmp_path / 'own.py'), {}), (f'{SHAPES}/ft.py', {'custom_imports': imports})):
        with pytest.raises(ImportError, match=message):  # with the traceback of the user's module
            load_config(path, options)
    with pytest.raises(ImportError, match="cannot import name 'gone'"):
        exec('from mmcfmask.models import gone')


TOWER = dict(type='OpenCLIPBackbone', model_name='ViT-B-16')
NORM = dict(type='CAMRefillDataPreprocessor', mean=[1.0], std=[1.0])
OLD_HEAD = dict(type='CLIPDistillHead', num_classes=3, distill='feature', distill_weight=30.0)
HEAD = dict(type='CLIPDistillHead', num_classes=3)


def model(**parts):
    return dict(type='CounterfactualClassifier', backbone=TOWER, **parts)


# What configs of 0.1.0 said, and what they say now.
PAIRS = {
    'ft': (
        model(head=OLD_HEAD, teacher=None, data_preprocessor=dict(NORM, mask='object', fill='single')),
        model(head=HEAD, data_preprocessor=NORM),
    ),
    'cfmask': (
        model(
            head=OLD_HEAD,
            teacher=dict(type='OpenCLIPTeacher'),
            data_preprocessor=dict(NORM, mask='object', fill='single', colors=0.7, relevance='attention'),
        ),
        model(
            head=OLD_HEAD,
            teacher=dict(type='OpenCLIPTeacher'),
            losses=[dict(type='CounterfactualDistillation')],
            data_preprocessor=dict(NORM, mask='object', fill='single', color_mixing=0.7),
        ),
    ),
    'kd': (
        model(
            head=dict(OLD_HEAD, distill='logits', temperature=10.0),
            teacher=dict(type='OpenCLIPTeacher'),
            data_preprocessor=dict(NORM, mask=None, fill='single'),
        ),
        model(
            head=dict(OLD_HEAD, distill='logits', temperature=10.0),
            teacher=dict(type='OpenCLIPTeacher'),
            losses=[dict(type='Distillation')],
            data_preprocessor=NORM,
        ),
    ),
    'l2sp': (
        model(
            head=dict(OLD_HEAD, distill=None),
            teacher=dict(type='OpenCLIPTeacher'),
            auxiliary=[dict(type='L2SP', alpha=0.1, head='start')],
            data_preprocessor=dict(NORM, mask='object', fill='single'),
        ),
        model(
            head=HEAD,
            teacher=dict(type='OpenCLIPTeacher'),
            losses=[dict(type='L2SP', alpha=0.1, head='pretrained')],
            data_preprocessor=NORM,
        ),
    ),
    'gate': (
        model(head=OLD_HEAD, teacher=None, gate=dict(type='ConformalGate', neighbours=3), second_look=0.9),
        model(head=HEAD, knn_gate=dict(type='KNNGate', k=3), crop_scale=0.9),
    ),
}


@pytest.mark.parametrize('name', PAIRS)
def test_configs_in_checkpoints_are_understood(name):
    old, new = PAIRS[name]
    text = Config(dict(model=old)).pretty_text
    assert {k: v for k, v in update_model(old).items() if v != {}} == {k: v for k, v in new.items() if v != {}}
    assert update_model(new) == new
    check_same_run(Config(dict(model=new)), dict(meta=dict(cfg=text)), 'run.pth')  # resumes
    other = {**new, 'losses': [*new.get('losses', []), dict(type='LipsumFT')]}
    with pytest.raises(ValueError, match='run.pth was trained with model.losses = '):
        check_same_run(Config(dict(model=other)), dict(meta=dict(cfg=text)), 'run.pth')


@pytest.mark.parametrize('name', PAIRS)
def test_training_settings_in_results_are_understood(name, monkeypatch):
    old, new = (dict(cfg=Config(dict(model=values, total_batch_size=64)).pretty_text) for values in PAIRS[name])
    new = provenance.read_training_settings(new)
    assert update_training_settings(new) == new
    monkeypatch.setattr(provenance, 'update_model', lambda model: model)  # as version 0.1.0 recorded it
    old = provenance.read_training_settings(old)
    assert old != new and update_training_settings(old) == new


def test_losses_that_were_shortened_stay_as_they_are():
    old = {'model.type': 'CounterfactualClassifier', 'model.auxiliary': "[{'type': 'FLYP', 'templates… (0a1b2c3d)"}
    assert update_training_settings(old) == old


def test_weights_of_loss_terms_load(tiny_pretrained, tmp_path):
    term = dict(type='FLYP', classnames=NAMES, templates=TEMPLATES)
    model = build(tiny_pretrained, term, teacher=False, cls_weight=0.0)
    state = model.state_dict()
    old = {name.replace('losses.', 'auxiliary.'): value + 1 for name, value in state.items()}
    assert any(name.startswith('auxiliary.0.text.') for name in old) and rename_weights(old).keys() == state.keys()
    again = build(tiny_pretrained, term, teacher=False, cls_weight=0.0)
    again.load_state_dict(old)  # torch's, strict
    assert torch.equal(again.losses[0].text.logit_scale, state['losses.0.text.logit_scale'] + 1)
    again = build(tiny_pretrained, term, teacher=False, cls_weight=0.0)
    load_state_dict(again, old, strict=True)  # mmengine's
    assert torch.equal(again.losses[0].text.logit_scale, state['losses.0.text.logit_scale'] + 1)
    torch.save(dict(meta={}, state_dict=old), tmp_path / 'old.pth')
    assert check_checkpoint(str(tmp_path / 'old.pth'))['state_dict'].keys() == state.keys()
    build(None, teacher=False).load_state_dict(old)  # a test needs no text tower
