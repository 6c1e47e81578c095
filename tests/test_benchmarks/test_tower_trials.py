import json
from contextlib import nullcontext
from pathlib import Path

import open_clip
import pytest
import tiny_siglip
import torch
from torch import nn
from towers import register

from mmcfmask.benchmarks import tower_trials
from mmcfmask.benchmarks.tower_trials import Trial, estimate, kept_for_backward, list_towers, outcome, try_tower
from mmcfmask.errors import ConfigError

CONFIG = str(Path(__file__).parents[2] / 'configs' / 'cfmask_vitb16.py')


@pytest.fixture(scope='module', autouse=True)
def towers(tmp_path_factory):
    register(tmp_path_factory.mktemp('towers'))
    tiny_siglip.register(tmp_path_factory.mktemp('siglip'))


def test_groups_are_towers():
    groups = list_towers()
    names = [name for group in groups for name in group]
    assert sorted(names) == sorted(open_clip.list_models())
    of = {name: group for group in groups for name in group}
    assert of['ViT-B-32'][0] == 'ViT-B-32' and 'xlm-roberta-base-ViT-B-32' in of['ViT-B-32']
    assert of['ViT-B-16-SigLIP'] is of['ViT-B-16-SigLIP2'] and of['ViT-B-16'] is not of['ViT-B-32']


def test_estimate_is_what_the_tower_has():
    found = estimate('tiny-vit', 2)
    visual = open_clip.create_model('tiny-vit').visual
    assert found['parameters'] == sum(parameter.numel() for parameter in visual.parameters())
    width, tokens, patches, layers = 32, 17, 16, 3
    linear = layers * tokens * 12 * width**2
    attention = layers * 2 * tokens**2 * width
    assert found['gflop'] * 1e9 == 2 * (linear + attention + patches * 3 * 8 * 8 * width + width * 16)
    with kept_for_backward(visual) as kept:
        visual.train()(torch.zeros(1, 3, 32, 32))
    assert found['memory'] * 1e9 == pytest.approx(20 * found['parameters'] + 4 * sum(kept.values()), rel=0.1)
    assert found['image_size'] == [32, 32] and set(found) == set(tower_trials.ESTIMATED)


def test_kept_bytes_are_those_of_the_graph():
    layers = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    with kept_for_backward(layers) as kept:
        layers(torch.zeros(3, 4))
    assert sum(kept.values()) == 4 * (3 * 4 + 3 * 8)  # the input and the output of tanh, once


@pytest.mark.parametrize(
    'name, pooling, grid, hides, formats',
    [
        ('tiny-vit', 'class token', [4, 4], True, {'open_clip', 'hf', 'mmpretrain', 'torch'}),
        ('tiny-coca', 'attention pool', [4, 4], True, {'open_clip', 'torch'}),
        (tiny_siglip.NAME, 'attention pool', [4, 4], True, {'open_clip', 'hf', 'torch'}),
        ('tiny-clipa', 'mean of tokens', [4, 4], True, {'open_clip', 'torch'}),
        ('tiny-swin', 'feature map', [8, 8], False, {'open_clip', 'torch'}),
        ('tiny-fastvit', 'feature map', [2, 2], False, {'open_clip', 'torch'}),
        ('tiny-convnext', 'feature map', [2, 2], False, {'open_clip', 'torch'}),
        ('tiny-resnet', 'attention pool', [2, 2], False, {'open_clip', 'torch'}),
    ],
)
def test_record(name, pooling, grid, hides, formats):
    record = try_tower(CONFIG, name)
    assert json.loads(json.dumps(record)) == record
    assert (record['built'], record['map']) == ('ok', 'ok') and record['start'] < 1e-8
    assert (record['pooling'], record['grid']) == (pooling, grid)
    assert len(record['variants']) == 9
    for variant, text in record['variants'].items():
        assert text == 'ok' if hides or not variant.endswith('none') else text.startswith('refused: fill="none"')
    if hides:
        assert record['hidden'] < 1e-5
    else:
        assert record['hidden'].startswith('refused')
    assert {key for key, text in record['export'].items() if text == 'ok'} == formats
    assert all(text == 'ok' or text.startswith('refused: ') for text in record['export'].values())
    assert record['unused'] == [] and record['seconds'] > 0 and record['kept'] > 0 and record['peak'] > 0


def test_headline_variant_alone():
    assert list(try_tower(CONFIG, 'tiny-vit', all_variants=False)['variants']) == ['object/single']


def test_hidden_patches_that_are_seen_are_measured(monkeypatch):
    trial = Trial(CONFIG, 'tiny-vit', 2)
    assert trial.hidden() < 1e-5
    monkeypatch.setattr(tower_trials, 'hide_patches', lambda *args: nullcontext())
    assert trial.hidden() > 0.01


def test_faults_are_found(monkeypatch):
    trial = Trial(CONFIG, 'tiny-vit', 2)
    with torch.no_grad():
        trial.model.backbone.visual.proj.mul_(1.5)
    assert trial.distillation_at_start() == pytest.approx(0.25)
    monkeypatch.setattr(tower_trials, 'relevance_map', lambda *args: torch.ones(2, 4, 4))
    assert outcome(trial.check_map) == 'failed: ValueError: the relevance map is flat'
    monkeypatch.setattr(tower_trials, 'relevance_map', lambda *args: torch.full((2, 4, 4), float('nan')))
    assert 'negative or not finite' in outcome(trial.check_map)
    with torch.no_grad():
        trial.model.backbone.visual.ln_post.weight.fill_(float('inf'))
    assert outcome(lambda: trial.step('random', 'single')).endswith('is not finite')


def test_parameters_without_gradient_are_named():
    trial = Trial(CONFIG, 'tiny-vit', 2)
    trial.model.backbone.visual.spare = nn.Linear(2, 2)
    trial.step('random', 'single')
    assert trial.unused == ['backbone.visual.spare.weight', 'backbone.visual.spare.bias']


def test_outcomes():
    def refuse():
        raise ConfigError('not this one')

    def fail():
        raise KeyError

    assert [outcome(part) for part in (dict, refuse, fail)] == [
        'ok',
        'refused: not this one',
        'failed: KeyError: no message',
    ]


def test_a_tower_that_cannot_be_built_is_a_record():
    assert try_tower(CONFIG, 'ViT-X')['built'].startswith("refused: Unknown open_clip model 'ViT-X'")
