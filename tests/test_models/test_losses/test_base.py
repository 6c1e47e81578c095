"""What all loss terms have in common: what they need, share and leave behind."""

import copy
import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.model import ExponentialMovingAverage
from mmpretrain.registry import MODELS
from terms import NAMES, TEMPLATES, build, dot, move_away, train_a_little, unit

from mmcfmask.errors import ConfigError
from mmcfmask.models import LossTerm, Step, classifier
from mmcfmask.models.losses import base


def test_teacher_looks_once_at_an_image(tiny_pretrained, batch, monkeypatch):
    """However many terms ask for its features of the clean images."""
    terms = dict(type='Distillation'), dict(type='CARFT'), dict(type='LipsumFT', num_texts=2), dict(type='L2SP')
    model = build(tiny_pretrained, *terms)
    looks = []
    monkeypatch.setattr(
        type(model.teacher), '__call__', lambda self, images: looks.append(1) or self.forward(images), raising=False
    )
    losses = model(*batch, mode='loss')
    assert set(losses) == {'loss_cls', 'loss_distill', 'loss_carft', 'loss_lipsum', 'loss_l2sp'} and len(looks) == 1


def test_counterfactual_images_are_made_once(tiny_pretrained, batch, monkeypatch):
    """Two terms that ask for them get the same ones, and the relevance map is computed once."""
    model = move_away(build(tiny_pretrained, *[dict(type='CounterfactualDistillation')] * 2))
    made = []
    for name in ('attention_relevance', 'patch_grid'):
        original = getattr(base, name)
        monkeypatch.setattr(
            base, name, lambda *args, name=name, original=original, **kw: made.append(name) or original(*args, **kw)
        )
    losses = model(*batch, mode='loss')
    assert made == ['attention_relevance', 'patch_grid']
    assert set(losses) == {'loss_cls', 'loss_distill', 'loss_distill_2'}
    assert losses['loss_distill'] == losses['loss_distill_2'] > 0


@pytest.mark.parametrize(
    'terms, mask, recorded',
    [
        ([], 'object', False),
        ([dict(type='Distillation')], 'object', False),
        ([dict(type='L2SP')], 'context', False),
        ([dict(type='CounterfactualDistillation')], 'random', False),
        ([dict(type='CounterfactualDistillation')], 'context', True),
        ([dict(type='L2SP'), dict(type='CounterfactualDistillation')], 'object', True),
    ],
)
def test_attention_is_recorded_if_a_term_asks_for_relevance(tiny_pretrained, batch, monkeypatch, terms, mask, recorded):
    model = build(tiny_pretrained, *terms)
    model.data_preprocessor.mask = mask
    steps = []
    monkeypatch.setattr(classifier, 'Step', lambda *args: steps.append(Step(*args)) or steps[-1])
    model(*batch, mode='loss')
    assert [len(step.attention) for step in steps] == [3 if recorded else 0]  # one call per layer


def test_with_counterfactuals_beside(tiny_pretrained, batch):
    terms = dict(type='CARFT'), dict(type='CounterfactualDistillation')
    losses = build(tiny_pretrained, *terms)(*batch, mode='loss')
    assert set(losses) == {'loss_cls', 'loss_carft', 'loss_distill'}


def test_frozen_parts_stay_out_of_everything(tiny_pretrained, batch):
    model = build(tiny_pretrained, dict(type='L2SP'), dict(type='CARFT'), dict(type='LipsumFT', num_texts=2))
    plain = build(tiny_pretrained)
    assert set(model.state_dict()) == set(plain.state_dict())
    assert {name for name, _ in model.named_parameters()} == {name for name, _ in plain.named_parameters()}
    average = ExponentialMovingAverage(model)
    assert average.module.teacher is model.teacher
    before = copy.deepcopy(model.teacher.state_dict())
    train_a_little(model, batch)
    assert all(torch.equal(before[name], value) for name, value in model.teacher.state_dict().items())
    assert any(name.startswith('text.') for name in before)
    model.double()
    assert {p.dtype for p in model.teacher.text.parameters()} == {torch.float64} and model.losses[
        1
    ].contexts.dtype == torch.float64


