"""Names of version 0.1.0 that have changed, and what to write today."""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any

from .errors import ConfigError

TYPES = {'ConformalGate': 'KNNGate'}
"""Old name of a registered class to its name today."""

REMOVED = {'PlainCheckpointHook': 'is no longer needed, because every checkpoint is plain: leave it out'}
"""Registered classes that were removed, each with the sentence that follows its name."""

CONFIGS = {'variants/object_single_vitb16.py': 'cfmask_vitb16.py'}
"""Old name of a config of this package to its name today."""

CLEAN = "for a distillation on clean images set model.losses=[dict(type='Distillation')]"
WEIGHT = 'takes no weight: set model.head.distill_weight'

ARGUMENTS: dict[str, dict[str, str]] = {
    'CounterfactualClassifier': dict(
        auxiliary='is now model.losses, which also holds the distillation: '
        "losses=[dict(type='CounterfactualDistillation'), …]",
        gate='is now model.knn_gate, with k in place of neighbours',
        second_look='is now model.crop_scale',
    ),
    'CAMRefillDataPreprocessor': dict(
        colors='is now color_mixing',
    ),
    'KNNGate': dict(neighbours='is now k'),
    'Distillation': dict(weight=WEIGHT),
}
"""Class to old arguments, each with the sentence that follows its name."""

VALUES: dict[str, dict[tuple[str, Any], str]] = {
    'CounterfactualClassifier': {
        ('teacher', None): 'is no longer needed: for plain fine-tuning inherit from a config of it, such as '
        'mmcfmask::baselines/ft_vitb16.py (configs/shapes/ft.py, configs/pacs/ft_vitb16.py)',
        ('losses', None): 'must be a list: for plain fine-tuning leave it out, or set model.losses=[]',
    },
    'CLIPDistillHead': {
        ('distill', None): "is no longer needed: without a 'Distillation' or 'CounterfactualDistillation' in "
        'model.losses nothing is distilled; leave it out',
    },
    'CAMRefillDataPreprocessor': {
        ('relevance', 'attention'): 'is now a dict of options; the published map, which this meant, is the default: '
        'leave it out',
        ('mask', None): f'is no longer needed: {CLEAN}; for no distillation leave model.losses out',
    },
    'L2SP': {('head', 'start'): "is now head='pretrained'"},
}
"""Class to values that an argument no longer takes, each with the sentence that follows it."""


def refuse_old_names(where: str, kind: str | Callable, arguments: Mapping[str, Any]) -> None:
    """Raise a ConfigError, with the name of today, for an argument or a value of version 0.1.0.

    Args:
        where (str): The dotted key of the part, for the error; may be empty.
        kind (str | Callable): The class that takes the arguments, or its registered name.
        arguments (Mapping[str, Any]): Its arguments.
    """
    for name in [kind] if isinstance(kind, str) else [base.__name__ for base in getattr(kind, '__mro__', ())]:
        for key, value in arguments.items():
            if key in ARGUMENTS.get(name, ()):
                raise ConfigError(f'{where}.{key} {ARGUMENTS[name][key]}'.lstrip('.'))
            if (value is None or isinstance(value, str)) and (key, value) in VALUES.get(name, ()):
                raise ConfigError(f'{where}.{key}={value!r} {VALUES[name][key, value]}'.lstrip('.'))


def rename_weights(state: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
    """A state dict with the names of today: weights of loss terms were ``auxiliary.N.…`` in version 0.1.0.

    Args:
        state (Mapping[str, Any]): Names to tensors.
        prefix (str): Of the classifier's names.
    """
    old = f'{prefix}auxiliary.'
    return {f'{prefix}losses.{key[len(old) :]}' if key.startswith(old) else key: value for key, value in state.items()}


def update_model(model: dict) -> dict:
    """The values of a model config, as a checkpoint records them, with the keys of today.

    Args:
        model (dict): Of version 0.1.0 or later. It is not changed.

    Returns:
        dict: A copy. What had no effect in version 0.1.0, such as the mask of a training without counterfactual
        images, is left out.
    """
    model = copy.deepcopy(model)
    if model.get('type') != 'CounterfactualClassifier' or 'losses' in model:
        return model
    terms = model.pop('auxiliary', None) or []
    head, preprocessor = model.get('head') or {}, model.get('data_preprocessor') or {}
    distilled = bool(model.get('teacher')) and head.get('distill', 'feature') is not None
    masked = distilled and preprocessor.get('mask', 'object') is not None
    if distilled:
        terms = [*terms, dict(type='CounterfactualDistillation' if masked else 'Distillation')]
    else:
        for key in ('distill', 'distill_weight', 'temperature'):
            head.pop(key, None)
    if preprocessor.get('relevance') == 'attention':
        preprocessor.pop('relevance')
    if 'colors' in preprocessor:
        preprocessor['color_mixing'] = preprocessor.pop('colors')
    for key in () if masked else ('mask', 'fill', 'value', 'views', 'color_mixing'):
        preprocessor.pop(key, None)
    if model.get('teacher') is None:
        model.pop('teacher', None)
    if terms:
        model['losses'] = [
            {**term, 'head': 'pretrained'} if (term['type'], term.get('head')) == ('L2SP', 'start') else term
            for term in terms
        ]
    gate = model.pop('gate', None)
    if gate:
        model['knn_gate'] = {'k' if key == 'neighbours' else key: value for key, value in gate.items()}
        if model['knn_gate'].get('type') in TYPES:
            model['knn_gate']['type'] = TYPES[model['knn_gate']['type']]
    if 'second_look' in model:
        model['crop_scale'] = model.pop('second_look')
    return model


def update_training_settings(settings: Mapping[str, str]) -> dict[str, str]:
    """The training settings in a metrics.json of version 0.1.0, as this version records the same training.

    The settings do not contain values that are None. So this function takes a missing mask beside a fill for
    ``mask=None``, and a missing distill beside other losses for ``distill=None``, as in the configs of 0.1.0.

    Args:
        settings (Mapping[str, str]): Dotted keys to values as texts.

    Returns:
        dict[str, str]: A copy. It is unchanged if the losses cannot be read, because long texts are shortened.
    """
    unchanged = dict(settings)
    if settings.get('model.type') != 'CounterfactualClassifier' or 'model.losses' in settings:
        return unchanged
    model: dict = {}
    for key, text in settings.items():
        if key.startswith('model.'):
            *parts, name = key.split('.')[1:]
            reduce(lambda below, part: below.setdefault(part, {}), parts, model)[name] = text
    head, preprocessor = model.setdefault('head', {}), model.setdefault('data_preprocessor', {})
    if 'fill' in preprocessor:
        preprocessor.setdefault('mask', None)
    if 'auxiliary' in model:
        head.setdefault('distill', None)
        try:
            model['auxiliary'] = ast.literal_eval(model['auxiliary'])
        except (SyntaxError, ValueError):
            return unchanged
    rest = {key: text for key, text in settings.items() if not key.startswith('model.')}
    return {**_flatten('model', update_model(model)), **rest}


def _flatten(key: str, value: Any) -> dict[str, str]:
    if isinstance(value, dict):
        return {name: text for part, below in value.items() for name, text in _flatten(f'{key}.{part}', below).items()}
    return {} if value is None else {key: str(value)}
