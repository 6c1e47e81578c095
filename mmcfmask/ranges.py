"""Ranges for type hints of registered classes; :mod:`.engine.checks` checks the values of a config by them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal, Union

from annotated_types import Ge, Gt, Le, Lt

from .errors import ConfigError

Finite = Annotated[float, Gt(-math.inf), Lt(math.inf)]
Positive = Annotated[float, Gt(0), Lt(math.inf)]
NonNegative = Annotated[float, Ge(0), Lt(math.inf)]
Share = Annotated[float, Ge(0), Le(1)]
Momentum = Annotated[float, Ge(0), Lt(1)]
OpenShare = Annotated[float, Gt(0), Lt(1)]
Count = Annotated[int, Ge(1), Le(10**9)]
Whole = Annotated[int, Ge(0), Le(10**9)]
Stages = Annotated[int, Ge(-1), Le(10**4)]
Seed = Annotated[int, Ge(0), Lt(2**32)]
SubsetSeed = Union[Seed, Literal['run']]  # 'run': the seed of the run
MOST_PIXELS = 16384
Pixels = Annotated[int, Ge(1), Le(MOST_PIXELS)]


def height_and_width(image_size: int | Sequence[int], where: str) -> tuple[int, int]:
    """Height and width of an ``image_size``, which is one number for both or two numbers.

    Raises:
        ConfigError: Anything else, with ``where``.
    """
    sizes = [image_size] * 2 if isinstance(image_size, int) else image_size
    if (
        not isinstance(sizes, (list, tuple))
        or len(sizes) != 2
        or not all(isinstance(size, int) and not isinstance(size, bool) and 0 < size <= MOST_PIXELS for size in sizes)
    ):
        raise ConfigError(
            f'{where}: image_size={image_size!r} must be a number of pixels, or height and width as (224, 224)'
        )
    return sizes[0], sizes[1]
