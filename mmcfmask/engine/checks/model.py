"""Check the model, its weights and the device."""

from __future__ import annotations

import logging

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.logging import print_log
from mmpretrain.engine import LearningRateDecayOptimWrapperConstructor
from mmpretrain.models.backbones import TIMMBackbone
from mmpretrain.models.peft import LoRAModel
from mmpretrain.registry import MODELS, OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

from ...errors import ConfigError, blame
from ...messages import near_names
from ...models import (
    ContextDistillation,
    ContextInvariance,
    ContextTerm,
    CounterfactualClassifier,
    CounterfactualCrossEntropy,
    CounterfactualDistillation,
    Distillation,
    DualRisk,
    LossTerm,
    MixedCrossEntropy,
    OpenCLIPBackbone,
)
from ...models.class_embeddings.build import resolve_rows
from ...models.class_embeddings.text import resolve_classnames, resolve_templates
from ...models.losses import CARFT, FLYP, L2SP, MPMNCE, CaRot, CaRotImage, LipsumFT, StarFT, check_teacher, find_terms
from ...models.maker import OPTIONS
from ...models.towers.initial_weights import check_file, pretrained_cfgs
from ...models.towers.loading import check_pretrained
from ...models.towers.timm_tower import check_timm_model
from ...precision import multiplies_bfloat16
from ..values import get_value, is_a

OUR_TERMS = (
    CARFT,
    CaRot,
    CaRotImage,
    ContextDistillation,
    ContextInvariance,
    CounterfactualCrossEntropy,
    CounterfactualDistillation,
    Distillation,
    DualRisk,
    FLYP,
    L2SP,
    LipsumFT,
    MPMNCE,
    MixedCrossEntropy,
    StarFT,
)

SLOW_BFLOAT16 = (
    'this CPU has no instructions for bfloat16, so a step takes at least ten times as long as in float32. Leave it out'
)


def check_fill(cfg: Config) -> None:
    """A fill needs at least two images in every batch of a process, the last one of an epoch included.

    Raises:
        ConfigError: Names the keys to change.
    """
    for key, settings in counterfactual_settings(cfg.model).items():
        fill = settings.get('fill', 'single')
        if fill == 'none':
            continue
        where = '' if key == 'model.data_preprocessor' else f'{key}: '
        loader = cfg.train_dataloader
        if loader.batch_size < 2:
            raise ConfigError(
                f'{where}fill={fill!r} takes patches from other images of the batch, but '
                f'train_dataloader.batch_size={loader.batch_size}: raise it to at least 2, or use fill="none"'
            )
        if not loader.get('drop_last'):
            raise ConfigError(
                f'{where}fill={fill!r} takes patches from other images of the batch, but the last '
                'batch of an epoch may hold a single one: set train_dataloader.drop_last=True'
            )
    for index, term in enumerate(cfg.model.get('losses') or ()):
        invariance = is_a(ContextInvariance, term.get('type'), MODELS)
        two_donors = invariance and term.get('target', 'context') == 'context'
        two_donors = two_donors or is_a(ContextDistillation, term.get('type'), MODELS)
        if two_donors and cfg.train_dataloader.batch_size < 3:
            name = 'ContextInvariance' if invariance else 'ContextDistillation'
            raise ConfigError(
                f'model.losses[{index}]: {name} compares two donors of an image, but '
                f'train_dataloader.batch_size={cfg.train_dataloader.batch_size}: raise it to at least 3'
                + (", or use target='clean'" if invariance else '')
            )


def counterfactual_settings(model: dict) -> dict[str, dict]:
    """The settings of the counterfactual images that a model config trains on, by dotted key: of the data preprocessor,
    and of loss terms with images of their own. Empty without such a training."""
    found = {}
    for index, term in enumerate(model.get('losses') or ()):
        own = term.get('counterfactual') if is_a(ContextTerm, term.get('type'), MODELS) else None
        if own is not None:
            found[f'model.losses[{index}].counterfactual'] = own
        elif is_a((CounterfactualDistillation, ContextTerm), term.get('type'), MODELS):
            found['model.data_preprocessor'] = model.get('data_preprocessor') or {}
    return dict(sorted(found.items()))  # the data preprocessor first


def shown_settings(model: dict) -> dict:
    """The settings of the counterfactual images that pictures show: the first that a model config trains on, or those
    of the data preprocessor if it trains on none."""
    return next(iter(counterfactual_settings(model).values()), model.get('data_preprocessor') or {})


def makes_counterfactuals(model: dict) -> bool:
    """Whether a model config trains on counterfactual images."""
    return bool(counterfactual_settings(model))


