"""YAML from people who are not trusted: configs and studies."""

from __future__ import annotations

import yaml


class SafeYAMLLoader(getattr(yaml, 'CSafeLoader', yaml.SafeLoader)):
    """PyYAML's safe loader for files of settings: no tag runs code, and a small file cannot fill the memory.

    Raises:
        yaml.YAMLError: More than 1 MB, deeper than 50 levels, or more than 100,000 values once its aliases are written
        out.
    """

    def __init__(self, stream) -> None:
        text = stream if isinstance(stream, (str, bytes)) else stream.read()
        if len(text) > 2**20:
            raise yaml.YAMLError('it is larger than 1 MB')
        depth = 0
        for event in yaml.parse(text, Loader=getattr(yaml, 'CSafeLoader', yaml.SafeLoader)):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > 50:
                raise yaml.YAMLError('it is nested more than 50 levels deep')
        super().__init__(text)

    def get_single_node(self):
        """The whole document, unless it is one of a few lines that stand for millions."""
        node = super().get_single_node()
        sizes: dict[int, int | None] = {}  # None: it is being counted

        def size(node) -> int:
            if id(node) in sizes:
                if sizes[id(node)] is None:
                    raise yaml.YAMLError('an alias in it stands for what it is in')
                return sizes[id(node)]
            sizes[id(node)] = None
            parts = node.value if isinstance(node, yaml.CollectionNode) else ()
            sizes[id(node)] = 1 + sum(sum(map(size, part)) if isinstance(part, tuple) else size(part) for part in parts)
            return sizes[id(node)]

        if node is not None and size(node) > 100_000:
            raise yaml.YAMLError('its aliases stand for more than 100,000 values')
        return node
