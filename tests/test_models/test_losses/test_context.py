"""Terms on images whose context is another image's."""

import gc
import math
import weakref

import pytest
import torch
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from terms import build, dot, move_away, unit

from mmcfmask.counterfactual import relevance_map
from mmcfmask.errors import ConfigError
from mmcfmask.models import CounterfactualMaker, Step, classifier
from mmcfmask.models.losses import base, context_invariance, counterfactual_cross_entropy, feature_distillation

CONTEXT = dict(mask='context', mask_share=0.6)
CE, INVARIANCE = dict(type='CounterfactualCrossEntropy'), dict(type='ContextInvariance')
DISTILLATION = dict(type='ContextDistillation')


def test_cross_entropy_equals_loop():
    logits, labels = torch.randn(4, 3) * 5, [2, 0, 1, 1]
    total = 0.0
    for row, label in zip(logits.tolist(), labels):
        total -= row[label] / 7 - math.log(sum(math.exp(value / 7) for value in row))
    got = counterfactual_cross_entropy(logits, torch.tensor(labels), 7.0)
    assert got.item() == pytest.approx(total / 4, rel=1e-5)
    assert counterfactual_cross_entropy(logits.bfloat16(), torch.tensor(labels)).dtype == torch.float32


def test_invariance_equals_loop():
    first, second = torch.randn(4, 5), torch.randn(4, 5)
    total = sum(1 - dot(unit(a), unit(b)) for a, b in zip(first.tolist(), second.tolist()))
    assert context_invariance(first, second).item() == pytest.approx(total / 4, rel=1e-5)
    assert context_invariance(first, 3 * first).item() == pytest.approx(0, abs=1e-6)
    assert context_invariance(first.bfloat16(), second.bfloat16()).dtype == torch.float32


def by_hand(model, batch, seed=7, **options):
    """x̃₁ and x̃₂ that a term with these options makes after ``torch.manual_seed(seed)``."""
    images, samples = batch
    labels = torch.cat([sample.gt_label for sample in samples])
    relevance = relevance_map(model, images, labels)
    maker, generator = CounterfactualMaker(**options), torch.Generator().manual_seed(seed)
    made = maker.counterfactual(images, relevance.shape[1:], relevance, generator, labels)
    again = maker.refill_again(images, made, generator) if made.other_donors is not None else made
    return made.images, again.images, labels


def losses_of(model, batch, seed=7):
    torch.manual_seed(seed)
    return model(*batch, mode='loss')


@pytest.mark.parametrize(
    'options',
    [
        CONTEXT,
        dict(mask='context', fill='multi', donors='other_class'),
        dict(mask='random', views={}, color_mixing=0.5),
    ],
)
def test_losses_are_those_of_images_made_by_hand(tiny_pretrained, batch, options):
    for term in dict(CE, weight=0.5), dict(INVARIANCE, weight=2.0), dict(DISTILLATION, weight=3.0):
        model = move_away(build(tiny_pretrained, dict(term, counterfactual=options), cls_temperature=4.0))
        first, second, labels = by_hand(model, batch, **options)
        assert not torch.equal(first, second)
        features, others = (model.extract_feat(images)[-1] for images in (first, second))
        if term['type'] == 'ContextInvariance':
            name, expected = 'loss_invariance', 2 * context_invariance(features, others)
        elif term['type'] == 'ContextDistillation':
            name, expected = 'loss_context_distill', 3 * ((features - model.teacher(second)) ** 2).mean()
        else:
            name, expected = 'loss_counterfactual', 0.5 * counterfactual_cross_entropy(model(first), labels, 4.0)
        losses = losses_of(model, batch)
        assert set(losses) == {'loss_cls', name} and losses[name] > 1e-4
        torch.testing.assert_close(losses[name], expected)


def test_temperature_and_labels_are_those_of_the_ordinary_cross_entropy(tiny_pretrained, batch):
    """Where no patch is taken out, the two cross-entropies are one."""
    term = dict(CE, counterfactual=dict(mask='random', value=0.0))
    losses = losses_of(move_away(build(tiny_pretrained, term, cls_temperature=10.0)), batch)
    torch.testing.assert_close(losses['loss_counterfactual'], losses['loss_cls'])


