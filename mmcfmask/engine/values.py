"""Values of a config, by dotted key."""

from __future__ import annotations

import ast
from collections.abc import Sequence

from mmengine.config import Config
from mmengine.registry import Registry


def config_values(text: str, free: Sequence[str]) -> dict:
    """The values in the text of a config, as a checkpoint keeps it, without keys of the names in ``free``. Nothing is
    executed."""

    def value(node: ast.expr):
        if isinstance(node, ast.Call):  # dict(key=value)
            return {keyword.arg: value(keyword.value) for keyword in node.keywords if keyword.arg not in free}
        if isinstance(node, (ast.List, ast.Tuple)):
            return [value(item) for item in node.elts]
        try:
            return ast.unparse(node) if isinstance(node, ast.Dict) else ast.literal_eval(node)
        except ValueError:  # inf and nan are names
            return ast.unparse(node)

    return {line.targets[0].id: value(line.value) for line in ast.parse(text).body if isinstance(line, ast.Assign)}


def value_of(values: dict, key: str):
    """What a dotted key names, None where there is no such thing."""
    for part in key.split('.'):
        values = values.get(part) if isinstance(values, (dict, Config)) else None
    return values


def is_a(base: type | tuple[type, ...], kind: str | type | None, registry: Registry) -> bool:
    """Whether the ``type`` of a config, a registered name or a class, is ``base``, or one of them, or derives from it."""
    found = registry.get(kind) if isinstance(kind, str) else kind
    return isinstance(found, type) and issubclass(found, base)
