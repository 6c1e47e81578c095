"""A config: read from a file, changed by the command line."""

from __future__ import annotations

import ast
import copy
import inspect
import os
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path

import yaml
from mmengine.config import Config
from mmengine.runner import Runner
from mmengine.utils import import_modules_from_strings

from ..compat import (
    base_configs,
    base_files,
)
from ..errors import ConfigError, MissingFileError, StorageError, UserError
from ..models.towers.loading import near_names
from .checks import check_config
from .checks.schema import check_top_level
from .options import parse_options
from .values import value_of

# What the Runner and the tools read of a config. Every other top-level name is a variable, of which parts of the config
# hold copies.
READ_KEYS = {*inspect.signature(Runner.__init__).parameters} - {'self', 'cfg'} | {
    'cache_dir',
    'custom_imports',
    'tf32',
    'total_batch_size',
    # Of the Runner, but no arguments.
    'activation_checkpointing',
    'compile',
    'efficient_conv_bn_eval',
    'find_unused_parameters',
    'model_wrapper_cfg',
    'sync_bn',
}


def load_config(path: str, options: dict, complete: bool = False) -> Config:
    """Read a config file and apply ``--cfg-options``.

    A variable, such as ``data_root`` or ``pipeline``, that a config or the options change is changed where the config
    it was inherited from used it: in every dataset whose own value is still that of the variable. A linear probe or a
    gate of the training images stays one of them.

    Raises:
        MissingFileError: There is no such file.
        ConfigError: A file that is no config; an option that is neither read by anything nor a variable that something
            uses; a value that a part of the config does not take. Near names are listed.
    """
    options = options if isinstance(options, Mapping) else parse_options(options)
    cfg = read_config(path)
    bases = list(base_configs(path))
    keep_training_images(cfg, *bases)
    spread_variables(cfg, *bases)
    before = copy.deepcopy(cfg)
    try:
        cfg.merge_from_dict(options)
        check_top_level(cfg)
        if cfg.get('custom_imports') and 'custom_imports' in {key.partition('.')[0] for key in options}:
            import_modules_from_strings(**cfg.custom_imports)
    except UserError:
        raise
    except (
        ImportError,
        AttributeError,
        KeyError,
        TypeError,
        ValueError,
    ) as error:  # such as an index into what is no list
        raise ConfigError(f'--cfg-options {" ".join(options)}: {str(error).splitlines()[0]}') from None
    keep_training_images(cfg, before)
    used = spread_variables(cfg, before)
    for name in dict.fromkeys(key.partition('.')[0] for key in options):
        if name not in READ_KEYS and name not in before:
            known = {
                *READ_KEYS,
                *before,
                *(f'{key}.{name}' for key, value in before.items() if isinstance(value, dict) and name in value),
            }
            raise ConfigError(f'{path} has no {name!r}, and nothing would read it.{near_names(name, sorted(known))}')
        if name not in READ_KEYS and cfg[name] != before[name] and name not in used:
            raise ConfigError(
                f'nothing in {path} uses {name!r} as it stands: change the parts of the config that were made with it'
            )
    check_config(cfg, complete)
    return cfg


def read_config(path: str) -> Config:
    """``Config.fromfile``; modules of ``custom_imports`` are also found in the current folder, as by ``python -m``.

    Raises:
        MissingFileError: There is no such file, or none that it inherits from.
        ConfigError: It is no config, or fails; with the file and the line.
    """
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    place = [path]
    try:
        _check_files(path, place, [])
        cfg = Config.fromfile(path)
        _strip_delete(cfg)  # which imports what a config in the newer style names
        return cfg
    except UserError:
        raise
    except Exception as error:  # a config is a program
        raise ConfigError(_what_fails(error, place[-1])) from error


def _check_files(path: str, place: list[str], heirs: list[str]) -> None:
    """Raise a UserError for a config, or a base of it, that is no readable file, or inherits from itself; ``place``
    ends with the file that is looked at."""
    place.append(path)
    check_text_file(path, 'config', f' (the _base_ of {heirs[-1]})' if heirs else '')
    chain = [os.path.realpath(heir) for heir in heirs]
    if os.path.realpath(path) in chain:
        raise ConfigError(f'{path} inherits from itself, by _base_: {" -> ".join([*heirs, path])}')
    for base in base_files(path):
        _check_files(base, place, [*heirs, path])
    place.append(path)


