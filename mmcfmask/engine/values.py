"""Read values of a config: by dotted key, by class, from its text."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Any

from mmengine.config import Config
from mmengine.registry import Registry


def parse_config_text(text: str, free: Sequence[str]) -> dict[str, Any]:
    """Read the text of a config, which a checkpoint keeps, without executing it.

    Args:
        text (str): ``Config.pretty_text``.
        free (Sequence[str]): Keys to leave out, at any depth.

    Returns:
        dict[str, Any]: Top-level names to values. What is not a plain value is the text of it.
    """

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


def get_value(values: dict | Config, key: str) -> Any:
    """Look up a dotted key; None if a part of it is missing."""
    for part in key.split('.'):
        values = values.get(part) if isinstance(values, (dict, Config)) else None
    return values


def is_a(base: type | tuple[type, ...], kind: str | type | None, registry: Registry) -> bool:
    """Whether the ``type`` of a config, a registered name or a class, is a subclass of ``base`` (or of one of them)."""
    found = registry.get(kind) if isinstance(kind, str) else kind
    return isinstance(found, type) and issubclass(found, base)
