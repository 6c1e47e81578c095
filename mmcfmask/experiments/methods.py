"""The methods of a study: its entries after sweeps, checked against each other."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch

from pydantic import model_validator
from pydantic_core import PydanticCustomError

from ..errors import ConfigError
from ..files import check_file_name, slug
from ..messages import near_names
from .spec import RENAMED_KEYS, MethodFields, MethodSpec, Text, parse

# The keys that say where the weights of a method come from; a method has one of them.
SOURCES = ('config', 'wise_ft', 'evaluate', 'soup')
MOST = 1000  # methods of one sweep


class Method(MethodFields):
    """One method of a study: what an entry of the study file says, after sweeps, with its name in tables."""

    name: Text

    @property
    def source(self) -> str | None:
        """The method whose runs this one uses."""
        return self.wise_ft or self.evaluate or self.soup

    @model_validator(mode='after')
    def _check_combination(self) -> Method:
        given = [key for key in SOURCES if getattr(self, key) is not None]
        if len(given) != 1:
            text = f'it must have one of {", ".join(SOURCES)}, but has {" and ".join(given) or "none"}'
        elif self.evaluate and not self.options:
            text = 'evaluate needs options: [--knn-gate] or [--vrf], [--relevance-crop], or both'
        elif self.options and not self.evaluate:
            text = f'options belong to evaluate, but this entry has {given[0]}'
        elif self.stock and (self.greedy or not self.soup):
            text = 'stock is a kind of soup: it needs soup, and goes without greedy'
        elif self.source and (self.grid or self.tuned_as):
            text = f'{given[0]} uses the runs of {self.source!r}, which can be tuned: write the grid or tuned_as there'
        elif self.source and self.cfg_options:
            text = f'{given[0]} uses the config of {self.source!r}: set the cfg_options there'
        else:
            return self
        raise PydanticCustomError('combination', text)


def expand_methods(entries: Mapping[str, MethodSpec]) -> list[Method]:
    """Expand the sweeps of all entries of a study, and check the methods against each other.

    Raises:
        ConfigError: Two methods have the same name; one uses a method that does not exist or that uses another itself;
            a combination of keys or values makes no sense.
    """
    methods = [method for name, entry in entries.items() for method in expand_sweep(name, entry)]
    by_name = {method.name: method for method in methods}
    for method in methods:
        where = f'methods[{method.name!r}]'
        check_file_name(slug(method.name), where)
        if by_name[method.name] is not method:
            raise ConfigError(f'two methods are named {method.name!r}')
        if method.source and method.source not in by_name:
            hint = near_names(method.source, list(by_name)) or f' There are {", ".join(by_name)}'
            raise ConfigError(f'{where} uses {method.source!r}, but no method has this name.{hint}')
        if method.source and by_name[method.source].source:
            raise ConfigError(f'{where} uses {method.source!r}, which must be a method with a config')
        if method.tuned_as is not None:
            check_tuned_as(method, by_name)
    return methods


def check_tuned_as(method: Method, by_name: Mapping[str, Method]) -> None:
    """Raise a ConfigError unless the method whose choice ``method`` takes is tuned itself."""
    where, name = f'methods[{method.name!r}].tuned_as', method.tuned_as
    if name not in by_name:
        hint = near_names(name, list(by_name)) or f' There are {", ".join(by_name)}'
        raise ConfigError(f'{where}: no method is named {name!r}.{hint}')
    other = by_name[name]
    if other.source or other.tuned_as not in (None, name):
        why = f'uses the runs of {other.source!r}' if other.source else f'takes the choice of {other.tuned_as!r}'
        raise ConfigError(f'{where}: {name!r} is not tuned itself, since it {why}')


def expand_sweep(name: str, entry: MethodSpec) -> list[Method]:
    """The methods that an entry stands for: one, or one for every combination of the values of its ``sweep``.

    Args:
        name: Name of the entry. ``{key}`` in it stands for a value, where key is the last part of a swept key; values
            that the name does not mention are appended.
        entry: The entry.

    Raises:
        ConfigError: A swept key or value is not allowed, or there are more than 1000 combinations.
    """
    where = f'methods[{name!r}]'
    for key in entry.sweep:
        if '.' not in key and key not in MethodFields.model_fields:
            known = list(MethodFields.model_fields)
            hint = near_names(key, known) or f' It can have keys of configs, with a dot, and {", ".join(known)}'
            raise ConfigError(f'{where}.sweep has no {key!r}.{hint}')
    if math.prod(map(len, entry.sweep.values())) > MOST:
        raise ConfigError(f'{where}.sweep has more than {MOST} combinations')
    methods = []
    for values in itertools.product(*entry.sweep.values()):
        swept = dict(zip(entry.sweep, values))
        fields = entry.model_dump(exclude={'sweep'}, exclude_unset=True)
        fields.update({key: value for key, value in swept.items() if '.' not in key})
        fields['cfg_options'] = {
            **fields.get('cfg_options', {}),
            **{key: value for key, value in swept.items() if '.' in key},
        }
        full = name_combination(name, {key.rpartition('.')[2]: value for key, value in swept.items()})
        methods.append(parse(Method, {'name': full, **fields}, prefix=('methods', name)))
    return methods


def name_combination(name: str, values: Mapping[str, object]) -> str:
    """Put the values of a sweep into a name: in place of ``{key}``, or else at its end."""
    for old, new in RENAMED_KEYS.items():
        if f'{{{old}}}' in name and new in values:
            raise ConfigError(f'methods[{name!r}]: {{{old}}} is now {{{new}}}')
    full = re.sub(r'\{(\w+)\}', lambda match: str(values.get(match[1], match[0])), name)
    return ' '.join([full, *(f'{key}={value}' for key, value in values.items() if f'{{{key}}}' not in name)])


def select_methods(methods: Sequence[Method], patterns: Sequence[str] | None) -> set[str]:
    """The names that match a pattern (``FT``, ``CFMask*``; None: all), and of the methods that these use.

    Raises:
        ConfigError: A pattern matches no method.
    """
    names = [method.name for method in methods]
    if patterns is None:
        return set(names)
    for pattern in patterns:
        if not any(fnmatch(name, pattern) for name in names):
            hint = near_names(pattern, names) or f' There are {", ".join(names)}'
            raise ConfigError(f'no method is named {pattern!r}.{hint}')
    chosen = {name for name in names if any(fnmatch(name, pattern) for pattern in patterns)}
    return chosen | {method.source for method in methods if method.name in chosen and method.source}
