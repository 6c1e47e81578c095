"""Load the image tower or the text tower of any open_clip model.

Model names and tags are open_clip's (``open_clip.list_models()``, ``open_clip.list_pretrained()``). Importing this
module adds the built-in mini CLIP ``ShapesCLIP-ViT-8-64``; its weights are ``pretrained='shapes'``.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import open_clip
import torch
from huggingface_hub.constants import HF_HUB_CACHE
from mmengine.logging import print_log
from open_clip.convert import convert_state_dict
from open_clip.factory import HF_HUB_PREFIX, parse_model_name
from open_clip.model import resize_pos_embed
from open_clip.pretrained import download_pretrained_from_hf
from open_clip.transform import PreprocessCfg, merge_preprocess_dict
from open_clip.utils import to_2tuple
from torch import nn

from ...errors import ConfigError, MissingFileError, MissingPackageError
from ...messages import near_names
from ...ranges import height_and_width
from .downloads import offline_if_unreachable
from .image_size import set_image_size
from .state_dicts import explain_format, has_image_tower, has_text_tower
from .weight_files import check_parameters, check_tensors, read_state_dict, warn_of_activation

ASSETS = Path(__file__).resolve().parents[2] / 'assets'
SHAPES_MODEL = 'ShapesCLIP-ViT-8-64'
# A text tower as small as possible, where only the image tower is kept.
SMALL_TEXT = dict(context_length=8, vocab_size=8, width=64, heads=1, layers=1)
WEIGHT_SUFFIXES = ('.pt', '.pth', '.bin', '.ckpt', '.safetensors', '.npz', '.npy')

if (ASSETS / f'{SHAPES_MODEL}.json').is_file() and open_clip.get_model_config(SHAPES_MODEL) is None:
    open_clip.add_model_config(ASSETS / f'{SHAPES_MODEL}.json')


class NoTextTowerError(ConfigError):
    """The weights hold an image tower only."""


class ImageTower(NamedTuple):
    """The image tower of a CLIP model and the input that it expects.

    ``visual(images)`` maps (B, 3, H, W) float images, scaled to 0-1 and normalised with ``mean`` and ``std``, to (B, D)
    embeddings before L2 normalisation (CoCa towers return a tuple with these first).
    """

    visual: nn.Module
    embed_dim: int
    image_size: tuple[int, int]
    patch_size: tuple[int, int] | None
    """None for towers without a patch embedding (convolutional ones)."""
    logit_scale: float
    """Factor of the cosine similarities, after the exponential. 100 if the weights do not say."""
    mean: tuple[float, float, float] | None
    std: tuple[float, float, float] | None
    """None if ``pretrained`` is a path or None."""


def load_image_tower(
    model_name: str, pretrained: str | None = None, load: bool = True, image_size: int | Sequence[int] | None = None
) -> ImageTower:
    """Build the image tower of an open_clip model in float32 on the CPU and load its weights.

    Args:
        model_name: A name of ``open_clip.list_models()``, or ``hf-hub:org/repo`` / ``local-dir:path``, which include
            their weights.
        pretrained: None (random weights), a tag of ``open_clip.list_pretrained_tags_by_model(model_name)`` such as
            ``'openai'``, ``'shapes'`` (weights of the built-in mini CLIP), ``'hf-hub:org/repo'`` (the weights of a
            repository of open_clip or transformers), or the path of a checkpoint in float32 or half precision: a state
            dict of the whole model or of the image tower only, possibly under ``'state_dict'``, in any format that
            open_clip reads or :func:`.state_dicts.to_open_clip` converts. OpenAI's weights need QuickGELU: their tags
            switch it on; otherwise use one of the ``-quickgelu`` model names.
        load: False leaves the weights random; a tag still decides the activation.
        image_size: Height and width of the images, see :func:`.image_size.set_image_size`. None: those of the model.

    Raises:
        ConfigError: Unknown model name or tag, weights that do not fit the tower (the message lists near names or the
            keys), or an ``image_size`` that it cannot take.
        MissingFileError: ``pretrained`` is a path that does not exist, or its weights cannot be downloaded.
    """
    schema, _ = parse_model_name(model_name)
    if schema is not None:
        if pretrained is not None:
            raise ConfigError(f'{model_name!r} includes its weights: leave pretrained at None (got {pretrained!r}).')
        model = _create_from_schema(model_name)
        return _image_tower(
            model_name, model, model.visual.preprocess_cfg, float(model.logit_scale.detach().exp()), image_size
        )

    path = resolve_pretrained(model_name, pretrained) if load else None
    model = _create_model(model_name, pretrained, text_cfg=SMALL_TEXT)
    tag = open_clip.get_pretrained_cfg(model_name, pretrained or '')
    preprocess = merge_preprocess_dict(model.visual.preprocess_cfg, tag) if tag else {}
    if path is None:
        return _image_tower(model_name, model, preprocess, float(model.logit_scale.detach().exp()), image_size)

    state_dict = read_state_dict(path, model_name)
    if not has_image_tower(state_dict):
        raise ConfigError(f'{path} holds no image tower of a CLIP: {explain_format(state_dict)}')
    if not tag:
        warn_of_activation(model_name, path, state_dict)
    state_dict = convert_state_dict(model, state_dict)
    logit_scale = state_dict.get('logit_scale')
    state_dict = {key: value for key, value in state_dict.items() if key.startswith('visual.')}
    _resize_pos_embed(state_dict, model, path)
    weights = {key[len('visual.') :]: value for key, value in state_dict.items()}
    check_parameters(model.visual.state_dict(), weights, where=f'{path} does not fit the image tower of {model_name!r}')
    check_tensors(weights, path)
    model.visual.load_state_dict(weights)
    return _image_tower(
        model_name, model, preprocess, 100.0 if logit_scale is None else float(logit_scale.float().exp()), image_size
    )


def load_text_model(
    model_name: str, pretrained: str | None = None, device: str | torch.device = 'cpu'
) -> tuple[nn.Module, Callable]:
    """Load a whole open_clip model in eval mode, and its tokenizer, to embed texts with ``model.encode_text``.

    Args:
        model_name, pretrained: As for :func:`load_image_tower`.

    Raises:
        NoTextTowerError: The weights hold an image tower only.
        MissingPackageError: The text tower or its tokenizer needs transformers, which is not installed.
        ConfigError, MissingFileError: As :func:`load_image_tower`.
    """
    schema, _ = parse_model_name(model_name)
    if schema is not None:
        model = _create_from_schema(model_name)
    else:
        path = resolve_pretrained(model_name, pretrained)
        state_dict = {} if path is None else read_state_dict(path, model_name)
        if path is not None and not has_text_tower(state_dict):
            raise NoTextTowerError(f'{path} has no text tower')
        model = _or_explain_download(lambda: _create_model(model_name, pretrained), model_name)
        if path is not None:
            check_tensors(state_dict, path)
            try:
                # open_clip's own reader would run TorchScript.
                with mock.patch('open_clip.factory.load_state_dict', return_value=state_dict):
                    open_clip.load_checkpoint(model, str(path))
            except RuntimeError as error:
                raise ConfigError(f'{path} does not fit {model_name!r}: {error}') from error
    tokenizer = _or_explain_download(lambda: open_clip.get_tokenizer(model_name), model_name)
    return model.to(device).eval().requires_grad_(False), tokenizer


def load_text_tower(model_name: str, pretrained: str | None = None) -> tuple[nn.Module, Callable]:
    """:func:`load_text_model` without the image tower: embeds texts, and keeps the model's ``logit_scale``."""
    model, tokenizer = load_text_model(model_name, pretrained)
    model.visual = None  # type: ignore[assignment]
    return model, tokenizer


