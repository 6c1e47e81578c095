"""Averages of the weights of several fine-tuned models (Wortsman et al., "Model soups", ICML 2022)."""
from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Callable

from torch import Tensor

from ..files import write_tensors
from ..models.interpolation import check_same_model

State = Mapping[str, Tensor]


def uniform_soup(states: Iterable[State]) -> dict[str, Tensor]:
    """Mean of the weights, with equal shares.

    Args:
        states (Iterable[State]): State dicts of equal names and shapes. What belongs to auxiliary losses is left out, and what is not
            floating point is taken from the first.

    Raises:
        ValueError: No state dict, or one that differs from the first in its names or shapes.
    """
    total: dict[str, Tensor] = {}
    first: dict[str, Tensor] = {}
    number = 0
    for state in states:
        state = {name: value for name, value in state.items() if not name.startswith('auxiliary.')}
        if not number:
            first = state
            total = {name: value.double() for name, value in state.items() if value.is_floating_point()}
        else:
            check_same_model(first, state, f'ingredients 1 and {number + 1} of the soup')
            for name in total:
                total[name] += state[name]
        number += 1
    if not number:
        raise ValueError('a soup needs at least one model')
    return {name: (total[name] / number).to(value.dtype) if name in total else value.clone() for name, value in first.items()}


def greedy_soup(names: Iterable[str], load: Callable[[str], State],
                evaluate: Callable[[State], float]) -> tuple[dict[str, Tensor], list[str], dict[str, float]]:
    """Greedy soup (Wortsman et al. 2022, recipe 1): from the best ingredient to the worst, each is added if the mean of the weights does
    not get worse by it.

    Args:
        names (Iterable[str]): Names of the ingredients.
        load (Callable): Name to state dict.
        evaluate (Callable): State dict to its accuracy on held-out images of the training distribution.

    Returns:
        tuple: The soup, the names of its ingredients in the order they were added, and the accuracy of every ingredient alone.

    Raises:
        ValueError: As :func:`uniform_soup`.
    """
    alone = {name: evaluate(load(name)) for name in names}
    if not alone:
        raise ValueError('a soup needs at least one model')
    order = sorted(alone, key=alone.__getitem__, reverse=True)
    chosen = order[:1]
    soup, best = uniform_soup([load(chosen[0])]), alone[chosen[0]]
    for name in order[1:]:
        tried = uniform_soup(load(other) for other in (*chosen, name))
        accuracy = evaluate(tried)
        if accuracy >= best:
            soup, best = tried, accuracy
            chosen.append(name)
    return soup, chosen, alone


def save_soup(path: str, soup: State, meta: dict) -> None:
    """Write a soup as a checkpoint that tools/test.py reads."""
    write_tensors(path, dict(meta=meta, state_dict=dict(soup)))
