"""Class embeddings from prompts."""

from __future__ import annotations

import logging
import string
from collections.abc import Callable, Sequence
from pathlib import Path

import open_clip
import torch
from mmengine.logging import print_log
from rich.progress import track
from torch import Tensor, nn

from ...datasets.names import class_names, read_names
from ...datasets.shapes import SHAPES_TEMPLATES
from ...distributed import on_main
from ...errors import ConfigError, MissingFileError
from ...files import hash_file
from ..towers.loading import load_text_model, resolve_pretrained
from .cache import cached, fastest_device

PROMPTS_PER_BATCH = 800


def text_class_weights(
    model: nn.Module,
    tokenizer: Callable,
    classnames: Sequence[str],
    templates: Sequence[str],
    device: str | torch.device = 'cpu',
) -> Tensor:
    """Zero-shot classifier of CLIP: each prompt's text embedding L2-normalised, their mean per class, normalised again.

    Args:
        model: Whole open_clip model on ``device``.
        tokenizer: Its tokenizer.
        classnames: C names; duplicates are kept.
        templates: Strings with a ``{}`` for the name.

    Returns:
        (C, D) float32 on the CPU, rows L2-normalised.
    """
    return _mean_text_embeddings(
        model, tokenizer, classnames, templates, device, f'Text embeddings of {len(classnames)} classes'
    )


def text_context_weights(
    model: nn.Module,
    tokenizer: Callable,
    classnames: Sequence[str],
    templates: Sequence[str],
    device: str | torch.device = 'cpu',
) -> Tensor:
    """Like :func:`text_class_weights`, but one row per context (template): each prompt's text embedding L2-normalised,
    their mean over the classes, normalised again (CAR-FT, Mao et al. 2024, section 3).

    Returns:
        (K, D) float32 on the CPU for K templates, rows L2-normalised.
    """
    # The mean is over the second argument: here the names, each as a function of the template.
    names = [lambda template, name=name: template.format(name) for name in classnames]
    return _mean_text_embeddings(
        model, tokenizer, templates, names, device, f'Text embeddings of {len(templates)} contexts'
    )


def text_prompt_weights(
    model: nn.Module,
    tokenizer: Callable,
    classnames: Sequence[str],
    templates: Sequence[str],
    device: str | torch.device = 'cpu',
) -> Tensor:
    """Like :func:`text_class_weights`, but one row per prompt: row c K + k is class c in template k of K.

    Returns:
        (C K, D) float32 on the CPU, rows L2-normalised.
    """
    prompts = [template.format(name) for name in classnames for template in templates]
    return _mean_text_embeddings(
        model, tokenizer, prompts, ['{}'], device, f'Text embeddings of {len(prompts)} prompts'
    )


