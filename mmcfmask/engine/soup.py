"""Model soups: averages of the weights of several fine-tuned models (Wortsman et al., ICML 2022; Model Stock, ECCV
2024)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from mmengine.device import get_device
from mmpretrain.registry import MODELS
from torch import Tensor

from ..errors import ConfigError
from ..models.interpolation import check_same_model, lerp
from ..models.losses.flyp import FLYP
from .values import is_a

State = Mapping[str, Tensor]
HeadMaker = Callable[[State], 'dict[str, Tensor]']
SOUPS = dict(uniform='uniform soup', greedy='greedy soup', stock='Model Stock')
"""What ``meta['soup']`` of a checkpoint may be, and how tables call it."""
TIES = ('nll', 'paper', 'code')
"""How a greedy soup decides between equally accurate ingredients."""


def uniform_soup(states: Iterable[State], make_head: HeadMaker | None = None) -> dict[str, Tensor]:
    """Average weights with equal shares.

    Args:
        states (Iterable[State]): State dicts of equal names and shapes. Weights of loss terms are left out; tensors
            that are not floating point come from the first state dict.
        make_head (Callable, optional): From :func:`head_maker`.

    Raises:
        ConfigError: No state dict, or one that differs from the first in its names or shapes.
    """
    soup = _mean(states if make_head else map(own_weights, states))
    return make_head(soup) if make_head else soup


def _mean(states: Iterable[State]) -> dict[str, Tensor]:
    total: dict[str, Tensor] = {}
    first: dict[str, Tensor] = {}
    number = 0
    for state in states:
        if not number:
            first = dict(state)
            total = {name: value.double() for name, value in state.items() if value.is_floating_point()}
        else:
            check_same_model(first, state, f'ingredients 1 and {number + 1} of the soup')
            for name in total:
                total[name] += state[name]
        number += 1
    if not number:
        raise ConfigError('a soup needs at least one model')
    return {
        name: (total[name] / number).to(value.dtype) if name in total else value.clone()
        for name, value in first.items()
    }


def stock_ratio(deltas: Tensor) -> float:
    """Model Stock's t = N cosθ / (1 + (N − 1) cosθ), cosθ the mean cosine similarity between two of N fine-tuned
    weights seen from the pretrained ones (Jang et al., "Model Stock", ECCV 2024, arXiv 2403.19522).

    Args:
        deltas (Tensor): (N, …) floating point, wᵢ − w₀; N ≥ 2.

    Returns:
        float: In [0, 1]. A negative cosθ counts as 0, as weights that did not move do.
    """
    number = len(deltas)
    unit = torch.nn.functional.normalize(deltas.double().reshape(number, -1), dim=1)
    cosines = unit @ unit.T
    cosine = max((cosines.sum() - cosines.trace()).item() / (number * (number - 1)), 0.0)
    return number * cosine / (1 + (number - 1) * cosine)


def model_stock(states: Sequence[State], pretrained: State, make_head: HeadMaker | None = None) -> dict[str, Tensor]:
    """Model Stock: w = t w̄ + (1 − t) w₀ for every tensor, w̄ the mean of the fine-tuned weights, t its own
    :func:`stock_ratio`. The less the fine-tuned weights agree, the closer to the pretrained weights.

    The paper's layer is a tensor here: weights and biases have a t each. It needs no images.

    Args:
        states (Sequence[State]): State dicts of at least two models, of equal names and shapes. Weights of loss terms
            are left out; tensors that are not floating point come from the first state dict.
        pretrained (State): w₀; it may have more tensors.
        make_head (Callable, optional): From :func:`head_maker`.

    Raises:
        ConfigError: Fewer than two state dicts; names or shapes that differ.
    """
    if len(states) < 2:
        raise ConfigError('Model Stock needs at least two models, whose angle decides: name more checkpoints')
    states = list(states if make_head else map(own_weights, states))
    stock = _mean(states)
    check_same_model(stock, {name: pretrained[name] for name in pretrained if name in stock})
    for name, mean in stock.items():
        if mean.is_floating_point():
            ratio = stock_ratio(torch.stack([state[name].double() - pretrained[name].double() for state in states]))
            stock[name] = lerp(pretrained[name], mean, ratio)
    return make_head(stock) if make_head else stock


def own_weights(state: State) -> dict[str, Tensor]:
    """Return a state dict without the weights of loss terms."""
    return {name: value for name, value in state.items() if not name.startswith('losses.')}


def head_maker(model: dict) -> HeadMaker | None:
    """Return a function that gives averaged weights the head of the averaged text tower, which is not the average of
    the heads. None unless a text tower makes the head (:class:`mmcfmask.models.losses.flyp.FLYP`).

    Args:
        model (dict): The ``model`` of a config.
    """
    if not any(is_a(FLYP, loss.get('type'), MODELS) for loss in model.get('losses') or ()):
        return None
    built = MODELS.build(copy.deepcopy(model)).to(get_device())

    def make_head(soup: State) -> dict[str, Tensor]:
        if not any(name.startswith('losses.') for name in soup):
            raise ConfigError(
                'the ingredients of the soup have no text tower, which makes the head (model.losses): give checkpoints '
                'of the training'
            )
        built.load_state_dict(soup)
        return {name: value.cpu().clone() for name, value in own_weights(built.state_dict()).items()}

    return make_head


def greedy_soup(
    names: Iterable[str],
    load: Callable[[str], State],
    evaluate: Callable[[State], tuple[float, float]],
    ties: str = 'nll',
    make_head: HeadMaker | None = None,
) -> tuple[dict[str, Tensor], list[str], dict[str, tuple[float, float]]]:
    """Make a greedy soup (Wortsman et al. 2022, recipe 1): try the ingredients from best to worst, and add each one
    unless it makes the average worse.

    On a few hundred images many soups are equally accurate. ``ties`` decides what happens then:

    - ``'nll'``: The lower cross-entropy is better.
    - ``'paper'``: Add an ingredient that does not change the accuracy; of equal ones try the first one first.
    - ``'code'``: Do not add it, and try the last one first, as in the authors' released code.

    Args:
        names (Iterable[str]): Names of the ingredients.
        load (Callable): Name to state dict.
        evaluate (Callable): State dict to accuracy and negative cross-entropy on held-out images of the training
            distribution, as of :func:`mmcfmask.evaluation.preference`.
        ties (str): One of :data:`TIES`.
        make_head (Callable, optional): From :func:`head_maker`.

    Returns:
        tuple: The soup, the names of its ingredients in the order they were added, and the result of ``evaluate`` for
            every ingredient alone.

    Raises:
        ConfigError: As :func:`uniform_soup`; unknown ``ties``.
    """
    if ties not in TIES:
        raise ConfigError(f'ties={ties!r} is unknown: choose from {", ".join(TIES)}')
    alone = {name: evaluate(load(name)) for name in names}
    if not alone:
        raise ConfigError('a soup needs at least one model')
    counted = slice(2 if ties == 'nll' else 1)
    order = sorted(reversed(alone) if ties == 'code' else alone, key=lambda name: alone[name][counted], reverse=True)
    chosen = order[:1]
    soup, best = uniform_soup([load(chosen[0])], make_head), alone[chosen[0]][counted]
    for name in order[1:]:
        tried = uniform_soup((load(other) for other in (*chosen, name)), make_head)
        found = evaluate(tried)[counted]
        if found > best or (found == best and ties != 'code'):
            soup, best = tried, found
            chosen.append(name)
    return soup, chosen, alone
