"""Two classifiers that answer together, and the term that trains the second one."""

import copy
import math

import pytest
import torch
from mmpretrain.registry import MODELS
from terms import NAMES, TEMPLATES, build, train_a_little

from mmcfmask.errors import ConfigError
from mmcfmask.models import DualHead
from mmcfmask.models.export.parts import cosine_head

DESCRIPTIONS = dict(type='text', classnames=['five points', 'round and blue', 'a hole'], templates=['a {}'])


def dual(pretrained, *losses, **head):
    return build(pretrained, *losses, **{**dict(type='DualHead', descriptions=DESCRIPTIONS, beta=0.3), **head})


def slow_mixture(head, z, beta):
    """p of one image, in plain Python."""
    length = math.sqrt(sum(x * x for x in z))
    p = [0.0] * head.num_classes
    for share, layer in ((beta, head.fc), (1 - beta, head.fc_descriptions)):
        logits = [
            sum(w * x / length for w, x in zip(row, z)) + b
            for row, b in zip(layer.weight.tolist(), layer.bias.tolist())
        ]
        exps = [math.exp(value - max(logits)) for value in logits]
        p = [old + share * value / sum(exps) for old, value in zip(p, exps)]
    return p


def test_inference_equals_loop(tiny_pretrained, batch):
    model = dual(tiny_pretrained).eval()
    with torch.no_grad():
        features = model.extract_feat(batch[0])[-1]
        scores = model(batch[0])
        samples = model.predict(batch[0], copy.deepcopy(batch[1]))
    for z, row, sample in zip(features.tolist(), scores, samples):
        expected = torch.tensor(slow_mixture(model.head, z, 0.3))
        torch.testing.assert_close(row.exp(), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(sample.pred_score, expected, rtol=1e-4, atol=1e-5)
        assert sample.mixed_logits.shape == (2, 3) and sample.mixed_weights.tolist() == pytest.approx([0.3, 0.7])
    single = build(tiny_pretrained).eval()
    torch.testing.assert_close(dual(tiny_pretrained, beta=1.0).eval()(batch[0]), single(batch[0]).log_softmax(dim=1))


def test_both_start_from_their_texts(tiny_pretrained, clip):
    model, (whole, tokenizer) = dual(tiny_pretrained), clip
    with torch.no_grad():
        for layer, names, templates in (
            (model.head.fc, NAMES, TEMPLATES),
            (model.head.fc_descriptions, DESCRIPTIONS['classnames'], DESCRIPTIONS['templates']),
        ):
            for row, name in zip(layer.weight, names):
                texts = whole.encode_text(tokenizer([template.format(name) for template in templates]), normalize=True)
                expected = whole.logit_scale.exp() * texts.mean(0) / texts.mean(0).norm()
                torch.testing.assert_close(row, expected, rtol=1e-4, atol=1e-3)


def test_step_trains_both(tiny_pretrained, batch):
    model = dual(tiny_pretrained, dict(type='DualRisk', weight=0.7))
    start = copy.deepcopy(model.head)
    with torch.no_grad():
        before = model.extract_feat(batch[0])[-1]
    train_a_little(model, batch)
    losses = model(*batch, mode='loss')
    assert set(losses) == {'loss_cls', 'loss_descriptions'}
    with torch.no_grad():
        logits = model.extract_feat(batch[0])[-1]
        cross_entropy = total = 0.0
        for old, new, label in zip(before, logits, (0, 2, 2, 1)):
            target = (start.fc_descriptions(old / old.norm())).softmax(0)
            unit = new / new.norm()
            total -= (target * model.head.fc_descriptions(unit).log_softmax(0)).sum() / 4
            cross_entropy -= model.head.fc(unit).log_softmax(0)[label] / 4
    torch.testing.assert_close(losses['loss_descriptions'], 0.7 * total, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(losses['loss_cls'], cross_entropy, rtol=1e-3, atol=1e-4)  # of the names alone
    for name in ('fc', 'fc_descriptions'):
        assert not torch.equal(getattr(model.head, name).weight, getattr(start, name).weight)


def test_without_the_term_the_descriptions_stay(tiny_pretrained, batch):
    model = dual(tiny_pretrained)
    start = model.head.fc_descriptions.weight.clone()
    train_a_little(model, batch)
    assert torch.equal(model.head.fc_descriptions.weight, start)
    assert not model.head.fc_descriptions.weight.requires_grad  # DDP waits for no gradient of it
    tested = dual(tiny_pretrained, class_weights=None, descriptions=None)
    tested.load_state_dict(model.state_dict())
    torch.testing.assert_close(tested.eval()(batch[0]), model.eval()(batch[0]))


@pytest.mark.parametrize(
    'head, message',
    [
        (dict(beta=1.2), r'beta=1.2 must lie in \[0, 1\]'),
        (dict(descriptions=dict(type='prototype')), "descriptions.type='prototype' must be 'text' or 'file'"),
        (dict(descriptions=None), 'needs class_weights, of the names, and descriptions: set both'),
        (dict(distill='logits'), "has two sets of logits: use distill='feature'"),
        (
            dict(descriptions=dict(DESCRIPTIONS, classnames=['one', 'two'])),
            'model.head.descriptions: 2 classes of width 16, but the head has 3 classes of width 16',
        ),
    ],
)
def test_mistakes(tiny_pretrained, head, message):
    with pytest.raises(ConfigError, match=message):
        dual(tiny_pretrained, **head)


def test_what_needs_one_classifier_says_so(tiny_pretrained):
    with pytest.raises(ConfigError, match="DualRisk trains the second classifier of model.head.type='DualHead'"):
        build(tiny_pretrained, dict(type='DualRisk'))
    with pytest.raises(ConfigError, match='model.head is a DualHead, not a plain CLIPDistillHead: export it to torch'):
        cosine_head(dual(tiny_pretrained))
    assert MODELS.get('DualHead') is DualHead
