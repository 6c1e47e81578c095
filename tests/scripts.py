"""The command-line tools as modules, for tests in this process."""

import functools
import importlib.util
from pathlib import Path
from types import ModuleType

TOOLS = Path(__file__).parents[1] / 'tools'


@functools.cache  # a tool may register classes, which works once
def load_tool(name: str) -> ModuleType:
    """The module of tools/<name>.py; sys.modules does not know it."""
    spec = importlib.util.spec_from_file_location(f'tool_{name}', TOOLS / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
