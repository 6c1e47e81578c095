"""Mixup and CutMix beside counterfactual images."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from terms import build

from mmcfmask.errors import ConfigError
from mmcfmask.models.losses import soft_cross_entropy

MIXUP, CUTMIX = dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)


def term(*augments, **options):
    return dict(type='MixedCrossEntropy', augments=list(augments or [MIXUP]), **options)


def mixed_by_hand(images, labels, kind, seed=7):
    """What a step draws after ``torch.manual_seed(seed)``, with loops over images and pixels."""
    torch.manual_seed(seed)
    random = np.random.RandomState(int(torch.randint(2**31, ())))
    random.choice(1, p=None)
    share = random.beta(kind['alpha'], kind['alpha'])
    order = torch.randperm(len(images))
    mixed = images.clone()
    if kind is CUTMIX:
        height, width = images.shape[2:]
        side = math.sqrt(1 - share)
        cut = int(height * side), int(width * side)
        y, x = (int(random.randint(0, size, size=None)) for size in (height, width))
        rows = range(max(y - cut[0] // 2, 0), min(y + cut[0] // 2, height))
        cols = range(max(x - cut[1] // 2, 0), min(x + cut[1] // 2, width))
        for image, other in enumerate(order):
            for row in rows:
                for col in cols:
                    mixed[image, :, row, col] = images[other, :, row, col]
        share = 1 - len(rows) * len(cols) / (height * width)
    else:
        for image, other in enumerate(order):
            mixed[image] = share * images[image] + (1 - share) * images[other]
    soft = torch.zeros(len(images), 3)
    for image, other in enumerate(order):
        soft[image, labels[image]] += share
        soft[image, labels[other]] += 1 - share
    return mixed, soft


@pytest.mark.parametrize('kind', [MIXUP, CUTMIX])
def test_loss_is_that_of_images_mixed_by_hand(tiny_pretrained, batch, kind):
    model = build(tiny_pretrained, term(kind, weight=0.5), cls_temperature=4.0)
    labels = torch.cat([sample.gt_label for sample in batch[1]])
    images, soft = mixed_by_hand(batch[0], labels, kind)
    assert not torch.equal(images, batch[0])
    expected = 0.5 * soft_cross_entropy(model(images), soft, 4.0)
    torch.manual_seed(7)
    losses = model(*batch, mode='loss')
    assert set(losses) == {'loss_cls', 'loss_mixed'}
    torch.testing.assert_close(losses['loss_mixed'], expected)
    torch.testing.assert_close(losses['loss_cls'], F.cross_entropy(model(batch[0]) / 4, labels))


def test_other_terms_see_the_images_as_they_are(tiny_pretrained, batch):
    """Also where the mixed images are made first: CutMix writes into its images."""
    images = batch[0].clone()
    results = []
    for losses in ([term(CUTMIX), dict(type='Distillation')], [dict(type='Distillation')]):
        model = build(tiny_pretrained, *losses)
        with torch.no_grad():
            model.backbone.visual.proj.mul_(1.5)
        results.append(model(batch[0].clone(), batch[1], mode='loss')['loss_distill'])
    torch.testing.assert_close(*results)
    model = build(tiny_pretrained, term(CUTMIX), dict(type='CounterfactualDistillation'))
    sum(model(*batch, mode='loss').values()).backward()
    assert torch.equal(batch[0], images)


def test_random_numbers_follow_torch(tiny_pretrained, batch):
    model = build(tiny_pretrained, term(MIXUP, CUTMIX))
    state = np.random.get_state()[1].copy()
    losses = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        losses.append(model(*batch, mode='loss')['loss_mixed'].item())
    assert losses[0] == losses[1] != losses[2]
    assert (np.random.get_state()[1] == state).all()


def test_a_share_of_the_batches_stays_as_it_is(tiny_pretrained, batch):
    model = build(tiny_pretrained, term(MIXUP, probs=[0.0]))
    losses = model(*batch, mode='loss')
    torch.testing.assert_close(losses['loss_mixed'], losses['loss_cls'])


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(augments=[]), 'MixedCrossEntropy: augments is empty: name one'),
        (dict(augments=[dict(type='Mixdown')]), "MixedCrossEntropy: .*'?Mixdown"),
        (dict(augments=[MIXUP], probs=[0.5, 0.5]), 'MixedCrossEntropy: .* must have same lengths'),
        (dict(augments=[MIXUP], weight=-1.0), 'weight=-1.0 must not be negative'),
    ],
)
def test_wrong_options(tiny_pretrained, options, message):
    with pytest.raises(ConfigError, match=message):
        build(tiny_pretrained, dict(type='MixedCrossEntropy', **options))


def test_batch_augments_of_mmpretrain_are_refused(tiny_pretrained):
    with pytest.raises(ConfigError, match=r"type='MixedCrossEntropy', augments=\[…\]\) in model.losses"):
        build(tiny_pretrained, preprocessor=dict(batch_augments=dict(augments=[MIXUP])))