def resolve_pretrained(model_name: str, pretrained: str | None) -> Path | None:
    """The local file with the weights that ``pretrained`` names, downloaded if necessary; None for random weights.

    Raises:
        ConfigError: Unknown model name or tag.
        MissingFileError: A path that does not exist, or weights that cannot be downloaded.
    """
    check_pretrained(model_name, pretrained)
    if pretrained is None:
        return None
    if pretrained == 'shapes':
        return ASSETS / f'{SHAPES_MODEL}.safetensors'
    if pretrained.startswith(HF_HUB_PREFIX):
        return Path(_or_explain_download(lambda: _download_weights(pretrained), model_name, pretrained))
    if open_clip.is_pretrained_cfg(model_name, pretrained):
        cfg = open_clip.get_pretrained_cfg(model_name, pretrained)
        return Path(_or_explain_download(lambda: open_clip.download_pretrained(cfg), model_name, pretrained, cfg))
    return Path(pretrained).expanduser()


def weights_normalisation(model_name: str, pretrained: str | None) -> dict[str, tuple[float, ...]]:
    """Mean and standard deviation of RGB images in 0-1 that the weights of an open_clip model were trained with.

    Args:
        model_name: Name of the model.
        pretrained: Its weights. Only a tag says how they were trained. All else is taken for what the tags of
            ``model_name`` agree on, or, where they do not, for open_clip's default, the values of OpenAI's CLIP.

    Returns:
        ``dict(mean=…, std=…)``.
    """
    tagged = pretrained is not None and open_clip.is_pretrained_cfg(model_name, pretrained)
    tags = [pretrained] if tagged else open_clip.list_pretrained_tags_by_model(model_name)
    default = PreprocessCfg()
    settings = [merge_preprocess_dict(default, open_clip.get_pretrained_cfg(model_name, tag)) for tag in tags]
    found = {(tuple(setting['mean']), tuple(setting['std'])) for setting in settings}
    mean, std = found.pop() if len(found) == 1 else (default.mean, default.std)
    return dict(mean=mean, std=std)


