"""A YAML loader for configs and studies from other people."""

from __future__ import annotations

import yaml


class SafeYAMLLoader(getattr(yaml, 'CSafeLoader', yaml.SafeLoader)):
    """PyYAML's safe loader with limits: no tag runs code, and a small file cannot fill the memory.

    Raises:
        yaml.YAMLError: The file has more than 1 MB, more than 50 levels, or aliases that stand for more than 100,000
            values.
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
        """Return the document, unless its aliases multiply a few lines to millions of values."""
        node = super().get_single_node()
        sizes: dict[int, int | None] = {}  # None while it is counted

        def size(node) -> int:
            if id(node) in sizes:
                if sizes[id(node)] is None:
                    raise yaml.YAMLError('an alias refers to a value that contains it')
                return sizes[id(node)]
            sizes[id(node)] = None
            parts = node.value if isinstance(node, yaml.CollectionNode) else ()
            sizes[id(node)] = 1 + sum(sum(map(size, part)) if isinstance(part, tuple) else size(part) for part in parts)
            return sizes[id(node)]

        if node is not None and size(node) > 100_000:
            raise yaml.YAMLError('its aliases stand for more than 100,000 values')
        return node
