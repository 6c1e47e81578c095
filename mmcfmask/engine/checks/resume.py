"""Check that a resumed run continues the same training."""

from __future__ import annotations

from collections.abc import Sequence

from mmengine.config import Config
from mmengine.hooks import EMAHook
from mmpretrain.registry import HOOKS

from ...errors import ConfigError
from ...renamed import update_model
from ..hooks import DistillWeightHook
from ..values import get_value, is_a, parse_config_text

# Settings that a resumed run cannot change: it continues with the optimizer, schedule and weights of the checkpoint.
SAME_IN_A_RESUMED_RUN = (
    'randomness.seed',
    'custom_hooks',
    'train_cfg.max_epochs',
    'total_batch_size',
    'optim_wrapper.optimizer',
    'optim_wrapper.clip_grad',
    'param_scheduler',
    'model.backbone.model_name',
    'model.head',
    'model.teacher',
    'model.losses',
    'model.data_preprocessor',
)

# Exceptions: paths, equivalent kernels, and inputs whose result is in the checkpoint.
FREE_IN_A_RESUMED_RUN = ('pretrained', 'cache_dir', 'fused', 'class_weights', 'descriptions')


def check_same_run(cfg: Config, checkpoint: dict, name: str, free: Sequence[str] = ()) -> None:
    """Raise a ConfigError if ``cfg`` differs from the training that wrote a checkpoint, so that resuming would mix two
    trainings.

    The state of the optimizer and the schedule comes from the checkpoint. Another learning rate or number of epochs
    would have no effect, or a wrong one.

    Args:
        cfg (Config): The config of the resumed run.
        checkpoint (dict): From :func:`mmcfmask.engine.checkpoints.check_checkpoint`.
        name (str): Its path, for errors.
        free (Sequence[str]): Keys that may differ.
    """
    before, now = (
        parse_config_text(text, FREE_IN_A_RESUMED_RUN) for text in (checkpoint['meta']['cfg'], cfg.pretty_text)
    )
    before['model'] = update_model(before.get('model') or {})
    for values in (before, now):  # keep only the hooks that change the weights
        values['custom_hooks'] = [
            {key: value for key, value in hook.items() if key not in ('interval', 'priority')}
            for hook in values.get('custom_hooks') or ()
            if is_a((EMAHook, DistillWeightHook), hook['type'], HOOKS)
        ]
    for key in SAME_IN_A_RESUMED_RUN:
        if key in free:
            continue
        old, new = get_value(before, key), get_value(now, key)
        if old != new:
            if isinstance(old, dict) and isinstance(new, dict):  # name the part that differs
                part = next(part for part in [*old, *new] if old.get(part) != new.get(part))
                key, old, new = f'{key}.{part}', old.get(part), new.get(part)
            raise ConfigError(
                f'{name} was trained with {key} = {old}, but now it is {new}: resume with the same config, or start '
                f'another run from these weights with --cfg-options load_from={name}'
            )