def test_distillation_averages_over_contexts(tiny_pretrained, batch):
    """The features with the smallest loss are the teacher's mean over the contexts."""
    model = build(tiny_pretrained, dict(DISTILLATION, counterfactual=CONTEXT))
    with torch.no_grad():
        targets = torch.stack([model.teacher(by_hand(model, batch, seed, **CONTEXT)[1]) for seed in range(20)])
    guess = torch.zeros_like(targets[0], requires_grad=True)
    sum(feature_distillation(guess, target) for target in targets).backward()
    best = guess.detach() - guess.grad * guess.numel() / (2 * len(targets))  # Newton's step of a parabola
    torch.testing.assert_close(best, targets.mean(dim=0), atol=1e-5, rtol=1e-5)
    assert targets.std(dim=0).max() > 1e-3


def test_distillation_of_whole_images_is_that_of_clean_ones(tiny_pretrained, batch):
    term = dict(DISTILLATION, counterfactual=dict(mask='random', value=0.0))
    model = move_away(build(tiny_pretrained, term, dict(type='Distillation')))
    losses = losses_of(model, batch)
    torch.testing.assert_close(losses['loss_context_distill'], losses['loss_distill'])


def test_clean_target(tiny_pretrained, batch):
    model = move_away(build(tiny_pretrained, dict(INVARIANCE, counterfactual=CONTEXT, target='clean')))
    first, _, _ = by_hand(model, batch, **CONTEXT)
    features, clean = (model.extract_feat(images)[-1] for images in (first, batch[0]))
    torch.testing.assert_close(losses_of(model, batch)['loss_invariance'], context_invariance(features, clean))


def test_hidden_context(tiny_pretrained, batch):
    """Without a fill, what the tower sees does not depend on the pixels of the context."""
    options = dict(mask='context', fill='none', mask_share=0.5)
    model = move_away(build(tiny_pretrained, dict(CE, counterfactual=options)))
    images, samples = batch
    labels = torch.cat([sample.gt_label for sample in samples])
    made = CounterfactualMaker(**options).counterfactual(images, (4, 4), relevance_map(model, images, labels))
    other = torch.where(made.mask.repeat_interleave(8, 1).repeat_interleave(8, 2)[:, None], images.flip(0), images)
    seen = []
    for inputs in images, other:
        step = Step(model, inputs, labels, *[torch.empty(0)] * 2)
        step.images_of(model.losses[0].maker).__dict__['made'] = type(made)(inputs, made.mask, True, made.kept)
        seen.append(model.losses[0](step)['loss_counterfactual'])
    torch.testing.assert_close(*seen)
    assert not torch.allclose(model(images), model(other))


def test_what_terms_share(tiny_pretrained, batch, monkeypatch):
    """One clean pass, one relevance map; images by equal options are made once, and looked at once."""
    looks, maps = [], []
    model = move_away(
        build(
            tiny_pretrained,
            dict(type='CounterfactualDistillation'),
            dict(CE, counterfactual=CONTEXT),
            dict(INVARIANCE, counterfactual=dict(CONTEXT)),
        )
    )
    extract, relevance = model.extract_feat, base.attention_relevance
    monkeypatch.setattr(model, 'extract_feat', lambda images: looks.append(images) or extract(images))
    monkeypatch.setattr(base, 'attention_relevance', lambda *args, **kw: maps.append(1) or relevance(*args, **kw))
    torch.manual_seed(7)
    losses = model(*batch, mode='loss')
    assert set(losses) == {'loss_cls', 'loss_distill', 'loss_counterfactual', 'loss_invariance'}
    assert len(maps) == 1 and len(looks) == 4  # x, x̃ of the distillation, and two contexts
    assert torch.equal(looks[0], batch[0])
    assert all(not torch.equal(a, b) for i, a in enumerate(looks) for b in looks[:i])
    torch.manual_seed(7)
    alone = move_away(build(tiny_pretrained, dict(type='CounterfactualDistillation')))(*batch, mode='loss')
    assert torch.equal(alone['loss_distill'], losses['loss_distill'])  # which the terms behind it do not change


def test_images_of_the_data_preprocessor(tiny_pretrained, batch):
    """Without options of its own, a term shares the images of the distillation."""
    options = dict(mask='context', value=0.5, donors='other_class')
    terms = CE, INVARIANCE, dict(type='CounterfactualDistillation')
    model = move_away(build(tiny_pretrained, *terms, preprocessor=options))
    first, second, labels = by_hand(model, batch, **options)
    losses = losses_of(model, batch)
    features, others = (model.extract_feat(images)[-1] for images in (first, second))
    teacher = model.teacher(first)
    torch.testing.assert_close(losses['loss_distill'], 30 * ((features - teacher) ** 2).mean())
    torch.testing.assert_close(losses['loss_invariance'], context_invariance(features, others))
    torch.testing.assert_close(
        losses['loss_counterfactual'], counterfactual_cross_entropy(model.head((features,)), labels)
    )


