import random

import pytest
import torch
from mmpretrain.registry import MODELS

from mmcfmask.engine.soup import TIES, greedy_soup, head_maker, model_stock, stock_ratio, uniform_soup
from mmcfmask.models.towers.loading import load_text_tower


def states(*values):
    return [
        {'weight': torch.tensor([float(value), 1.0]), 'count': torch.tensor(7), 'losses.0.text': torch.ones(3)}
        for value in values
    ]


def test_uniform_soup_is_the_mean():
    soup = uniform_soup(states(1, 2, 6))
    assert set(soup) == {'weight', 'count'}
    assert soup['weight'].tolist() == [3.0, 1.0] and soup['count'].item() == 7 and soup['weight'].dtype == torch.float32
    half = [{'weight': torch.full((2,), value).half()} for value in (1e-4, 3e-4, 5e-4)]
    torch.testing.assert_close(uniform_soup(half)['weight'], torch.full((2,), 3e-4).half())


def greedy(values, target):
    """Ingredients are numbers; the accuracy falls with the distance of their mean from a target."""
    ingredients = dict(zip('abcdef', states(*values)))
    asked = []

    def evaluate(state):
        asked.append(state['weight'][0].item())
        return 100 - abs(asked[-1] - target), 0.0

    return greedy_soup(ingredients, ingredients.__getitem__, evaluate), asked


def test_greedy_soup_adds_what_does_not_hurt_from_the_best_on():
    (soup, chosen, alone), asked = greedy([0, 8, 13, 40], target=10)
    # Best alone: b (8), then c (13): mean 10.5 is better; a (0): mean 7 is worse; d (40): mean 20.3 is worse.
    assert chosen == ['b', 'c'] and soup['weight'][0].item() == 10.5
    assert {name: found[0] for name, found in alone.items()} == {'a': 90, 'b': 98, 'c': 97, 'd': 70}
    assert asked == pytest.approx([0, 8, 13, 40, 10.5, 7, 61 / 3])


def naive_greedy(values, measure, ties):
    """Recipe 1 with loops over numbers: (score, likelihood) of a mean by ``measure``."""
    score, likelihood = (lambda numbers, i=i: measure(sum(numbers) / len(numbers))[i] for i in (0, 1))
    better = dict(
        nll=lambda new, old: (
            score(new) > score(old) or (score(new) == score(old) and likelihood(new) >= likelihood(old))
        ),
        paper=lambda new, old: score(new) >= score(old),
        code=lambda new, old: score(new) > score(old),
    )[ties]
    left, soup = list(range(len(values))), []
    while left:
        best = left[0]
        for other in left[1:]:
            mine, theirs = ([values[index]] for index in (best, other))
            if score(theirs) > score(mine) or (
                score(theirs) == score(mine)
                and (ties == 'code' or (ties == 'nll' and likelihood(theirs) > likelihood(mine)))
            ):
                best = other
        left.remove(best)
        if not soup or better([values[index] for index in (*soup, best)], [values[index] for index in soup]):
            soup.append(best)
    return soup


@pytest.mark.parametrize('ties', TIES)
def test_ties(ties):
    """Accuracies of few images, so that many are equal; the ways to decide then differ."""
    rng, others = random.Random(0), 0

    def measure(value):
        return float(round(abs(value - 8) / 2)) * -1, -abs(value - 9)

    for _ in range(300):
        values = [rng.randrange(17) for _ in range(5)]
        ingredients = dict(enumerate(states(*values)))
        soup, chosen, _ = greedy_soup(
            ingredients, ingredients.__getitem__, lambda state: measure(state['weight'][0].item()), ties
        )
        assert chosen == naive_greedy(values, measure, ties)
        assert soup['weight'][0].item() == pytest.approx(sum(values[index] for index in chosen) / len(chosen))
        others += any(naive_greedy(values, measure, other) != chosen for other in TIES)
    assert others > 150


