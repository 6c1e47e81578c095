"""Read the tensors of a TorchScript archive (the format of OpenAI's releases) without running its code."""

from __future__ import annotations

import ast
import itertools
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import torch

from ...errors import ConfigError

DTYPES = {
    f'{name}Storage': dtype
    for name, dtype in dict(
        Double=torch.float64,
        Float=torch.float32,
        Half=torch.float16,
        BFloat16=torch.bfloat16,
        Long=torch.int64,
        Int=torch.int32,
        Short=torch.int16,
        Char=torch.int8,
        Byte=torch.uint8,
        Bool=torch.bool,
        ComplexFloat=torch.complex64,
        ComplexDouble=torch.complex128,
    ).items()
}
MOST_MODULES = 100_000


def is_torchscript(path: str | Path) -> bool:
    """Whether a file is a TorchScript archive, which holds code besides tensors."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith('/constants.pkl') for name in archive.namelist())


def read_torchscript(path: str | Path) -> dict[str, torch.Tensor]:
    """Parameters and buffers of the module in a TorchScript archive, by the names that
    ``torch.jit.load(path).state_dict()`` gives them.

    ``torch.jit.load`` compiles and may run the code of the archive. This function reads its pickle and allows nothing
    but tensors, numbers, strings and nested modules; the source text of the code says which attributes are parameters
    or buffers.

    Raises:
        ConfigError, KeyError, zipfile.BadZipFile, pickle.UnpicklingError: The file is not such an archive, is damaged,
            or holds anything else.
    """
    with zipfile.ZipFile(path) as archive:
        root = next(name for name in archive.namelist() if name.endswith('/constants.pkl')).rpartition('/')[0]
        with archive.open(f'{root}/data.pkl') as file:
            module = _Unpickler(file, archive, root).load()
        named: dict[str, set[str]] = {}
        for name in archive.namelist():
            if name.startswith(f'{root}/code/__torch__') and name.endswith('.py'):
                package = name[len(f'{root}/code/') : -len('.py')].replace('/', '.')
                named.update(_named_tensors(package, archive.read(name).decode()))
    if not isinstance(module, _Module):
        raise ConfigError('it holds no module')
    return dict(_state(module, named))


class _Module:
    """Stands for a module of the archive: the name of its class and its attributes, without code."""

    kind = ''

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, dict):
            raise pickle.UnpicklingError(f'{self.kind} does not hold attributes')
        self.attributes = state


class _Unpickler(pickle.Unpickler):
    """Creates tensors, lists and :class:`_Module` objects; anything else is an error."""

    def __init__(self, file: IO[bytes], archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(file)
        self.archive, self.root = archive, root
        self.storages: dict[str, torch.UntypedStorage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == '__torch__' or module.startswith('__torch__.'):
            return type('Module', (_Module,), dict(kind=f'{module}.{name}', attributes={}))
        if module == 'torch' and name in DTYPES:
            return DTYPES[name]
        known = {
            ('torch._utils', '_rebuild_tensor_v2'): _tensor,
            ('collections', 'OrderedDict'): dict,
            **{('torch.jit._pickle', f'build_{kind}list'): list for kind in ('int', 'double', 'bool', 'tensor')},
        }
        if (module, name) not in known:
            raise pickle.UnpicklingError(f'it asks for {module}.{name}, which does not belong to a module of tensors')
        return known[module, name]

    def persistent_load(self, about: Any) -> tuple[torch.dtype, torch.UntypedStorage]:
        _, dtype, key, _, number = about
        if key not in self.storages:
            data = bytearray(self.archive.read(f'{self.root}/data/{key}'))  # zipfile compares its checksum
            self.storages[key] = (
                torch.frombuffer(data, dtype=torch.uint8).untyped_storage() if data else torch.UntypedStorage(0)
            )
        return dtype, self.storages[key]


def _tensor(
    storage: tuple[torch.dtype, torch.UntypedStorage], offset: int, size: tuple, stride: tuple, *_: object
) -> torch.Tensor:
    dtype, data = storage
    return torch.empty(0, dtype=dtype).set_(data, offset, size, stride)


def _named_tensors(package: str, code: str) -> dict[str, set[str]]:
    """{class: names of its parameters and buffers} of a file of TorchScript, which looks like Python."""
    named = {}
    for node in ast.parse(code).body:
        if isinstance(node, ast.ClassDef):
            lists = {
                part.targets[0].id: part.value
                for part in node.body
                if isinstance(part, ast.Assign) and isinstance(part.targets[0], ast.Name)
            }
            named[f'{package}.{node.name}'] = {
                name
                for key in ('__parameters__', '__buffers__')
                if key in lists
                for name in ast.literal_eval(lists[key])
            }
    return named


def _state(
    module: _Module, named: dict[str, set[str]], prefix: str = '', places: Iterator[int] | None = None
) -> Iterator[tuple[str, torch.Tensor]]:
    """All parameters and buffers with their names. A module may appear in several places, but endless nesting is
    refused."""
    places = places or itertools.count()
    if next(places) > MOST_MODULES or prefix.count('.') > 100:
        raise ConfigError('its modules are nested endlessly')
    for name, value in module.attributes.items():
        if isinstance(value, _Module):
            yield from _state(value, named, f'{prefix}{name}.', places)
        elif isinstance(value, torch.Tensor) and name in named.get(module.kind, {name}):
            yield f'{prefix}{name}', value
