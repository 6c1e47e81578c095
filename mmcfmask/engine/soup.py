"""Averages of the weights of several fine-tuned models (Wortsman et al., "Model soups", ICML 2022)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping

from mmengine.device import get_device
from mmpretrain.registry import MODELS
from torch import Tensor

from ..errors import ConfigError
from ..models.interpolation import check_same_model
from ..models.losses.flyp import FLYP
from .values import is_a

State = Mapping[str, Tensor]
HeadMaker = Callable[[State], 'dict[str, Tensor]']
TIES = ('nll', 'paper', 'code')
"""What a greedy soup makes of ingredients that are equally accurate."""


def uniform_soup(states: Iterable[State], make_head: HeadMaker | None = None) -> dict[str, Tensor]:
    """Mean of the weights, with equal shares.

    Args:
        states (Iterable[State]): State dicts of equal names and shapes. What belongs to loss terms is left out,
            and what is not floating point is taken from the first.
        make_head (Callable, optional): From :func:`head_maker`.

    Raises:
        ValueError: No state dict, or one that differs from the first in its names or shapes.
    """
    total: dict[str, Tensor] = {}
    first: dict[str, Tensor] = {}
    number = 0
    for state in states:
        state = state if make_head else own_weights(state)
        if not number:
            first = state
            total = {name: value.double() for name, value in state.items() if value.is_floating_point()}
        else:
            check_same_model(first, state, f'ingredients 1 and {number + 1} of the soup')
            for name in total:
                total[name] += state[name]
        number += 1
    if not number:
        raise ConfigError('a soup needs at least one model')
    soup = {
        name: (total[name] / number).to(value.dtype) if name in total else value.clone()
        for name, value in first.items()
    }
    return make_head(soup) if make_head else soup


def own_weights(state: State) -> dict[str, Tensor]:
    """Without those of losses that only training has."""
    return {name: value for name, value in state.items() if not name.startswith('losses.')}


def head_maker(model: dict) -> HeadMaker | None:
    """For a model config whose head a text tower makes (:class:`mmcfmask.models.losses.flyp.FLYP`): a function of
    mean weights that gives them the head of the mean text tower, which is not the mean of the heads. None for others.
    """
    if not any(is_a(FLYP, loss.get('type'), MODELS) for loss in model.get('losses') or ()):
        return None
    built = MODELS.build(copy.deepcopy(model)).to(get_device())

    def make_head(soup: State) -> dict[str, Tensor]:
        if not any(name.startswith('losses.') for name in soup):
            raise ConfigError(
                'the ingredients of the soup have no text tower, of which the head is made (model.losses): give '
                'checkpoints of the training'
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
    """Greedy soup (Wortsman et al. 2022, recipe 1): from the best ingredient to the worst, each is added if the mean of
    the weights does not get worse by it.

    On a few hundred images many soups are equally accurate, and what is done then changes what is in the soup:

    - ``'nll'``: Of two that are equally accurate the one of the lower cross-entropy is the better.
    - ``'paper'``: An ingredient that leaves the accuracy as it is is added, and of equal ones the first is tried first.
    - ``'code'``: As in the authors' released code, it is not added, and the last is tried first.

    Args:
        names (Iterable[str]): Names of the ingredients.
        load (Callable): Name to state dict.
        evaluate (Callable): State dict to accuracy and negative cross-entropy on held-out images of the training
            distribution, as of :func:`mmcfmask.evaluation.preference`.
        ties (str): One of :data:`TIES`.
        make_head (Callable, optional): From :func:`head_maker`.

    Returns:
        tuple: The soup, the names of its ingredients in the order they were added, and what ``evaluate`` gives for
            every ingredient alone.

    Raises:
        ValueError: As :func:`uniform_soup`; unknown ``ties``.
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
