"""Values of ``--cfg-options key=value``.

A value is Python as in a config: a number, True, None, a list, a tuple, a dict (also as ``dict(key=value)``), or a
string in quotes. Anything else is a string as written, with its spaces and commas. Habits of OpenMMLab users that can
mean only one thing work too: true and false, lists of bare words in brackets, ``[fog,snow]``, and lists of numbers
without, ``0.9,0.999``.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Sequence
from typing import Any

from ..errors import ConfigError

WORDS = dict(true=True, false=False, inf=float('inf'), nan=float('nan'))
OPEN, CLOSE = '([{', ')]}'


def parse_options(options: Sequence[str]) -> dict[str, Any]:
    """Parse ``key=value`` texts.

    Args:
        options (Sequence[str]): The texts; the last one of a key counts.

    Returns:
        dict[str, Any]: Dotted keys to values.

    Raises:
        ConfigError: A text has no ``=``, a key has an empty part, or a value looks like Python but is not.
    """
    parsed = {}
    for text in options:
        key, equals, value = text.partition('=')
        if not equals or not all(key.split('.')):
            raise ConfigError(
                f'--cfg-options: {text!r} is not key=value, such as model.head.distill_weight=10; quote it if it has '
                'spaces'
            )
        parsed[key] = parse_value(value, key)
    return parsed


def parse_value(text: str, key: str = 'value') -> Any:
    """Parse the value of an option.

    Args:
        text (str): The value as written.
        key (str): Its key, for errors.

    Returns:
        Any: A Python value, or the text itself.

    Raises:
        ConfigError: The text looks like Python, but is not.
    """
    bare = text.strip()
    try:
        value = _literal(bare)
        return list(value) if isinstance(value, tuple) and bare[0] != '(' else value
    except ValueError:
        pass
    if bare[:1] == '[' and bare[-1:] == ']':
        return [parse_value(item, key) for item in _split(bare[1:-1], key)]
    if bare[:1] == '(' and bare[-1:] == ')' and len(items := _split(bare[1:-1], key)) > 1:
        return tuple(parse_value(item, key) for item in items)
    if bare.startswith(('dict(', '{')) and bare[-1:] in (')', '}') and (':' in bare or '=' in bare):
        raise ConfigError(
            f'{key}={text}: this looks like a dict but is not Python: put the strings in it in quotes, as in '
            f'{key}="dict(type=\'L2SP\', weight=1.0)", or the whole value to make it a string'
        )
    return text


def _literal(text: str) -> Any:
    """A Python value; ValueError for anything else."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # for a text such as 1if
            tree = ast.parse(text, mode='eval').body
            value = _value(tree)
            numbers = [
                ast.get_source_segment(text, node)
                for node in ast.walk(tree)
                if isinstance(node, ast.Constant) and type(node.value) in (int, float)
            ]
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(text) from error
    # 2024_01 and 00 are names
    if any('_' in number or re.match(r'0\d', number) and number.isdecimal() for number in numbers):
        raise ValueError(text)
    return value


def _value(node: ast.expr) -> Any:
    """The value of an expression; ValueError for one that would have to run."""
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float, str, bool, type(None))):
        return node.value
    if isinstance(node, ast.Name) and node.id in WORDS:
        return WORDS[node.id]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        value = _value(node.operand)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, (ast.List, ast.Tuple)):
        values = [_value(item) for item in node.elts]
        return values if isinstance(node, ast.List) else tuple(values)
    if isinstance(node, ast.Dict) and all(node.keys):
        return dict(zip(map(_value, node.keys), map(_value, node.values)))
    is_dict = isinstance(node, ast.Call) and getattr(node.func, 'id', None) == 'dict'
    if is_dict and not node.args and all(item.arg for item in node.keywords):
        return {item.arg: _value(item.value) for item in node.keywords}
    raise ValueError('not a value')


def _split(text: str, key: str) -> list[str]:
    """Split a list of bare words at the commas outside of brackets and quotes."""
    items, depth, quote, start = [], 0, None, 0
    for index, char in enumerate(text):
        if quote:
            quote = None if char == quote else quote
        elif char in '\'"' and not text[start:index].strip():  # not an apostrophe in a word
            quote = char
        elif char in OPEN + CLOSE:
            depth += 1 if char in OPEN else -1
            if depth < 0:
                break
        elif char == ',' and depth == 0:
            items.append(text[start:index])
            start = index + 1
    if depth or quote:
        raise ConfigError(f'{key}=[{text}]: a bracket or a quote is not closed, or closed before it is opened')
    if text[start:].strip():
        items.append(text[start:])
    items = [item.strip() for item in items]
    if '' in items:
        raise ConfigError(f"{key}=[{text}]: there is nothing between two commas; an empty string is ''")
    return items