class Own(LossTerm):
    """A term whose ``forward`` is given."""

    needs_teacher = False

    def __init__(self, forward):
        super().__init__()
        self.forward = forward


@pytest.mark.parametrize(
    'forward, message',
    [
        (lambda step: step.logits.mean(), r'Own.forward must return its losses by name, dict\(loss_…=…\), .* a Tensor'),
        (
            lambda step: dict(own=step.logits.mean()),
            "Own.forward returned 'own', .* no effect: the name of a loss must contain 'loss'",
        ),
        (lambda step: dict(loss_own=step.relevance.mean()), r'step.relevance, .* needs_relevance\(classifier\) must'),
        (lambda step: dict(loss_own=step.counterfactual_features.mean()), r'needs_relevance\(classifier\) must return'),
        (lambda step: dict(loss_own=step.teacher_features.mean()), 'set needs_teacher = True in its class, and model'),
        (lambda step: dict(loss_own=step.counterfactual_teacher_features.mean()), 'set needs_teacher = True in its'),
    ],
)
def test_mistakes_of_a_term(tiny_pretrained, batch, forward, message):
    model = build(tiny_pretrained)
    model.losses.append(Own(forward))
    with pytest.raises(ConfigError, match=message):
        model(*batch, mode='loss')


def test_example_of_the_docs(tiny_pretrained, batch, tmp_path, monkeypatch):
    text = (Path(__file__).parents[3] / 'docs' / 'methods.md').read_text()
    *_, module, config = re.findall(r'```python\n(.*?)```', text, re.DOTALL)
    (tmp_path / 'my_losses.py').write_text('import torch\n' + module)
    (tmp_path / 'config.py').write_text(config)
    monkeypatch.syspath_prepend(str(tmp_path))
    cfg = Config.fromfile(tmp_path / 'config.py').model
    model = move_away(build(tiny_pretrained, *cfg.losses))
    losses = model(*batch, mode='loss')
    cosine = (
        sum(
            dot(unit(a), unit(b))
            for a, b in zip(model.extract_feat(batch[0])[-1].tolist(), model.teacher(batch[0]).tolist())
        )
        / 4
    )
    assert set(losses) == {'loss_cls', 'loss_cosine'} and losses['loss_cosine'].item() == pytest.approx(
        10 * (1 - cosine), rel=1e-4
    )


@pytest.fixture
def textless(tiny_pretrained, tmp_path):
    state = torch.load(tiny_pretrained, weights_only=True)
    torch.save({key: value for key, value in state.items() if key.startswith('visual.')}, tmp_path / 'visual.pt')
    return str(tmp_path / 'visual.pt')


@pytest.mark.parametrize('name', ['CARFT', 'LipsumFT', 'FLYP'])
def test_text_tower_is_missing(textless, name):
    texts = {} if name == 'LipsumFT' else dict(classnames=NAMES, templates=TEMPLATES)
    with pytest.raises(
        ValueError, match=rf'{name} needs a text tower, but .*visual.pt has no text tower: choose weights of the whole'
    ):
        build(textless, dict(type=name, **texts), class_weights=None, cls_weight=0.0)


@pytest.mark.parametrize(
    'terms, head, message',
    [
        (
            dict(type='CARFT'),
            dict(class_weights=None),
            r'CARFT needs prompts: give it classnames=\[…\] and templates=…',
        ),
        (dict(type='CARFT', classnames=['one']), {}, 'CARFT has 1 classnames, but the head has num_classes=3'),
        (dict(type='CARFT', weight=-1), {}, 'CARFT: weight=-1 must not be negative'),
        (dict(type='LipsumFT', length=15), {}, "length=15, but the texts of 'tiny-vit' have 16 tokens"),
        (dict(type='LipsumFT', num_texts=0), {}, 'num_texts=0'),
        (dict(type='FLYP'), {}, r'set model.head.cls_weight=0 \(it is 1.0\)'),
        (
            [dict(type='FLYP'), dict(type='Distillation')],
            dict(cls_weight=0.0, distill='logits'),
            "would: use 'feature'",
        ),
        (dict(type='L2SP', head='start'), {}, r"L2SP.head='start' is now head='pretrained'"),
        (dict(type='L2SP', head='none'), {}, 'unknown head=\'none\': choose "pretrained" or "zero"'),
        (dict(type='L2SP', beta=-1.0), {}, 'beta=-1.0 must not be negative'),
    ],
)
def test_bad_settings(tiny_pretrained, terms, head, message):
    with pytest.raises(ValueError, match=message):
        build(tiny_pretrained, *(terms if isinstance(terms, list) else [terms]), **head)