def _mean_text_embeddings(
    model: nn.Module,
    tokenizer: Callable,
    rows: Sequence,
    columns: Sequence,
    device: str | torch.device,
    description: str,
) -> Tensor:
    size = max(1, PROMPTS_PER_BATCH // len(columns))
    parts = [rows[start : start + size] for start in range(0, len(rows), size)]
    embeddings = [
        open_clip.build_zero_shot_classifier(model, tokenizer, part, columns, num_classes_per_batch=None, device=device)
        for part in track(parts, description=description)
    ]
    return torch.cat(embeddings, dim=1).T.float().cpu().contiguous()


def resolve_classnames(classnames: str | Sequence[str]) -> list[str]:
    """``'imagenet'`` (OpenAI's curated names, duplicates kept), a text file with one name per line, or the names
    themselves."""
    if isinstance(classnames, str) and classnames == 'imagenet':
        return list(open_clip.IMAGENET_CLASSNAMES)
    if isinstance(classnames, str):
        path = Path(classnames).expanduser()
        if not path.is_file():
            hint = (
                " 'dataset' is no longer supported: list the names in label order." if classnames == 'dataset' else ''
            )
            raise MissingFileError(
                f"class_weights.classnames={classnames!r} is neither 'imagenet' nor an existing file (looked for "
                f'{path.absolute()}).{hint}'
            )
        return read_names(path)
    if not classnames:
        raise ConfigError('class_weights.classnames is empty.')
    return class_names(classnames, 'class_weights.classnames')


def resolve_templates(templates: str | Sequence[str]) -> list[str]:
    """``'openai'``, ``'shapes'``, or strings with a ``{}``, as such strings."""
    if isinstance(templates, str):
        if templates not in ('openai', 'shapes'):
            raise ConfigError(
                f"class_weights.templates={templates!r} is unknown: choose 'openai', 'shapes', or give a list of "
                "strings such as ['a photo of a {}.']."
            )
        named = dict(openai=open_clip.OPENAI_IMAGENET_TEMPLATES, shapes=SHAPES_TEMPLATES)[templates]
        # open_clip's are functions of the name: rendered with '{}' they are strings like all others.
        return [template if isinstance(template, str) else template('{}') for template in named]
    templates = list(templates)
    wrong = [
        template
        for template in templates
        if not isinstance(template, str) or '{}' not in template or not _takes_a_name(template)
    ]
    if wrong or not templates:
        raise ConfigError(
            f"class_weights.templates must be strings with a '{{}}' for the class name, but got "
            f'{wrong[0] if wrong else templates!r}.'
        )
    return templates


def _takes_a_name(template: str) -> bool:
    """Whether ``str.format`` fills exactly one name into a template, and nothing else."""
    try:
        return all(
            field in ('', None) and not spec and not how for _, field, spec, how in string.Formatter().parse(template)
        ) and bool(template.format('name'))
    except (ValueError, IndexError):
        return False


def text_source(
    classifier: nn.Module, model_name: str | None = None, pretrained: str | None = None
) -> tuple[str, str | None]:
    """Name and weights of a text tower; defaults to the one that belongs to the classifier's image tower.

    Raises:
        ConfigError: No name is given, and the image tower has none.
    """
    own_name = getattr(classifier.backbone, 'model_name', None)
    model_name = model_name or own_name
    if model_name is None:
        raise ConfigError(
            f'{type(classifier.backbone).__name__} has no text tower: name one with '
            "model_name='ViT-B-16-quickgelu', pretrained='openai', for a head in class_weights=dict(type='text', ...)."
        )
    if pretrained is None and model_name == own_name:
        pretrained = getattr(classifier.backbone, 'pretrained', None)
    return model_name, pretrained


def text_embeddings(
    classifier: nn.Module,
    kind: str,
    classnames: str | Sequence[str],
    templates: str | Sequence[str] = 'openai',
    model_name: str | None = None,
    pretrained: str | None = None,
    cache_dir: str | None = None,
) -> Tensor:
    """Text embeddings of a classifier's prompts, or their means per class or per context, cached on disk.

    Args:
        classifier: Has ``backbone``.
        kind: ``'text'``: per class (:func:`text_class_weights`); ``'context'``: per template
            (:func:`text_context_weights`); ``'prompt'``: of every prompt (:func:`text_prompt_weights`).
        classnames, templates, model_name, pretrained, cache_dir: As in :func:`build_class_weights`.

    Raises:
        NoTextTowerError: The weights hold an image tower only.
        ConfigError, MissingFileError: As :func:`build_class_weights`.
    """
    embed = dict(text=text_class_weights, context=text_context_weights, prompt=text_prompt_weights)[kind]
    classnames, templates = resolve_classnames(classnames), resolve_templates(templates)
    model_name, pretrained = text_source(classifier, model_name, pretrained)

    def embed_prompts() -> Tensor:
        device = fastest_device()
        return embed(*load_text_model(model_name, pretrained, device), classnames, templates, device)

    def compute() -> Tensor:
        return on_main(embed_prompts)

    key = dict(
        type=kind, open_clip=open_clip.__version__, model_name=model_name, classnames=classnames, templates=templates
    )
    if ':' in model_name:  # hf-hub:org/repo or local-dir:path
        folder = Path(model_name.partition(':')[2])
        files = sorted(folder.iterdir()) if model_name.startswith('local-dir:') and folder.is_dir() else []
        key['weights'] = {file.name: hash_file(file) for file in files if file.is_file()}
    elif pretrained is None:
        print_log(
            f'The text tower of {model_name!r} has random weights (pretrained=None), so its embeddings are random too.',
            'current',
            level=logging.WARNING,
        )
        return compute()  # random, so not cached
    elif open_clip.is_pretrained_cfg(model_name, pretrained):
        key['weights'] = pretrained
    else:
        path = resolve_pretrained(model_name, pretrained)
        key['weights'] = None if path is None else hash_file(path)
    return cached(key, compute, cache_dir)
