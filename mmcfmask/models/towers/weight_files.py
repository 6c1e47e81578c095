"""Weight files: read as state dicts without running code, and checked against a model."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import open_clip
import torch
from mmengine.logging import print_log
from open_clip.factory import load_state_dict

from ...errors import ConfigError, StorageError, blame, first_line
from ...files import check_whole
from ...messages import short_list
from .state_dicts import has_text_tower, to_open_clip
from .torchscript import is_torchscript, read_torchscript

# What OpenAI's TorchScript archives hold beside weights.
TORCHSCRIPT_KEYS = ('input_resolution', 'context_length', 'vocab_size')
# Under which keys other programs keep a state dict.
NESTED = ('state_dict', 'model', 'model_state_dict', 'teacher')
# Endings of files that hold no state dict of torch, what they are, and what to do.
OTHER_FILES = {
    '.onnx': ('an ONNX graph', 'use the weights that it was made from'),
    '.pt2': ('a graph of torch.export', 'use the weights that it was made from'),
    '.gguf': ('weights for llama.cpp', 'use the weights that they were made from'),
    '.msgpack': ('weights of Flax', "load it with transformers' from_flax=True and save it again"),
    '.h5': ('weights of TensorFlow', "load it with transformers' from_tf=True and save it again"),
    '.json': ('a config, or an index of shards', 'save the model as one file (max_shard_size="100GB" in transformers)'),
}


def read_state_dict(path: str | Path, model_name: str) -> dict[str, torch.Tensor]:
    """Read a checkpoint file as the state dict of an open_clip model; unpickles tensors only.

    The names may be those of other programs, see :func:`.state_dicts.to_open_clip`. ``model_name`` is needed for
    big_vision's .npz files, whose layout open_clip derives from the model.

    Raises:
        ConfigError: The file is not a checkpoint, or one without a counterpart in open_clip.
        StorageError: The file is damaged.
    """
    path = Path(path)
    if path.suffix in ('.npz', '.npy'):
        with _explained(path):
            return open_clip.create_model(model_name, pretrained=str(path)).state_dict()
    state_dict = read_tensors(path)
    with blame(str(path)):
        return to_open_clip(state_dict)


def read_tensors(path: str | Path) -> Mapping[str, torch.Tensor]:
    """Read a state dict from a checkpoint file of any program, under its own names; unpickles tensors only.

    Raises:
        ConfigError: The file is not a checkpoint.
        StorageError: The file is damaged.
    """
    path = Path(path)
    if path.suffix in OTHER_FILES:
        kind, advice = OTHER_FILES[path.suffix]
        raise ConfigError(f'{path} is {kind}, not a checkpoint of torch: {advice}')
    with _explained(path):
        if is_torchscript(path):
            state_dict: Any = read_torchscript(path)
            for key in TORCHSCRIPT_KEYS:
                state_dict.pop(key, None)
        else:
            check_whole(path)
            state_dict = load_state_dict(str(path), weights_only=True)
    return find_tensors(state_dict, path)


def find_tensors(checkpoint: Any, where: str | Path) -> Mapping[str, torch.Tensor]:
    """The state dict in a checkpoint, which may be nested. Raises a ConfigError, which names ``where``, if there is
    none."""
    state_dict = checkpoint
    if isinstance(state_dict, Mapping):
        state_dict = next((state_dict[key] for key in NESTED if isinstance(state_dict.get(key), Mapping)), state_dict)
    if not isinstance(state_dict, Mapping) or not all(isinstance(value, torch.Tensor) for value in state_dict.values()):
        raise ConfigError(
            f'{where} is not a state dict: it holds '
            + (
                f'the keys {short_list(state_dict, 5)}.'
                if isinstance(state_dict, Mapping)
                else f'a {type(state_dict).__name__}.'
            )
        )
    return state_dict


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Inside the context, an error of a reader is a ConfigError that says why the file cannot be read."""
    try:
        yield
    except StorageError:
        raise
    except Exception as error:  # the readers raise pickle, zip, safetensors and key errors of many types
        reason = explain_unreadable(error)
        advice = ': save the state_dict() of the model' if 'could run code' in reason else ''
        raise ConfigError(f'{path} cannot be read as a checkpoint: {reason}{advice}') from error


