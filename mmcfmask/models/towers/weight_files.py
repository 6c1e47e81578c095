"""Files of weights: read as state dicts without running what they hold, and checked against a model."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path

import open_clip
import torch
from mmengine.logging import print_log
from open_clip.factory import load_state_dict

from ...errors import ConfigError, StorageError
from ...files import check_whole
from ...messages import short_list
from .torchscript import is_torchscript, read_torchscript

# What OpenAI's TorchScript archives hold beside weights.
TORCHSCRIPT_KEYS = ('input_resolution', 'context_length', 'vocab_size')


# Keys of an open_clip checkpoint that belong to neither tower.
SHARED_KEYS = ('logit_scale', 'logit_bias')


def read_state_dict(path: str | Path, model_name: str) -> dict[str, torch.Tensor]:
    """Read a checkpoint file as a flat state dict; only tensors are unpickled.

    ``model_name`` is needed for big_vision's .npz files, whose layout open_clip derives from the model.

    Raises:
        ValueError: The file is no checkpoint.
    """
    path = Path(path)
    try:
        if path.suffix in ('.npz', '.npy'):
            return open_clip.create_model(model_name, pretrained=str(path)).state_dict()
        if is_torchscript(path):
            state_dict = read_torchscript(path)
            for key in TORCHSCRIPT_KEYS:
                state_dict.pop(key, None)
        else:
            check_whole(path)
            state_dict = load_state_dict(str(path), weights_only=True)
    except StorageError:
        raise
    except Exception as error:  # the readers raise pickle, zip, safetensors and key errors of many types
        raise ConfigError(f'{path} cannot be read as a checkpoint: {explain_unreadable(error)}') from error
    if not isinstance(state_dict, Mapping) or not all(isinstance(value, torch.Tensor) for value in state_dict.values()):
        raise ConfigError(
            f'{path} is no state dict: it holds '
            + (
                f'the keys {short_list(state_dict, 5)}.'
                if isinstance(state_dict, Mapping)
                else f'a {type(state_dict).__name__}.'
            )
        )
    if any(key.startswith('vision_model.') for key in state_dict):
        raise ConfigError(
            f"{path} holds weights in the form of Hugging Face's transformers (vision_model.…), which is not read "
            'here: '
            "take the same model in open_clip's form, by a tag such as pretrained='openai', as 'hf-hub:…' of a "
            'repository for open_clip, or convert it.'
        )
    return state_dict


def explain_unreadable(error: Exception) -> str:
    """Why a file of weights cannot be read, in one line; without the advice of torch and numpy to read it by running
    what it holds."""
    text = str(error) or type(error).__name__
    asked = re.search(r'GLOBAL ([\w.]+)', text)
    if asked or 'allow_pickle' in text:
        example = f', such as {asked[1]}' if asked else ''
        return f'it holds more than tensors and plain values{example}, which could run code'
    if 'weights_only' in text:
        return 'what it holds is not understood'
    return text.splitlines()[0]


def warn_of_activation(model_name: str, path: Path, state_dict: Mapping[str, torch.Tensor]) -> None:
    """Log a warning where a file may hold OpenAI's weights, which need QuickGELU, and ``model_name`` has GELU.

    Such a file is a TorchScript archive, or does not say: a state dict of the image tower alone, or one whose numbers
        all fit in
    float16, as OpenAI's do in every precision they are kept in.
    """
    quick = f'{model_name}-quickgelu'
    if quick not in open_clip.list_models():
        return
    if is_torchscript(path):
        why = "has the form of OpenAI's weights, which were"
    else:
        if any(not key.startswith('visual.') and key not in SHARED_KEYS for key in state_dict) and any(
            value.is_floating_point() and not torch.equal(value.half().to(value.dtype), value)
            for key, value in state_dict.items()
            if key.endswith('weight') and value.ndim > 1
        ):
            return
        why = "may hold OpenAI's weights, which were"
    print_log(
        f'{path} {why} trained with QuickGELU, but {model_name!r} has GELU and loses accuracy with them: use '
        f'model_name={quick!r}' + ('.' if is_torchscript(path) else ", unless they are another's."),
        'current',
        level=logging.WARNING,
    )


def has_text_tower(path: str | Path, model_name: str) -> bool:
    """Whether a checkpoint holds more than an image tower."""
    return any(not key.startswith('visual.') and key not in SHARED_KEYS for key in read_state_dict(path, model_name))


def check_tensors(state_dict: Mapping[str, torch.Tensor], where: str | Path) -> None:
    """Raise a ValueError that names a tensor that no weight can be: sparse, quantised, complex, without numbers or not
    finite."""
    for name, value in state_dict.items():
        if value.is_meta:
            raise ConfigError(
                f'{where}: {name} has a shape but no numbers (it is a meta tensor): the model was saved without its '
                'weights'
            )
        if value.layout != torch.strided or value.is_quantized or value.is_complex():
            kind = 'complex' if value.is_complex() else 'quantised' if value.is_quantized else 'sparse'
            raise ConfigError(
                f'{where}: {name} is a {kind} tensor: save it as an ordinary one of floating-point numbers'
            )
        if value.is_floating_point() and not value.isfinite().all():
            raise ConfigError(
                f'{where}: {name} holds numbers that are not finite (NaN or infinity): the file is no use, take another'
            )


def check_parameters(expected: dict[str, torch.Tensor], state_dict: dict[str, torch.Tensor], where: str) -> None:
    """Raise a ValueError that names missing, unexpected and mis-shaped keys, and integers where floats belong;
    ``where`` begins the message."""
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