@pytest.mark.parametrize('name', ['L2SP', 'CARFT', 'LipsumFT', 'Distillation', 'CounterfactualDistillation'])
def test_teacher_is_missing(tiny_pretrained, name):
    with pytest.raises(
        ValueError, match=rf"{name} compares with a frozen teacher: set model.teacher=dict\(type='OpenCLIPTeacher'\)"
    ):
        build(tiny_pretrained, dict(type=name), teacher=False)


@pytest.mark.parametrize(
    'term', [dict(type='L2SP'), dict(type='CARFT', classnames=['a', 'b', 'c']), dict(type='LipsumFT')]
)
def test_teacher_must_be_the_pretrained_student(tiny_pretrained, tmp_path, term):
    other = tmp_path / 'other.pt'
    torch.save(torch.load(tiny_pretrained, weights_only=True), other)
    with pytest.raises(ValueError, match='the teacher is another model: leave out its model_name'):
        MODELS.build(
            dict(
                type='CounterfactualClassifier',
                backbone=dict(type='OpenCLIPBackbone', model_name='tiny-vit', pretrained=tiny_pretrained),
                head=dict(type='CLIPDistillHead', num_classes=3),
                teacher=dict(type='OpenCLIPTeacher', model_name='tiny-vit', pretrained=str(other)),
                losses=[term],
            )
        )


def test_texts_of_a_tower_without_a_name(tiny_pretrained, batch):
    """mmpretrain's own vision transformer, with the text tower named."""
    from mmcfmask.models.towers.conversion import mmpretrain_config

    cfg = dict(
        type='CounterfactualClassifier',
        **mmpretrain_config('tiny-vit'),
        head=dict(type='CLIPDistillHead', num_classes=3),
        teacher=dict(type='OpenCLIPTeacher'),
    )
    with pytest.raises(ValueError, match='has no text tower: name one with model_name='):
        MODELS.build(dict(cfg, losses=[dict(type='LipsumFT')]))
    model = MODELS.build(
        dict(cfg, losses=[dict(type='LipsumFT', num_texts=2, model_name='tiny-vit', pretrained=tiny_pretrained)])
    )
    assert set(model.train()(*batch, mode='loss')) == {'loss_cls', 'loss_lipsum'}


def test_oracle_masks_follow_the_true_objects(tiny_pretrained, batch, monkeypatch):
    model = build(tiny_pretrained, dict(type='CounterfactualDistillation'))
    model.data_preprocessor.oracle = True
    images, samples = batch
    objects = torch.rand(len(images), 32, 32, generator=torch.Generator().manual_seed(0)) < 0.4
    objects[:, :16] = False
    for sample, mask in zip(samples, objects):
        sample.set_field(mask.numpy(), 'gt_mask')
    steps = []
    monkeypatch.setattr(classifier, 'Step', lambda *args: steps.append(Step(*args)) or steps[-1])
    model(*batch, mode='loss')
    (step,) = steps
    assert not step.attention  # nothing was recorded
    for row in range(4):
        for col in range(4):
            patch = objects[:, 8 * row : 8 * row + 8, 8 * col : 8 * col + 8].flatten(1)
            torch.testing.assert_close(step.relevance[:, row, col], patch.float().mean(dim=1))
    assert not step.counterfactual.mask[:, :2].any() and step.counterfactual.mask[:, 2:].any()


def test_an_oracle_needs_objects(tiny_pretrained, batch):
    model = build(tiny_pretrained, dict(type='CounterfactualDistillation'))
    model.data_preprocessor.oracle = True
    with pytest.raises(ConfigError, match=r'oracle needs the object of every training image, gt_mask \(32, 32\)'):
        model(*batch, mode='loss')
    with pytest.raises(ConfigError, match='oracle=True and relevance='):
        MODELS.build(dict(type='CAMRefillDataPreprocessor', oracle=True, relevance=dict(smooth='mean')))