def test_nothing_of_a_step_is_left(tiny_pretrained, batch, monkeypatch):
    """Activations are freed with the losses, not when Python looks for cycles of references."""
    model, steps = build(tiny_pretrained, dict(CE, counterfactual=CONTEXT)), []
    monkeypatch.setattr(classifier, 'Step', lambda *args: steps.append(weakref.ref(step := Step(*args))) or step)
    gc.disable()
    try:
        losses = model(*batch, mode='loss')
        assert steps[0]() is None and losses['loss_counterfactual'].requires_grad
    finally:
        gc.enable()


def test_the_terms_need_no_teacher_and_have_no_weights(tiny_pretrained):
    model = build(tiny_pretrained, dict(CE, counterfactual=CONTEXT), dict(INVARIANCE, counterfactual=CONTEXT))
    assert set(model.state_dict()) == set(build(tiny_pretrained).state_dict())
    assert build(tiny_pretrained, dict(CE, counterfactual=CONTEXT)).teacher is None


@pytest.mark.parametrize(
    'term, message',
    [
        (dict(CE, weight=-1.0), 'weight=-1.0 must not be negative'),
        (
            dict(CE, counterfactual=dict(maks='context')),
            "counterfactual has no 'maks'. Did you mean 'mask'",
        ),
        (dict(CE, counterfactual=dict(mask='contxt')), "counterfactual: unknown mask 'contxt': choose from object"),
        (dict(CE, counterfactual=dict(mask='context', donors='all')), "unknown donors 'all': choose from any"),
        (dict(CE, counterfactual=dict(mask='context', mask_share=1.5)), 'counterfactual: the share of patches'),
        (dict(CE, counterfactual=dict(mask='context', views=dict(turn=1))), 'counterfactual: .*turn'),
        (dict(CE, counterfactual='context'), "counterfactual='context' must be a dict of mask, fill, value"),
        (dict(CE), "images that keep their object, but model.data_preprocessor has mask='object', which takes it out"),
        (dict(CE, counterfactual={}), "keep their object, but its counterfactual has mask='object'"),
        (dict(INVARIANCE, target='other'), 'unknown target=\'other\': choose "context" or "clean"'),
        (dict(INVARIANCE, counterfactual=dict(mask='context', fill='none')), "fill='none' has no donors: use fill="),
        (dict(DISTILLATION, counterfactual=dict(mask='context', fill='none')), "fill='none' has no donors: use fill="),
        (dict(DISTILLATION), "images that keep their object, but model.data_preprocessor has mask='object'"),
        (
            dict(CE, counterfactual=dict(mask='context', fill='none', donors='other_class')),
            "donors='other_class' fill patches, but fill='none'",
        ),
    ],
)
def test_bad_settings(tiny_pretrained, term, message):
    with pytest.raises(ConfigError, match=message):
        build(tiny_pretrained, term)


def test_hiding_needs_the_whole_forward_pass(tiny_pretrained):
    model = dict(
        type='CounterfactualClassifier',
        backbone=dict(
            type='OpenCLIPBackbone', model_name='tiny-vit', pretrained=tiny_pretrained, grad_checkpointing=True
        ),
        head=dict(type='CLIPDistillHead', num_classes=3),
        losses=[dict(CE, counterfactual=dict(mask='context', fill='none'))],
    )
    with pytest.raises(ConfigError, match='grad_checkpointing=True'):
        MODELS.build(model)


@pytest.mark.parametrize('amp', [False, True])
def test_gradients_reach_tower_and_head(tiny_pretrained, batch, amp):
    terms = dict(CE, counterfactual=CONTEXT), dict(INVARIANCE, counterfactual=CONTEXT)
    model = move_away(build(tiny_pretrained, *terms, cls_weight=1.0))
    with torch.autocast('cpu', dtype=torch.bfloat16, enabled=amp):
        losses = model(*batch, mode='loss')
    for name in 'loss_counterfactual', 'loss_invariance':
        assert losses[name].dtype == torch.float32
        model.zero_grad()
        losses[name].backward(retain_graph=True)
        assert model.backbone.visual.proj.grad.norm() > 1e-5
        assert (model.head.fc.weight.grad is None) == (name == 'loss_invariance')


def test_two_images_have_one_donor_each(tiny_pretrained, batch):
    images, samples = batch
    model = move_away(build(tiny_pretrained, dict(INVARIANCE, counterfactual=CONTEXT)))
    losses = model(images[:2], [DataSample().set_gt_label(0), *samples[1:2]], mode='loss')
    assert losses['loss_invariance'].item() == pytest.approx(0, abs=1e-6)
