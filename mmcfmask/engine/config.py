"""Configs: read from a file and overridden by ``--cfg-options``. What ``Config.fromfile`` gives is what runs."""

from __future__ import annotations

import ast
import copy
import difflib
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from mmengine.config import Config
from mmengine.utils import import_modules_from_strings

from ..compat import drop_deletes
from ..errors import ConfigError, MissingFileError, StorageError, UserError, first_line
from ..messages import near_names
from .checks import check_config
from .checks.schema import check_top_level
from .hub import published_config
from .one_set import keep_one_set
from .options import parse_options
from .shared import READ_KEYS, find_copies, find_shared, is_same, log_once, update_shared
from .values import get_value

SUFFIXES = ('.py', '.yaml', '.yml', '.json')  # of files of settings


def load_config(
    path: str,
    options: Mapping[str, Any] | Sequence[str] = (),
    complete: bool = False,
    read: Callable[[str], Config] | None = None,
) -> Config:
    """Read a config file and apply ``--cfg-options``.

    Args:
        path (str): The config file.
        options: ``key=value`` texts as the command line gives them, or a mapping of dotted keys to values. An override
            of a shared variable also sets its copies (:mod:`.shared`). Without options the config is what
            ``Config.fromfile`` gives.
        complete (bool): A run follows, so whatever is missing for it is an error too.
        read (Callable, optional): Reads the file, such as a :class:`ConfigReader`. Defaults to :func:`read_config`.

    Raises:
        MissingFileError: The file does not exist.
        ConfigError: The file is not a config; nothing reads an option; a part of the config does not take a value.
            The message lists near names.
    """
    cfg = (read or read_config)(path)
    _check_shared(cfg, path)
    options = parse_options(options) if not isinstance(options, Mapping) else options
    if options:
        before = cfg
        cfg = _merge_options(before, options)
        if 'shared' in options:
            _check_shared(cfg, '--cfg-options')
        reached = update_shared(cfg, find_shared(before, cfg), by='--cfg-options')
        _check_variables(cfg, before, options, reached, path)
        _check_training_images(cfg, before, options)
        keep_one_set(cfg)
    check_config(cfg, complete)
    return cfg


def _merge_options(before: Config, options: Mapping[str, Any]) -> Config:
    """A copy of a config with options in it; imports what an option adds to ``custom_imports``."""
    cfg = copy.deepcopy(before)
    try:
        cfg.merge_from_dict(options)
        check_top_level(cfg)
        if cfg.get('custom_imports') and any(key.partition('.')[0] == 'custom_imports' for key in options):
            import_modules_from_strings(**cfg.custom_imports)
    except UserError:
        raise
    except (ImportError, AttributeError, KeyError, TypeError, ValueError) as error:  # such as an index into no list
        _raise_from_module(error, '--cfg-options')
        raise ConfigError(f'--cfg-options {" ".join(options)}: {first_line(error)}') from None
    return cfg


def _check_shared(cfg: Config, path: str) -> None:
    """Raise a ConfigError unless ``shared`` names variables of the config."""
    names = cfg.get('shared', ())
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{path}: shared={names!r} must be a tuple of names of variables, such as ('data_root',)")
    for name in names:
        if '.' in name and not isinstance(get_value(cfg, name), (dict, type(None))):
            raise ConfigError(f'{path}: shared names {name!r}, but a dotted key can be shared only if it holds a dict')
        if name in READ_KEYS:
            raise ConfigError(
                f'{path}: shared names {name!r}, which is no variable but a part of the run: share a dict in it, such '
                "as 'train_dataloader.dataset'"
            )
        if '.' not in name and name not in cfg:
            known = [key for key in cfg if key not in READ_KEYS]
            raise ConfigError(f'{path}: shared names {name!r}, which is no variable of it.{near_names(name, known)}')


def _check_variables(
    cfg: Config, before: Config, options: Mapping[str, Any], reached: Mapping[str, list[str]], path: str
) -> None:
    """Raise a ConfigError for an option that changes nothing that runs."""
    for name in dict.fromkeys(key.partition('.')[0] for key in options):
        if name in READ_KEYS:
            continue
        if name not in before:
            inner = (f'{key}.{name}' for key, value in before.items() if isinstance(value, dict) and name in value)
            known = sorted({*READ_KEYS, *before, *inner})
            raise ConfigError(f'{path} has no {name!r}, and nothing would read it.{near_names(name, known)}')
        if not is_same(cfg[name], before[name]) and not reached.get(name):
            parts = {key: value for key, value in before.items() if key in READ_KEYS}
            if name in reached and isinstance(before[name], dict):  # an option of a study is for all of its methods
                log_once(f'{name} is shared, but nothing in {path} uses it: its override has no effect here')
                continue
            keys = ', '.join(find_copies(parts, name, before[name]))
            why = 'no key of this name holds its old value' if name in reached else 'the config does not share it'
            raise ConfigError(
                f'{path}: an override of the variable {name!r} would change nothing, since {why}. Set '
                f'{keys or "the keys that were made from it"} instead'
            )