def explain_unreadable(error: Exception) -> str:
    """Why a weight file cannot be read, in one line, without torch's and numpy's advice to run its code."""
    text = str(error) or type(error).__name__
    asked = re.search(r'GLOBAL ([\w.]+)', text)
    if asked or 'allow_pickle' in text:
        example = f', such as {asked[1]}' if asked else ''
        return f'it holds more than tensors and plain values{example}, which could run code'
    if 'weights_only' in text:
        return 'unknown content'
    return first_line(error)


def warn_of_activation(model_name: str, path: Path, state_dict: Mapping[str, torch.Tensor]) -> None:
    """Log a warning if a file may hold OpenAI's weights, which need QuickGELU, but ``model_name`` has GELU.

    Such a file is a TorchScript archive, a state dict of the image tower only, or one whose numbers all fit in float16,
    as OpenAI's do in every precision.
    """
    quick = f'{model_name}-quickgelu'
    if quick not in open_clip.list_models():
        return
    if is_torchscript(path):
        why = "has the format of OpenAI's weights, which were"
    else:
        if has_text_tower(state_dict) and any(
            value.is_floating_point() and not torch.equal(value.half().to(value.dtype), value)
            for key, value in state_dict.items()
            if key.endswith('weight') and value.ndim > 1
        ):
            return
        why = "may hold OpenAI's weights, which were"
    print_log(
        f'{path} {why} trained with QuickGELU, but {model_name!r} has GELU and loses accuracy with them: use '
        f'model_name={quick!r}' + ('.' if is_torchscript(path) else ', unless these are other weights.'),
        'current',
        level=logging.WARNING,
    )


def check_tensors(state_dict: Mapping[str, torch.Tensor], where: str | Path) -> None:
    """Raise a ConfigError that names a tensor that cannot be a weight: sparse, quantised, complex, empty (meta) or not
    finite."""
    for name, value in state_dict.items():
        if value.is_meta:
            raise ConfigError(
                f'{where}: {name} has a shape but no numbers (it is a meta tensor): the model was saved without its '
                'weights'
            )
        if value.layout != torch.strided or value.is_quantized or value.is_complex():
            kind = 'complex' if value.is_complex() else 'quantised' if value.is_quantized else 'sparse'
            raise ConfigError(f'{where}: {name} is a {kind} tensor: save it as an ordinary floating-point tensor')
        if value.is_floating_point() and not value.isfinite().all():
            raise ConfigError(f'{where}: {name} holds numbers that are not finite (NaN or infinity): use another file')


def check_parameters(expected: dict[str, torch.Tensor], state_dict: dict[str, torch.Tensor], where: str) -> None:
    """Raise a ConfigError that names missing, unexpected and mis-shaped keys, and integers in place of floats.

    Args:
        expected: State dict of the model.
        state_dict: State dict of the file.
        where: Begins the message.
    """
    wrong = dict(
        missing=[key for key in expected if key not in state_dict],
        unexpected=[key for key in state_dict if key not in expected],
    )
    wrong['of another shape'] = [
        f'{key} {tuple(state_dict[key].shape)} instead of {tuple(value.shape)}'
        for key, value in expected.items()
        if key in state_dict and state_dict[key].shape != value.shape
    ]
    wrong['of another kind'] = [
        f'{key} {str(state_dict[key].dtype)[6:]} instead of {str(value.dtype)[6:]}'
        for key, value in expected.items()
        if key in state_dict and state_dict[key].is_floating_point() != value.is_floating_point()
    ]
    if any(wrong.values()):
        found = '; '.join(f'{len(keys)} {kind}: {short_list(keys, 5)}' for kind, keys in wrong.items() if keys)
        raise ConfigError(f'{where}: {found}.')