def check_pretrained(model_name: str, pretrained: str | None) -> None:
    """Check a name of weights without downloading them.

    Raises:
        ConfigError: Unknown model name or tag.
        MissingFileError: A path that does not exist.
    """
    check_model_name(model_name)
    if pretrained == 'shapes':
        path = ASSETS / f'{SHAPES_MODEL}.safetensors'
        if model_name != SHAPES_MODEL:
            raise ConfigError(f"pretrained='shapes' are the weights of {SHAPES_MODEL!r}, not of {model_name!r}.")
        if not path.is_file():
            raise MissingFileError(
                f'{path} is missing: install the package again, or run tools/pretrain_shapes_clip.py.'
            )
        return
    if pretrained is None or open_clip.is_pretrained_cfg(model_name, pretrained):
        return
    if pretrained.startswith(HF_HUB_PREFIX):
        if not re.fullmatch(r'[\w.-]+/[\w.-]+', pretrained[len(HF_HUB_PREFIX) :]):
            raise ConfigError(f"pretrained={pretrained!r} names no repository: write 'hf-hub:organisation/repository'")
        return
    path = Path(pretrained).expanduser()
    if path.is_file():
        return
    if path.is_dir():
        raise MissingFileError(f'pretrained={pretrained!r} is a folder: give the path of the checkpoint file in it.')
    if path.suffix in WEIGHT_SUFFIXES or len(path.parts) > 1:
        raise MissingFileError(f'pretrained={pretrained!r}: the file does not exist (looked for {path.absolute()}).')
    tags = ['shapes'] if model_name == SHAPES_MODEL else open_clip.list_pretrained_tags_by_model(model_name)
    listed = ', '.join(map(repr, tags)) if tags else 'none, so give the path of a checkpoint'
    raise ConfigError(
        f'Unknown pretrained tag {pretrained!r} for {model_name!r}.{near_names(pretrained, tags)} '
        f'Tags of this model: {listed}.'
    )


def check_model_name(model_name: str) -> None:
    """Raise a ConfigError with near names if open_clip has no such model."""
    schema, _ = parse_model_name(model_name)
    if schema is None and open_clip.get_model_config(model_name) is None:
        names = open_clip.list_models()
        raise ConfigError(
            f'Unknown open_clip model {model_name!r}.{near_names(model_name, names) or " Models: " + ", ".join(names)}'
        )


def _create_model(model_name: str, pretrained: str | None, **kwargs: Any) -> nn.Module:
    """An open_clip model with random weights and the activation function of the tag's weights."""
    tag = open_clip.get_pretrained_cfg(model_name, pretrained or '')
    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.ERROR)  # hides 'No pretrained weights loaded': they are loaded later
    try:
        return open_clip.create_model(
            model_name, force_quick_gelu=tag.get('quick_gelu', False), pretrained_text=False, **kwargs
        )
    finally:
        logging.getLogger().setLevel(level)