def _check_training_images(cfg: Config, before: Config, options: Mapping[str, Any]) -> None:
    """Raise a ConfigError if options change the training images but not the images of a linear probe or k-NN gate.

    A config copies the training set into them, as ``dataset={{_base_.train_dataloader.dataset}}``. Setting their own
    key gives them other images on purpose.
    """
    is_probe = get_value(cfg, 'model.head.class_weights.type') == 'linear_probe'
    parts = ['model.head.class_weights'] if is_probe else []
    for part in [*parts, 'model.knn_gate']:
        for images, loader in dict(dataset='train_dataloader', held_out='val_dataloader').items():
            place, source = f'{part}.{images}', f'{loader}.dataset'
            old = get_value(before, place)
            if not old or old != get_value(before, source) or get_value(cfg, source) in (None, get_value(cfg, place)):
                continue
            if any(f'{key}.'.startswith(f'{place}.') or place.startswith(f'{key}.') for key in options):
                continue
            more = ' '.join(key.replace(source, place, 1) for key in options if f'{key}.'.startswith(f'{source}.'))
            raise ConfigError(
                f'{place} held the images of {source}, which --cfg-options changes: set {more or place} as well, or '
                f'let the config share them: shared=(…, {source!r})'
            )


def read_config(path: str) -> Config:
    """Read a config file with ``Config.fromfile``, and explain what is wrong with it.

    Modules in ``custom_imports`` are also found in the current folder, as with ``python -m``.

    Args:
        path (str): The config file, or another name of it (:func:`find_file`).

    Raises:
        MissingFileError: The file, or one that it inherits from, does not exist.
        ConfigError: The file is not a config or fails; the message names the file and the line.
        Exception: A module of the user, which the config imports, fails.
    """
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    path = find_file(path)
    place = [path]
    try:
        _check_files(path, place, [])
        cfg = Config.fromfile(path)
        drop_deletes(cfg)  # imports the types of a config in the new style
        return cfg
    except UserError:
        raise
    except Exception as error:  # a config may fail in any way
        _raise_from_module(error, place[-1])
        raise ConfigError(_explain(error, place[-1])) from error


def find_file(path: str, kind: str = 'configs') -> str:
    """Find a file that is named in another way than by its path: ``'mmcfmask::shapes/ft.py'`` is ``shapes/ft.py`` of
    the configs that come with mmcfmask, as in ``_base_``; a published folder or ``hf://user/name`` is the config in it
    (:mod:`.hub`). Any other path stays as it is.

    Args:
        path (str): A path, ``package::name``, or for configs a published model.
        kind (str): 'configs' or 'studies'.

    Raises:
        MissingFileError: There is no such package.
    """
    package, separator, name = path.partition('::')
    if not separator:
        return published_config(path) if kind == 'configs' else path
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise MissingFileError(f'{path!r} names a file of the package {package!r}, which is not installed')
    return os.path.join(spec.submodule_search_locations[0], '.mim', kind, name)


class ConfigReader:
    """:func:`read_config`, which reads each file once, for work with many variants of few configs."""

    def __init__(self) -> None:
        self._configs: dict[str, Config] = {}

    def __call__(self, path: str) -> Config:
        """A copy of the config of a file."""
        if path not in self._configs:
            self._configs[path] = read_config(path)
        return copy.deepcopy(self._configs[path])


def _raise_from_module(error: Exception, path: str) -> None:
    """Raise what failed inside a module that a config imports, with its traceback, or a ConfigError for an item of
    ``custom_imports`` that does not exist; do nothing for an error of the config itself."""
    is_custom = False
    while True:
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
        names = {frame.f_code.co_name for frame in frames}
        inside = any(frame.f_code.co_name == '<module>' and frame.f_globals.get('__spec__') for frame in frames)
        is_syntax = isinstance(error, SyntaxError) and os.path.isfile(error.filename or '')
        if inside or is_syntax and 'import_module' in names:
            raise error from error.__cause__
        is_custom |= 'import_modules_from_strings' in names
        cause = error.__cause__ or error.__context__
        if cause is None or not str(error).startswith('Failed to import'):
            break
        error = cause  # mmengine says only that the import failed
    if isinstance(error, ModuleNotFoundError) and is_custom:
        raise ConfigError(
            f'{path}: custom_imports needs the module {error.name!r}, which does not exist in the current folder or '
            'on PYTHONPATH'
        ) from None