def check_backbone(model: dict) -> None:
    """Raise a UserError for an image tower that open_clip or timm does not have, for mmpretrain's LoRA, or for a
    missing file of weights."""
    tower = model.get('backbone') or {}
    if is_a(LoRAModel, tower.get('type'), MODELS):
        module, rank = tower.get('module') or {}, tower.get('rank')
        raise ConfigError(
            "model.backbone.type='LoRAModel': mmpretrain's LoRA hides the tower that masks and teacher need. Set the "
            f'tower itself: model.backbone=dict(type={module.get("type")!r}, …, lora=dict(rank={rank}))'
        )
    if is_a(OpenCLIPBackbone, tower.get('type'), MODELS) and tower.get('load', True):
        with blame('model.backbone'):
            check_pretrained(tower.get('model_name'), tower.get('pretrained'))
    if is_a(TIMMBackbone, tower.get('type'), MODELS):
        with blame('model.backbone'):
            check_timm_model(tower.get('model_name'))
            if tower.get('checkpoint_path'):
                check_file(tower['checkpoint_path'], 'checkpoint_path')
    for part in 'backbone', 'neck':
        for cfg in pretrained_cfgs((model.get(part) or {}).get('init_cfg')):
            check_file(cfg['checkpoint'], f'model.{part}.init_cfg.checkpoint')


def check_losses(model: dict) -> None:
    """Raise a ConfigError for what is no loss term, a loss term without the teacher that it needs, or a teacher that no
    term uses."""
    if not is_a(CounterfactualClassifier, model.get('type'), MODELS):
        return
    terms = find_terms(model.get('losses') or [])
    if None not in terms:
        check_teacher(terms, bool(model.get('teacher')))


def warn_of_unused_settings(model: dict) -> None:
    """Log a warning for settings of a distillation that no loss term uses. A term of a user may use them all."""
    terms = [term.get('type') for term in model.get('losses') or ()]
    classes = [MODELS.get(term) if isinstance(term, str) else term for term in terms]
    if any(is_a(LossTerm, term, MODELS) and term not in OUR_TERMS for term in classes):
        return
    distills = any(is_a(Distillation, term, MODELS) for term in terms)
    refills = 'model.data_preprocessor' in counterfactual_settings(model)
    for used, kind, part, keys in (
        (distills, Distillation, 'head', ('distill', 'distill_weight', 'temperature')),
        (refills, CounterfactualDistillation, 'data_preprocessor', (*OPTIONS, 'oracle')),
    ):
        unused = [f'model.{part}.{key}' for key in keys if key in (model.get(part) or {})]
        if unused and not used:
            print_log(
                f'{", ".join(unused)} ha{"s" if len(unused) == 1 else "ve"} no effect, because model.losses has no '
                f"dict(type='{kind.__name__}')",
                'current',
                level=logging.WARNING,
            )


def check_class_names(model: dict) -> None:
    """Raise a UserError for class names or templates that a prompt cannot be made of, or rows of a file that are not
    those of the head's classes."""
    head = model.get('head') or {}
    starts = {name: head.get(name) for name in ('class_weights', 'descriptions')}
    parts = {f'model.head.{name}': start for name, start in starts.items()}
    parts.update({f'model.losses[{index}]': part for index, part in enumerate(model.get('losses') or ())})
    for key, part in parts.items():
        names, templates = ((part or {}).get(name) for name in ('classnames', 'templates'))
        with blame(key):
            if names is not None:
                resolve_classnames(names)
            if templates is not None:
                resolve_templates(templates)
    for name, start in starts.items():
        rows, classes = (start or {}).get('rows'), head.get('num_classes')
        if rows is not None:
            with blame('model.head'):
                if len(resolve_rows(rows)) != classes:
                    raise ConfigError(f'{name}.rows gives {len(resolve_rows(rows))} classes, but num_classes={classes}')


def check_text_tower(model: dict, checkpoint: dict, name: str) -> None:
    """Raise a ConfigError for a checkpoint without the text tower that makes the head (FLYP)."""
    if makes_head(model) and not any(key.startswith('losses.') for key in checkpoint['state_dict']):
        raise ConfigError(
            f'{name} has no text tower, which makes the head (model.losses): give a checkpoint of the training'
        )


def makes_head(model: dict) -> bool:
    """Whether a loss of the model makes the head of its text tower (FLYP)."""
    return any(is_a(FLYP, loss.get('type'), MODELS) for loss in model.get('losses') or ())


