"""A resumed run goes on with the same training."""

from __future__ import annotations

from mmengine.config import Config
from mmengine.hooks import EMAHook
from mmpretrain.registry import HOOKS

from ...errors import ConfigError
from ...renamed import update_model
from ..hooks import DistillWeightHook
from ..values import config_values, is_a, value_of

# What a resumed run cannot change: it goes on with the optimizer, the schedule and the weights of the checkpoint.
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

# But for: where files are, what torch computes the same numbers with, and what the checkpoint has the outcome of.
FREE_IN_A_RESUMED_RUN = ('pretrained', 'cache_dir', 'fused', 'class_weights')


def check_same_run(cfg: Config, checkpoint: dict, name: str) -> None:
    """Raise a ValueError where ``cfg`` would not go on with the training that wrote a checkpoint, but silently mix two.

    The state of the optimizer and of the schedule comes from the checkpoint, so that another learning rate or number of
    epochs would have no effect or a wrong one, and another method would be half of each.
    """
    before, now = (config_values(text) for text in (checkpoint['meta']['cfg'], cfg.pretty_text))
    before['model'] = update_model(before.get('model') or {})
    for values in (before, now):  # of the hooks, those that change what is trained or saved
        values['custom_hooks'] = [
            {key: value for key, value in hook.items() if key not in ('interval', 'priority')}
            for hook in values.get('custom_hooks') or ()
            if is_a((EMAHook, DistillWeightHook), hook['type'], HOOKS)
        ]
    for key in SAME_IN_A_RESUMED_RUN:
        old, new = value_of(before, key), value_of(now, key)
        if old != new:
            if isinstance(old, dict) and isinstance(new, dict):  # name the part that differs
                part = next(part for part in [*old, *new] if old.get(part) != new.get(part))
                key, old, new = f'{key}.{part}', old.get(part), new.get(part)
            raise ConfigError(
                f'{name} was trained with {key} = {old}, but now it is {new}: resume with the same config, or start '
                f'another run from these weights with --cfg-options load_from={name}'
            )
