"""Lists of names in messages: cut short, and with the nearest known name beside a wrong one."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence


def short_list(names: Iterable[object], limit: int = 10) -> str:
    """The first names, and how many more there are: ``'a, b, ... (3 more)'``."""
    names = list(map(str, names))
    return ', '.join(names[:limit]) + (f', ... ({len(names) - limit} more)' if len(names) > limit else '')


def near_names(name: str, known: Sequence[str]) -> str:
    """``' Did you mean …?'`` with the known names that are close to ``name``; empty if none is close."""
    near = difflib.get_close_matches(name, known, n=5, cutoff=0.5)
    return f' Did you mean {" or ".join(map(repr, near))}?' if near else ''


def short_list_with_nearest(names: Sequence[str], known: Sequence[str], limit: int = 10) -> str:
    """:func:`short_list` with the closest known name behind each name that has one: ``'dog (near dogs)'``.

    WordNet ids (``n01440764``) get none: they all look alike.
    """
    shown = []
    for name in names[:limit]:
        near = [] if re.fullmatch(r'n\d{8}', name) else difflib.get_close_matches(name, known, n=1)
        shown.append(f'{name} (near {near[0]})' if near else name)
    return short_list([*shown, *names[limit:]], limit)