def check_classes_of_checkpoint(model: dict, checkpoint: dict, name: str) -> None:
    """Raise a ConfigError for a checkpoint of another number of classes than the head."""
    weight, num_classes = checkpoint['state_dict'].get('head.fc.weight'), (model.get('head') or {}).get('num_classes')
    if weight is not None and num_classes is not None and len(weight) != num_classes:
        raise ConfigError(
            f'{name} was trained for {len(weight)} classes, but the config has model.head.num_classes={num_classes}'
        )


def warn_of_random_weights(cfg: Config) -> None:
    """Log a warning for an image tower without pretrained weights."""
    tower = cfg.model.get('backbone') or {}
    if not tower or _has_weights(tower):
        return
    name = tower.get('model_name') or tower.get('type')
    if is_a(OpenCLIPBackbone, tower.get('type'), MODELS):
        key, remedy = 'pretrained', "Name a tag of open_clip, such as 'openai', or a file"
    else:
        key, remedy = 'init_cfg', "Write init_cfg=dict(type='Pretrained', checkpoint=…)"
    print_log(
        f'{name} starts from random weights, because model.backbone.{key} is not set: there is no robustness to keep. '
        f'{remedy}',
        'current',
        level=logging.WARNING,
    )


def _has_weights(tower: dict) -> bool:
    """Whether a backbone config names weights."""
    named = tower.get('pretrained') or tower.get('checkpoint_path') or ':' in str(tower.get('model_name', ''))
    return bool(named or pretrained_cfgs(tower.get('init_cfg')))


def check_has_weights(cfg: Config) -> None:
    """Raise a ConfigError for a model that would have random weights without a checkpoint."""
    if cfg.model.get('pretrained') or cfg.model.get('init_cfg'):
        return
    tower, head = cfg.model.get('backbone') or {}, cfg.model.get('head') or {}
    if not _has_weights(tower):
        ours = is_a(OpenCLIPBackbone, tower.get('type'), MODELS)
        raise ConfigError(
            'the image tower would have random weights: give a checkpoint, or set model.backbone.'
            + ('pretrained' if ours else "init_cfg=dict(type='Pretrained', checkpoint=…)")
        )
    if not (head.get('class_weights') or head.get('init_cfg')):
        raise ConfigError('the head would have random weights: give a checkpoint, or set model.head.class_weights')


def check_parameter_groups(cfg: Config, model: nn.Module) -> None:
    """Raise a ConfigError for settings of parameters that the model does not have, or learning rates by layer of a
    backbone that does not say its layers."""
    names = [name for name, _ in model.named_parameters()]
    parts = sorted({part for name in names for part in name.split('.')} - {'weight', 'bias'})
    for key in get_value(cfg, 'optim_wrapper.paramwise_cfg.custom_keys') or {}:
        if not any(key in name for name in names):
            raise ConfigError(
                f'optim_wrapper.paramwise_cfg.custom_keys: no parameter of the model has {key!r} in its name.'
                f'{near_names(key, parts)}'
            )
    constructor = get_value(cfg, 'optim_wrapper.constructor')
    if is_a(LearningRateDecayOptimWrapperConstructor, constructor, OPTIM_WRAPPER_CONSTRUCTORS):
        try:
            for name in names:
                model.get_layer_depth(name)
        except NotImplementedError:
            raise ConfigError(
                f'optim_wrapper.constructor={constructor!r}: {type(model.backbone).__name__} does not say which of its '
                'parameters are of one layer: leave the constructor out'
            ) from None


def check_device(cfg: Config) -> None:
    """Raise a ConfigError for a training that needs a GPU, on a machine without one."""
    if get_value(cfg, 'optim_wrapper.type') == 'AmpOptimWrapper' and get_device() == 'cpu':
        raise ConfigError(
            "optim_wrapper.type='AmpOptimWrapper' needs a GPU: use --amp, which is bfloat16 on any device"
        )


def slow_bfloat16(cfg: Config, device: str) -> str | None:
    """Return a warning of bfloat16 on a CPU that has no instructions for it, or None."""
    asked = []
    if (
        get_value(cfg, 'optim_wrapper.type') == 'AutocastOptimWrapper'
        or get_value(cfg, 'val_cfg.amp')
        or get_value(cfg, 'test_cfg.amp')
    ):
        asked.append('--amp')
    if get_value(cfg, 'model.teacher.precision') == 'bf16':
        asked.append("model.teacher.precision='bf16'")
    if not asked or multiplies_bfloat16(device):
        return None
    return f'{" and ".join(asked)}: {SLOW_BFLOAT16}'
