"""The errors of pydantic as one line of plain English."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from ..messages import near_names

MAPPINGS = ('methods', 'datasets', 'cfg_options', 'sweep', 'grid')  # keys whose value maps names that the user chose
# Type of an error of pydantic to what the value must be.
EXPECTED = {
    'bool_type': 'true or false',
    'dict_type': 'a mapping of names to values',
    'finite_number': 'a finite number',
    'float_type': 'a number',
    'int_type': 'an integer',
    'list_type': 'a list, such as [a, b]',
    'model_type': 'a mapping of names to values',
    'string_type': 'a string',
}
BOUNDS = {
    'greater_than_equal': 'at least {ge:g}',
    'less_than_equal': 'at most {le:g}',
    'less_than': 'less than {lt:d}',
}
EMPTY = ('too_short', 'string_too_short')


def describe_error(error: ValidationError, model: type[BaseModel], prefix: Sequence[str] = ()) -> str:
    """Describe the first problem in one line: key, value and what is allowed.

    Args:
        error: What pydantic found.
        model: The model that was validated.
        prefix: Keys that lead to what was validated, such as ``('methods', 'FT')``.
    """
    problems = error.errors(include_url=False)
    # A misspelt key makes another one missing: it is the one to name.
    problem = min(problems, key=lambda problem: problem['type'] != 'extra_forbidden')
    kind, value, context = problem['type'], problem['input'], problem.get('ctx') or {}
    path = [*prefix, *problem['loc']]
    if path[-1] == '[key]' or kind == 'invalid_key':
        *path, name = [part for part in path if part != '[key]']
        text = 'a name is empty' if kind in EMPTY else f'the name {name!r} must be a string: put it in quotes'
        return f'{format_path(path)}: {text}'.removeprefix(': ')
    if kind == 'extra_forbidden':
        where, known = format_path(path[:-1]), list(allowed_keys(model, problem['loc'][:-1]))
        hint = near_names(str(path[-1]), known) or f' It can have {", ".join(known)}'
        return f'{where} has no {path[-1]!r}.{hint}' if where else f'there is no key {path[-1]!r}.{hint}'
    where = format_path(path)
    if kind == 'missing':
        return f'{where} is missing'
    if kind == 'value_error':  # raised by a validator of ours
        text = str(context['error'])
        return text if not where or text.startswith(where) else f'{where}: {text}'
    if kind == 'combination':  # about an entry as a whole
        return f'{where}: {problem["msg"]}'
    if kind in EMPTY:
        return f'{where} is empty: it needs at least one {"value" if kind == "too_short" else "character"}'
    if kind in BOUNDS:
        expected = f'must be {BOUNDS[kind].format(**context)}'
    elif kind == 'literal_error':
        expected = f'must be {context["expected"]}'
    else:
        expected = f'must be {EXPECTED[kind]}' if kind in EXPECTED else problem['msg']
    return f'{where} {expected}, but is {reprlib.repr(value)}'


def format_path(path: Sequence[str | int]) -> str:
    """Write the keys that lead to a value, such as ``methods['FT'].seeds[1]``."""
    text, named = '', False
    for part in path:
        if isinstance(part, int) or named:
            text, named = f'{text}[{part!r}]', False
        else:
            text, named = f'{text}.{part}'.lstrip('.'), part in MAPPINGS
    return text


def allowed_keys(model: type[BaseModel], path: Sequence[str | int]) -> list[str]:
    """The keys that a mapping of a model can have, found by the keys that lead to it."""
    for part in path:
        if part in model.model_fields:
            model = find_model(model.model_fields[part].annotation) or model
    return list(model.model_fields)


def find_model(annotation: Any) -> type[BaseModel] | None:
    """The model inside of a type such as ``dict[str, Annotated[Model, …]]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := find_model(part))), None)