def _create_from_schema(model_name: str) -> nn.Module:
    """The model of a ``hf-hub:`` or ``local-dir:`` name, with the weights beside its config."""
    if model_name.startswith('hf-hub:'):
        return _or_explain_download(lambda: open_clip.create_model(model_name, require_pretrained=True), model_name)
    return open_clip.create_model(model_name, require_pretrained=True)


def _download_weights(pretrained: str) -> str:
    """The weights of a repository of the Hugging Face hub: those for open_clip, or else those for transformers."""
    repo = pretrained[len(HF_HUB_PREFIX) :]
    for filename in (None, 'model.safetensors'):  # None: open_clip's own name
        with suppress(FileNotFoundError):
            return download_pretrained_from_hf(repo, filename)
    return download_pretrained_from_hf(repo, 'pytorch_model.bin')


def _image_tower(
    model_name: str, model: nn.Module, preprocess: dict, logit_scale: float, image_size: int | Sequence[int] | None
) -> ImageTower:
    visual = model.visual
    if image_size is not None:
        set_image_size(visual, height_and_width(image_size, 'model.backbone'))
    patch_size = getattr(visual, 'patch_size', None)
    if patch_size is None and hasattr(visual, 'trunk'):  # timm towers
        patch_size = getattr(getattr(visual.trunk, 'patch_embed', None), 'patch_size', None)
    return ImageTower(
        visual=visual,
        embed_dim=open_clip.get_model_config(model_name)['embed_dim'],
        image_size=tuple(to_2tuple(visual.image_size)),
        patch_size=None if patch_size is None else tuple(to_2tuple(patch_size)),
        logit_scale=logit_scale,
        mean=tuple(preprocess['mean']) if preprocess else None,
        std=tuple(preprocess['std']) if preprocess else None,
    )


def _resize_pos_embed(state_dict: dict[str, torch.Tensor], model: nn.Module, path: Path) -> None:
    """Adapt the position embedding to another image size as open_clip does, in place."""
    key = 'visual.positional_embedding'
    before = state_dict.get(key)
    try:
        resize_pos_embed(state_dict, model)
    except RuntimeError:  # not a square grid: reported later with the other keys that do not fit
        return
    if before is not None and before.shape != state_dict[key].shape:
        print_log(f'{path}: {key} resized from {tuple(before.shape)} to {tuple(state_dict[key].shape)}', 'current')


def _or_explain_download(
    load: Callable, model_name: str, pretrained: str | None = None, cfg: dict | None = None
) -> Any:
    """Call ``load``; if a download fails, say which file to get and where to put it."""
    unreachable = None
    try:
        with offline_if_unreachable() as unreachable:
            return load()
    except (OSError, RuntimeError, ImportError) as error:  # the hub and urllib raise OSErrors, open_clip RuntimeErrors
        if importlib.util.find_spec('transformers') is None and 'transformers' in str(error):
            raise MissingPackageError(
                f'the text tower of {model_name!r} needs transformers: pip install transformers'
            ) from None
        if isinstance(error, ImportError):
            raise
        sources = []
        if cfg and cfg.get('hf_hub'):
            repo, filename = os.path.split(cfg['hf_hub'])
            sources.append(
                f'{filename or "open_clip_model.safetensors (or open_clip_pytorch_model.bin)"} of the Hugging Face '
                f'repository {repo!r} to the hub cache {HF_HUB_CACHE} (`hf download {repo}` does it)'
            )
        if cfg and cfg.get('url'):
            sources.append(f'{cfg["url"]} to {Path("~/.cache/clip").expanduser() / os.path.basename(cfg["url"])}')
        if pretrained and pretrained.startswith(HF_HUB_PREFIX):
            repo = pretrained[len(HF_HUB_PREFIX) :]
            sources.append(f'{repo!r} to the hub cache {HF_HUB_CACHE} (`hf download {repo}` does it)')
        if not sources:
            sources.append(f'{model_name!r} and its tokenizer to the hub cache {HF_HUB_CACHE}')
        reason = unreachable if unreachable and isinstance(error, OSError) else error
        what = f'The weights {pretrained!r} of {model_name!r}' if pretrained else f'Parts of {model_name!r}'
        raise MissingFileError(
            f'{what} are not on this machine and cannot be downloaded ({reason}). On a machine with a network, '
            f"download {', or '.join(sources)}; or set pretrained='/path/to/file'."
        ) from error