def _check_files(path: str, place: list[str], children: list[str]) -> None:
    """Raise a UserError if a config or one of its bases is not a readable file, or inherits from itself. The last item
    of ``place`` is the file that is being checked."""
    place.append(path)
    check_text_file(path, 'config', f' (the _base_ of {children[-1]})' if children else '')
    if os.path.realpath(path) in map(os.path.realpath, children):
        raise ConfigError(f'{path} inherits from itself, by _base_: {" -> ".join([*children, path])}')
    bases = _find_bases(path)
    for base in bases:
        _check_files(base, place, [*children, path])
    place.append(path)
    for base in bases if len(bases) > 1 else ():
        inherited = {os.path.realpath(file) for file in _find_all_bases(base)}
        for other in bases:
            if os.path.realpath(other) in inherited:
                names = dict(zip(bases, Config._get_base_files(path)))
                raise ConfigError(
                    f'{path} inherits from {names[base]!r} and from {names[other]!r}, which {names[base]!r} itself '
                    f'inherits from: set _base_ = {[name for file, name in names.items() if file != other]}'
                )


def _find_all_bases(path: str) -> Iterator[str]:
    """Yield the files that a config file inherits from, and the files that these inherit from."""
    for base in _find_bases(path):
        yield base
        yield from _find_all_bases(base)


def _find_bases(path: str) -> list[str]:
    """Find the files that a config file inherits from."""
    found = []
    for base in Config._get_base_files(path):
        try:
            found.append(Config._get_cfg_path(base, path)[0])
        except UserError:
            raise
        except (ValueError, ImportError, FileNotFoundError, TypeError) as error:  # no such package, no config, no text
            reason = first_line(error)
            raise ConfigError(f'{path} inherits from {base!r}, which cannot be found: {reason}') from None
    return found


def _near_files(path: str) -> str:
    """``' Did you mean …?'`` with files of settings in the folder of ``path`` that have a similar name."""
    folder = Path(path).parent
    stems = {str(file.with_suffix('')): str(file) for file in folder.glob('*') if file.suffix in SUFFIXES}
    near = difflib.get_close_matches(str(Path(path).with_suffix('')), list(stems), n=2, cutoff=0.8)
    return f' Did you mean {" or ".join(stems[stem] for stem in near)}?' if near else ''


def check_text_file(path: str, what: str, more: str = '') -> None:
    """Raise a UserError unless a file of settings is readable text.

    Args:
        path (str): A .py, .yaml, .yml or .json file.
        what (str): What it is, for errors, such as 'config'.
        more (str): More about it, for errors.
    """
    if not os.path.exists(path):
        raise MissingFileError(f'there is no {what} {path!r}{more}.{_near_files(path)}'.removesuffix('.'))
    if not os.path.isfile(path):
        raise ConfigError(f'the {what} {path!r}{more} is a folder or a device, not a file')
    if Path(path).suffix not in SUFFIXES:
        raise ConfigError(f'the {what} {path!r}{more} must be a .py, .yaml, .yml or .json file')
    if os.path.getsize(path) > 10 * 2**20:
        raise ConfigError(f'the {what} {path!r}{more} is larger than 10 MB')
    try:
        text = Path(path).read_text(encoding='utf-8')
    except UnicodeDecodeError:
        raise ConfigError(f'the {what} {path!r}{more} is not UTF-8 text') from None
    except OSError as error:
        raise StorageError(f'cannot read the {what} {path!r}{more}: {error.strerror}') from None
    if text.startswith('\ufeff'):
        raise ConfigError(f'the {what} {path!r}{more} begins with a byte order mark: save it as UTF-8 without BOM')
    try:
        if Path(path).suffix == '.py':
            ast.parse(text)
    except SyntaxError as error:
        raise ConfigError(f'{path}, line {error.lineno}: {error.msg}') from None
    except (ValueError, RecursionError, MemoryError):  # a null byte, or very deep brackets
        raise ConfigError(f'the {what} {path!r}{more} cannot be parsed as Python') from None


def _explain(error: Exception, path: str) -> str:
    """Say in one line which file and line of a config fails, and why."""
    path, line = os.path.abspath(path), error.lineno if isinstance(error, SyntaxError) else None
    for frame, number in traceback.walk_tb(error.__traceback__):
        code, inside = frame.f_code, frame.f_locals.get('filename')
        if frame.f_globals.get('__name__') == 'mmengine.config.config' and code.co_name == '_file2dict' and inside:
            path = inside
        elif code.co_filename == path:  # mmengine compiles a config under its path
            line = number
    kind = f'{type(error).__name__}: ' if path.endswith('.py') else ''
    text = (str(error).splitlines() or [''])[0]
    if isinstance(error, yaml.YAMLError):
        kind, text = '', ' '.join(str(error).split())
    elif isinstance(error, KeyError) and 'Duplicate key is not allowed among bases' in text:
        names = text.partition('{')[2].partition('}')[0]
        kind, text = '', f'two files in _base_ set the same names, and only one may: {names}'
    elif isinstance(error, RecursionError):
        kind, text = '', 'it is nested too deeply'
    elif isinstance(error, AttributeError) and not path.endswith('.py'):
        text = 'it must be a mapping of names to values'
    return f'{path}{"" if line is None else f", line {line}"}: {kind}{text}'
