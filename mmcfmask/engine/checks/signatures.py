"""Check values and arguments by type hints."""

from __future__ import annotations

import collections.abc
import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Annotated, Any, Union

from pydantic import ConfigDict, Strict, TypeAdapter, ValidationError

from ...errors import ConfigError
from ...messages import near_names
from ...renamed import refuse_old_names
from .tables import CORRECTED, FORWARDED, RANGES


def find_range(function: Callable, key: str) -> Any:
    """Return the type in :data:`RANGES` for an argument, of the nearest class in the MRO; Any without one."""
    return next(
        (RANGES[base][key] for base in getattr(function, '__mro__', (function,)) if key in RANGES.get(base, ())), Any
    )


@cache
def read_signature(function: Callable) -> tuple[dict[str, tuple[Any, Any]], list[str], bool]:
    """Read the signature of a class or a function.

    Returns:
        tuple: ``{argument: (hint, default)}``, the names of required arguments, and whether it takes any others.
    """
    chain = [function]
    if isinstance(function, type):  # **kwargs go to the next class
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
        hints = _read_hints(init)
        if not init.__module__.startswith('mmcfmask.'):  # other packages write int and also take 4.0
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


def _read_hints(function: Callable) -> dict[str, Any]:
    """Return the type hints of a function that can be evaluated."""
    function = inspect.unwrap(function)
    found = {}
    for name, hint in getattr(function, '__annotations__', {}).items():
        # Unlike typing.get_type_hints, do not fail for names that are only imported for type checkers.
        try:
            found[name] = eval(hint, getattr(function, '__globals__', {})) if isinstance(hint, str) else hint
        except Exception:
            continue
    return found


def check_arguments(
    where: str,
    arguments: Mapping[str, Any],
    function: Callable,
    given: Iterable[str] = (),
    unknown: bool = True,
    missing: bool = True,
    name: str | None = None,
) -> None:
    """Check arguments by the signature of a class or a function, and by :data:`RANGES`.

    Args:
        where (str): The dotted key of the arguments.
        arguments (Mapping): Name to value.
        function (Callable): The class or function.
        given (Iterable[str]): Arguments that come from elsewhere.
        unknown (bool): An unknown argument is an error.
        missing (bool): A missing argument is an error.
        name (str, optional): Of the class or function in errors. None: its own.

    Raises:
        ConfigError: An unknown argument, with near names; a value of another type or outside its range; a missing
            argument.
    """
    refuse_old_names(where, function, arguments)
    known, required, takes_others = read_signature(function)
    name = getattr(function, '__name__', str(function)) if name is None else name
    for key, value in arguments.items():
        if unknown and key not in known and not takes_others:
            taken = sorted(set(known) - {'params', 'optimizer', *given})
            hint = near_names(str(key), taken) or f' It takes {", ".join(taken) or "nothing"}'
            raise ConfigError(
                f'{where}: {name} has no {key!r}.{hint} (to replace an inherited dict, put _delete_=True in it)'
            )
        hint, default = known.get(key, (Any, inspect.Parameter.empty))
        if not (value is None and default is None):
            for judged in (hint, find_range(function, key)):
                check_value(f'{where}.{key}'.lstrip('.'), value, judged, ' or None' if default is None else '')
    lacking = [key for key in required if key not in arguments and key not in given] if missing else []
    if lacking:
        raise ConfigError(f'{where}: {name} needs {" and ".join(lacking)}')


def check_own_type(where: str, part: Mapping[str, Any], kinds: Mapping[str, Callable]) -> None:
    """Check a part whose type is a word for a function of one positional argument and the settings."""
    kind = part.get('type')
    if kind not in kinds:
        raise ConfigError(f'{where}.type={shorten(kind)}: choose from {", ".join(map(repr, kinds))}')
    first, *known = inspect.signature(kinds[kind]).parameters
    arguments = {key: value for key, value in part.items() if key != 'type'}
    others = {key for function in kinds.values() for key in inspect.signature(function).parameters}
    left = [key for key in arguments if key in others and key not in known]
    if left:  # an override of the type merges with the arguments of the inherited type
        given = ''.join(f', {key}={value!r}' for key, value in arguments.items() if key in known)
        raise ConfigError(
            f'{where}: type={kind!r} has no {" and no ".join(map(repr, left))}, left over from another type. It takes '
            f'{", ".join(known)}. To replace the inherited dict: "{where}=dict(_delete_=True, type={kind!r}{given})"'
        )
    check_arguments(where, arguments, kinds[kind], given=(first,), name=f'type={kind!r}')


def check_value(where: str, value: Any, hint: Any, more: str = '') -> None:
    """Raise a ConfigError for a value of another type than ``hint``; ``more`` completes the list of possible values."""
    adapter = None if hint is Any else _adapter(hint)
    if adapter is None:
        return
    try:
        adapter.validate_python(value)
    except ValidationError as error:
        errors = error.errors(include_url=False)
        if any(problem['type'] in ('is_instance_of', 'is_subclass_of', 'callable_type') for problem in errors):
            return  # the name or the dict may become one
        raise ConfigError(
            f'{where}={shorten(value)}: it must be {" or ".join(dict.fromkeys(map(_wanted, errors)))}{more}'
        ) from None


@cache
def _adapter(hint: Any) -> TypeAdapter | None:
    """Return pydantic's validator of a type, or None if it has none."""
    try:
        return TypeAdapter(_strict(hint), config=ConfigDict(arbitrary_types_allowed=True))
    except Exception:  # several kinds of pydantic, and any kind from a foreign type hint
        return None


# Types that a config uses for abstract types.
ABSTRACT = {collections.abc.Sequence: list, collections.abc.Iterable: list, collections.abc.Mapping: dict}


def _strict(hint: Any) -> Any:
    """Make a type strict, so that '1' is no number; a list may still stand for a tuple."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint in (int, float, str, bool):
        return Annotated[hint, Strict()]
    if origin is Annotated:
        return Annotated[(_strict(args[0]), *args[1:])]
    if origin in (Union, getattr(types, 'UnionType', Union)):
        return Union[tuple(map(_strict, args))]
    if origin is tuple and len(args) == 1:  # OpenMMLab writes Tuple[int] for a tuple of any length
        args = (*args, ...)
    abstract = ABSTRACT.get(origin or hint)
    if abstract is not None:
        return abstract[tuple(map(_strict, args))] if args else abstract
    if origin in (list, tuple, dict, set):
        return origin[tuple(arg if arg is ... else _strict(arg) for arg in args)]
    return hint


# pydantic's kinds of errors, in words.
WANTED = dict(
    int_type='a whole number',
    int_from_float='a whole number',
    float_type='a number',
    bool_type='True or False',
    string_type='a string',
    string_too_short='a non-empty string',
    dict_type='a dict',
    mapping_type='a dict',
    list_type='a list',
    tuple_type='a list',
    sequence_str='a list',
    iterable_type='a list',
    none_required='None',
)


def _wanted(problem: dict) -> str:
    """Say in a few words what a value must be, from pydantic's error."""
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


def shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else text[:99] + '…'