def test_flyp_soup_has_the_head_of_the_mean_text_tower(tiny_pretrained):
    prompts = dict(classnames=['ring', 'star', 'bolt'], templates=['a {}', 'the {}'])
    cfg = dict(
        type='CounterfactualClassifier',
        backbone=dict(type='OpenCLIPBackbone', model_name='tiny-vit', pretrained=tiny_pretrained),
        head=dict(type='CLIPDistillHead', num_classes=3, cls_weight=0.0),
        losses=[dict(type='FLYP', **prompts)],
    )
    model, states = MODELS.build(cfg), []
    for _ in range(2):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        states.append({name: value.clone() for name, value in model.state_dict().items()})
    soup = uniform_soup(states, head_maker(cfg))
    text, tokenizer = load_text_tower('tiny-vit', tiny_pretrained)
    prefix = 'losses.0.text.'
    text.load_state_dict(
        {
            name[len(prefix) :]: (value + states[1][name]) / 2 if value.is_floating_point() else value
            for name, value in states[0].items()
            if name.startswith(prefix)
        }
    )
    with torch.no_grad():
        embeddings = [
            sum(
                torch.nn.functional.normalize(text.encode_text(tokenizer([template.format(name)]))[0], dim=0)
                for template in prompts['templates']
            )
            for name in prompts['classnames']
        ]
        expected = text.logit_scale.exp() * torch.stack([row / row.norm() for row in embeddings])
    torch.testing.assert_close(soup['head.fc.weight'], expected, rtol=1e-4, atol=1e-4)
    assert (
        soup['head.fc.weight'] - (states[0]['head.fc.weight'] + states[1]['head.fc.weight']) / 2
    ).norm() > 1e-2 * expected.norm()
    assert soup.keys() == {name for name in states[0] if not name.startswith('losses.')}
    proj = 'backbone.visual.proj'
    torch.testing.assert_close(soup[proj], (states[0][proj] + states[1][proj]) / 2)
    # Model Stock mixes the text tower too. Seen from the second model, only the first one moved: t = 0 everywhere.
    torch.testing.assert_close(
        model_stock(states, states[1], head_maker(cfg))['head.fc.weight'], states[1]['head.fc.weight']
    )
    with pytest.raises(ValueError, match='the ingredients of the soup have no text tower'):
        uniform_soup([soup, soup], head_maker(cfg))
    assert head_maker(dict(cfg, losses=[dict(type='L2SP')])) is None


def slow_stock(weights, start):
    """Model Stock of lists of numbers, as the paper writes it."""
    number = len(weights)
    moves = [[value - first for value, first in zip(weight, start)] for weight in weights]
    total, pairs = 0.0, 0
    for i in range(number):
        for j in range(i + 1, number):
            lengths = [sum(value**2 for value in moves[k]) ** 0.5 for k in (i, j)]
            total += sum(a * b for a, b in zip(moves[i], moves[j])) / (lengths[0] * lengths[1])
            pairs += 1
    cosine = max(total / pairs, 0.0)
    t = number * cosine / (1 + (number - 1) * cosine)
    mean = [sum(weight[k] for weight in weights) / number for k in range(len(start))]
    return [t * average + (1 - t) * first for average, first in zip(mean, start)]


@pytest.mark.parametrize('number', [2, 3, 5])
def test_model_stock_equals_loop(number):
    torch.manual_seed(number)
    shapes = dict(weight=(4, 6), bias=(4,))
    start = {name: torch.randn(shape) for name, shape in shapes.items()} | {'count': torch.tensor(1)}
    step = {name: torch.randn(shape) for name, shape in shapes.items()}  # what all models have in common
    models = [
        {name: start[name] + step[name] + torch.randn(shape) for name, shape in shapes.items()}
        | {'count': torch.tensor(7), 'losses.0.text': torch.ones(3)}
        for _ in range(number)
    ]
    stock = model_stock(models, start)
    assert stock.keys() == start.keys() and stock['count'] == 7
    for name in shapes:
        expected = slow_stock([model[name].flatten().tolist() for model in models], start[name].flatten().tolist())
        torch.testing.assert_close(stock[name].flatten(), torch.tensor(expected), rtol=1e-5, atol=1e-6)
        assert (stock[name] - uniform_soup(models)[name]).abs().max() > 1e-2


def test_model_stock_at_its_ends():
    """One direction gives the mean, no common direction the pretrained weights, and so does what did not move."""
    start, right, up = torch.zeros(2), torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    assert stock_ratio(torch.stack([right, 3 * right])) == pytest.approx(1)
    assert stock_ratio(torch.stack([right, up])) == stock_ratio(torch.stack([right, -up - right])) == 0
    assert stock_ratio(torch.stack([right, right + up])) == pytest.approx(2 * 0.5**0.5 / (1 + 0.5**0.5))
    states = [dict(one=right, other=up, still=start), dict(one=3 * right, other=right, still=start)]
    stock = model_stock(states, dict(one=start, other=start, still=start))
    assert [stock[name].tolist() for name in ('one', 'other', 'still')] == [[2, 0], [0, 0], [0, 0]]
    with pytest.raises(ValueError, match='Model Stock needs at least two models'):
        model_stock(states[:1], states[0])
    with pytest.raises(ValueError, match='in only one of them, such as still'):
        model_stock(states, dict(one=start, other=start))


def test_ingredients_must_be_of_one_model():
    with pytest.raises(ValueError, match='at least one'):
        uniform_soup([])
    with pytest.raises(ValueError, match='at least one'):
        greedy_soup([], None, None)
    with pytest.raises(
        ValueError, match='ingredients 1 and 2 of the soup .* 1 tensors are in only one of them, such as bias'
    ):
        uniform_soup([{'weight': torch.ones(2)}, {'weight': torch.ones(2), 'bias': torch.ones(1)}])
    with pytest.raises(ValueError, match=r'weight has the shapes \(2,\) and \(3,\)'):
        uniform_soup([{'weight': torch.ones(2)}, {'weight': torch.ones(3)}])
