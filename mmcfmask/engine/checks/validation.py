"""Check that a validation sees all images and has the metrics that others need, and that no shift chooses anything."""

from __future__ import annotations

from collections.abc import Iterable

from mmengine.config import Config
from mmpretrain.registry import METRICS

from ...errors import ConfigError
from ...evaluation import ShiftAccuracy
from ..test_loop import list_metrics, refuse_choice_by_shift
from ..values import get_value, is_a
from .parts import named_loaders


def check_validation(cfg: Config) -> None:
    """Check the validation of a training, and what chooses by its metrics: checkpoints, early stopping, schedules.

    Raises:
        ConfigError: ``drop_last``; a validation that would start after the last epoch; a ``monitor`` or ``save_best``
            that is no metric of the validation (as far as the metrics are known), or a metric of a shift.
    """
    check_all_images(cfg, 'val')
    loop = cfg.get('train_cfg') or {}
    begin, last = loop.get('val_begin', 1), loop.get('max_epochs', loop.get('max_iters', 1))
    if cfg.get('val_dataloader') and begin > last:
        raise ConfigError(
            f'train_cfg.val_begin={begin}: a training that ends at {last} would never be validated. To train without '
            'validation, use --no-validate'
        )
    known = _known_metrics(cfg)
    for key, part in _named_parts(cfg).items():
        monitor = (part or {}).get('monitor')
        if monitor is None:
            continue
        if not cfg.get('val_dataloader'):
            raise ConfigError(f'{key}.monitor={monitor!r}: there is no validation that could give it')
        if known is not None and monitor not in known:
            raise ConfigError(
                f'{key}.monitor={monitor!r}: the validation has no such metric; its metrics are {", ".join(known)}'
            )
    if cfg.get('val_dataloader'):
        _check_choice(cfg, known)


def check_all_images(cfg: Config, mode: str, names: Iterable[str] | None = None) -> None:
    """Raise a ConfigError for a validation or a test that would leave out the last images of a set.

    Args:
        cfg (Config): The config.
        mode (str): 'val' or 'test'.
        names (Iterable[str], optional): The sets to check. None: all.
    """
    for key, loader in named_loaders(cfg, mode).items():
        if loader.get('drop_last') and (names is None or key.partition('.')[2] in ('', *names)):
            raise ConfigError(f'{key}.drop_last=True would leave out images: set it to False')


def _check_choice(cfg: Config, known: list[str] | None) -> None:
    """Check that checkpoints are chosen by a metric of the validation, and nothing by a shift."""
    loop = cfg.get('val_cfg') or {}
    if loop.get('id_set'):
        parts = [cfg.get('default_hooks'), cfg.get('custom_hooks'), cfg.get('param_scheduler')]
        refuse_choice_by_shift(parts, loop.id_set, list(cfg.val_dataloader))
    chosen = get_value(cfg, 'default_hooks.checkpoint.save_best')
    for name in [chosen] if isinstance(chosen, str) else chosen or []:
        if known is not None and name != 'auto' and name not in known:
            raise ConfigError(
                f'default_hooks.checkpoint.save_best={name!r}: the validation has no such metric; its metrics are '
                f'{", ".join(known)}'
            )


def _named_parts(cfg: Config) -> dict[str, dict]:
    """Return the hooks and schedules of a config by dotted key."""
    parts = {f'default_hooks.{name}': hook for name, hook in (cfg.get('default_hooks') or {}).items()}
    for key in ('custom_hooks', 'param_scheduler'):
        value = cfg.get(key) or []
        parts.update({key: value} if isinstance(value, dict) else {f'{key}[{i}]': part for i, part in enumerate(value)})
    return parts


def _known_metrics(cfg: Config) -> list[str] | None:
    """Return the names of all metrics of the validation; None if one of them is not of this package."""
    loop, evaluator = cfg.get('val_cfg') or {}, cfg.get('val_evaluator')
    sets = list(cfg.val_dataloader) if loop.get('id_set') else [None]
    known = []
    for name in sets:
        metrics = (
            list_metrics(name, evaluator, 'val') if name else evaluator if isinstance(evaluator, list) else [evaluator]
        )
        for metric in metrics:
            if not metric or not is_a(ShiftAccuracy, metric.get('type'), METRICS):
                return None
            prefix = name or metric.get('prefix') or ShiftAccuracy.default_prefix
            kind = METRICS.get(metric['type']) if isinstance(metric['type'], str) else metric['type']
            known += [f'{prefix}/{key}' for key in kind.NAMES]
    return list(dict.fromkeys(known))
