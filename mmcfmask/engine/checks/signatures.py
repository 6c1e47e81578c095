"""A value is judged by a type hint."""

from __future__ import annotations

import collections.abc
import inspect
import types
import typing
from collections.abc import Callable
from functools import cache
from typing import Annotated, Any, Union

from pydantic import ConfigDict, Strict, TypeAdapter, ValidationError

from ...errors import ConfigError
from .tables import CORRECTED, FORWARDED, RANGES


def _range_of(function: Callable, key: str) -> Any:
    """What :data:`RANGES` says of an argument, of the nearest class."""
    return next(
        (RANGES[base][key] for base in getattr(function, '__mro__', (function,)) if key in RANGES.get(base, ())), Any
    )


@cache
def _signature(function: Callable) -> tuple[dict[str, tuple[Any, Any]], list[str], bool]:
    """({argument: (hint, default)}, those that must be given, whether it takes any other) of a class or a function."""
    chain = [function]
    if isinstance(function, type):  # what **kwargs pass on is for the next class
        chain = [base.__init__ for base in function.__mro__ if base is not object and '__init__' in vars(base)]
        chain += [taker for base, taker in FORWARDED.items() if issubclass(function, base)]
    known: dict[str, tuple[Any, Any]] = {}
    required, takes_others = [], False
    for init in chain:
        try:
            parameters = [
                parameter for parameter in inspect.signature(init).parameters.values() if parameter.name != 'self'
            ]
        except (TypeError, ValueError):  # written in C
            return known, required, True
        hints = _hints_of(init)
        if not init.__module__.startswith('mmcfmask.'):  # others write int where they take 4.0 too
            hints = {name: float if hint is int else hint for name, hint in hints.items()}
        named = [
            parameter
            for parameter in parameters
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        ]
        if init is chain[0]:
            required = [parameter.name for parameter in named if parameter.default is parameter.empty]
        for parameter in named:
            hint = CORRECTED.get(parameter.name, hints.get(parameter.name, Any))
            known.setdefault(parameter.name, (hint, parameter.default))
        takes_others = any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters)
        if not takes_others:
            break
    return known, required, takes_others


def _hints_of(function: Callable) -> dict[str, Any]:
    """Those type hints of a function that can be evaluated."""
    function = inspect.unwrap(function)
    found = {}
    for name, hint in getattr(function, '__annotations__', {}).items():
        # as typing.get_type_hints, which gives up at the first that fails: a name that is imported for type checkers
        # only
        try:
            found[name] = eval(hint, getattr(function, '__globals__', {})) if isinstance(hint, str) else hint
        except Exception:
            continue
    return found


def _check_value(where: str, value: Any, hint: Any, more: str = '') -> None:
    """Raise a ConfigError unless a value is of a type; ``more`` is what else is possible."""
    adapter = None if hint is Any else _adapter(hint)
    if adapter is None:
        return
    try:
        adapter.validate_python(value)
    except ValidationError as error:
        errors = error.errors(include_url=False)
        if any(problem['type'] in ('is_instance_of', 'is_subclass_of', 'callable_type') for problem in errors):
            return  # what it names may be one
        raise ConfigError(
            f'{where}={_short(value)}: it must be {" or ".join(dict.fromkeys(map(_wanted, errors)))}{more}'
        ) from None


@cache
def _adapter(hint: Any) -> TypeAdapter | None:
    """What judges values of a type; None where pydantic has no such thing."""
    try:
        return TypeAdapter(_strict(hint), config=ConfigDict(arbitrary_types_allowed=True))
    except Exception:  # pydantic raises several kinds, and what a hint of somebody else's raises
        return None


# What serves for an abstract type in a config.
ABSTRACT = {collections.abc.Sequence: list, collections.abc.Iterable: list, collections.abc.Mapping: dict}


def _strict(hint: Any) -> Any:
    """A type whose numbers and texts are taken as they are, where pydantic would take '1' for 1; a list still serves
    for a tuple."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint in (int, float, str, bool):
        return Annotated[hint, Strict()]
    if origin is Annotated:
        return Annotated[(_strict(args[0]), *args[1:])]
    if origin in (Union, getattr(types, 'UnionType', Union)):
        return Union[tuple(map(_strict, args))]
    if origin is tuple and len(args) == 1:  # OpenMMLab's way to write a tuple of any length
        args = (*args, ...)
    abstract = ABSTRACT.get(origin or hint)
    if abstract is not None:
        return abstract[tuple(map(_strict, args))] if args else abstract
    if origin in (list, tuple, dict, set):
        return origin[tuple(arg if arg is ... else _strict(arg) for arg in args)]
    return hint


WANTED = dict(
    int_type='a whole number',
    int_from_float='a whole number',
    float_type='a number',
    bool_type='True or False',
    string_type='a text',
    string_too_short='a text that is not empty',
    dict_type='a dict',
    mapping_type='a dict',
    list_type='a list',
    tuple_type='a list',
    sequence_str='a list',
    iterable_type='a list',
    none_required='None',
)


def _wanted(problem: dict) -> str:
    """What pydantic says of a value, in a few words."""
    if problem['type'] in ('too_long', 'too_short'):
        most = problem['ctx'].get('max_length')
        return (
            f'a list of at most {most}'
            if problem['type'] == 'too_long'
            else f'a list of at least {problem["ctx"]["min_length"]}'
        )
    text = WANTED.get(problem['type']) or problem['msg'].removeprefix('Input should be ')
    items = [place for place in problem['loc'] if isinstance(place, int)]
    return f'{text} (at [{items[0]}])' if items else text


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else text[:99] + '…'