def check_text_file(path: str, what: str, more: str = '') -> None:
    """Raise a MissingFileError or a ConfigError unless ``path`` is a readable file of text, of a kind that settings are
    written in."""
    if not os.path.exists(path):
        raise MissingFileError(f'there is no {what} {path!r}{more}')
    if not os.path.isfile(path):
        raise ConfigError(f'the {what} {path!r}{more} is a folder or a device, not a file')
    if Path(path).suffix not in ('.py', '.yaml', '.yml', '.json'):
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
    except (ValueError, RecursionError, MemoryError):  # a null byte; brackets in brackets in …
        raise ConfigError(f'the {what} {path!r}{more} is no Python that could be read') from None


def _what_fails(error: Exception, path: str) -> str:
    """Where the program that a config is fails, in one line."""
    path, line = os.path.abspath(path), error.lineno if isinstance(error, SyntaxError) else None
    for frame, number in traceback.walk_tb(error.__traceback__):
        inside = frame.f_locals.get('filename')
        if (
            frame.f_globals.get('__name__') == 'mmengine.config.config'
            and frame.f_code.co_name == '_file2dict'
            and inside
        ):
            path = inside
        elif frame.f_code.co_filename == path:  # mmengine runs a config under its name
            line = number
    text = 'it is nested too deeply' if isinstance(error, RecursionError) else (str(error).splitlines() or [''])[0]
    if isinstance(error, yaml.YAMLError):
        text = ' '.join(str(error).split())
    elif isinstance(error, AttributeError) and not path.endswith('.py'):
        text = 'it must be a mapping of names to values'
    kind = (
        ''
        if isinstance(error, (yaml.YAMLError, RecursionError)) or not path.endswith('.py')
        else f'{type(error).__name__}: '
    )
    return f'{path}{"" if line is None else f", line {line}"}: {kind}{text}'


def spread_variables(cfg: Config, *before: Config) -> set[str]:
    """Change copies of variables in ``cfg``, in place, from their values in ``before`` to those in ``cfg``; the names
    of those used.

    A copy of a dict or a list is what equals it; of any other value, what equals it and has its name.
    """
    changed = [
        (name, old)
        for earlier in before
        for name, old in earlier.items()
        if name not in READ_KEYS and name in cfg and cfg[name] != old
    ]
    # Dicts may hold copies of lists, and both of other values: an outer one is found as long as what it holds is
    # unchanged.
    changed.sort(key=lambda item: [isinstance(item[1], kind) for kind in (dict, list)], reverse=True)
    return {name for name, old in changed if _replace(cfg, name, old, cfg[name])}


def keep_training_images(cfg: Config, *before: Config) -> None:
    """Let a linear probe and a gate be made of the training images of ``cfg``, in place, if they were of those of
    ``before``; and of the validation images likewise."""
    start = value_of(cfg, 'model.head.class_weights') or {}
    for part in (start if value_of(start, 'type') == 'linear_probe' else {}, value_of(cfg, 'model.gate') or {}):
        for images, loader in dict(dataset='train_dataloader', held_out='val_dataloader').items():
            now, *earlier = (value_of(config, f'{loader}.dataset') for config in (cfg, *before))
            if now and value_of(part, images) and part[images] in earlier:
                part[images] = copy.deepcopy(now)


def _strip_delete(node) -> None:
    """Drop the ``_delete_`` that mmengine leaves in dicts inside a dict that has one itself."""
    if isinstance(node, (dict, Config)):
        node.pop('_delete_', None)
    for value in node.values() if isinstance(node, (dict, Config)) else node if isinstance(node, (list, tuple)) else ():
        _strip_delete(value)


def _replace(node, name: str, old, new) -> bool:
    """Change the copies of a variable below ``node``; whether there are any. See :func:`spread_variables`."""
    found = False
    for key, value in list(node.items() if isinstance(node, (dict, Config)) else enumerate(node)):
        if value == old and (isinstance(old, (dict, list)) or key == name):
            node[key] = copy.deepcopy(new)
            found = True
        elif isinstance(value, (dict, list)):
            found = _replace(value, name, old, new) or found
    return found
