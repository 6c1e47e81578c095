"""Checks before a run: everything a user may have got wrong ends in one clear line before a model is built."""

from __future__ import annotations

from mmengine.config import Config

from ...errors import ConfigError
from ..checkpoints import check_checkpoint, check_same_tower, check_schedules
from ..test_loop import find_sets
from ..values import get_value
from .data import check_test_data, check_training_data
from .leakage import check_leakage
from .model import (
    check_backbone,
    check_class_names,
    check_classes_of_checkpoint,
    check_device,
    check_fill,
    check_losses,
    check_text_tower,
)
from .outputs import check_out, check_work_dir
from .parts import check_parts
from .resume import check_same_run
from .schema import check_schema
from .validation import check_all_images, check_validation

__all__ = ['check_config', 'check_out', 'check_testing', 'check_training', 'check_work_dir']


def check_config(cfg: Config, complete: bool = False) -> None:
    """Check the values of a config and build its small parts; :func:`mmcfmask.engine.config.load_config` does so.

    Args:
        cfg (Config): The config.
        complete (bool): A run follows, so whatever is missing for it is an error too.

    Raises:
        ConfigError: Names the key, its value and the possible values.
    """
    check_schema(cfg, complete)
    check_parts(cfg)


def check_training(cfg: Config, keep_seed: bool = True) -> dict | None:
    """Check a training before anything is built, the cheapest checks first.

    Args:
        cfg (Config): From ``load_config(…, complete=True)``, with all arguments of the command line applied.
        keep_seed (bool): A resumed run must have the seed of its checkpoint. If False, the caller takes that seed.

    Returns:
        dict, optional: The checkpoint that ``cfg.load_from`` names.

    Raises:
        UserError: Names the key or the file, and what to do.
    """
    if cfg.get('train_cfg') is None:
        raise ConfigError('there is nothing to train (no train_cfg): use tools/test.py')
    for mode in ('val', 'test'):
        find_sets(cfg, mode)  # all names are known
    check_device(cfg)
    out_dir = get_value(cfg, 'default_hooks.checkpoint.out_dir')
    if out_dir:
        check_work_dir(out_dir, 'folder', 'default_hooks.checkpoint.out_dir')
    check_backbone(cfg.model)
    check_losses(cfg.model)
    check_class_names(cfg.model)
    check_fill(cfg)
    check_validation(cfg)
    check_training_data(cfg)
    check_leakage(cfg)
    path, resume = cfg.get('load_from'), cfg.get('resume', False)
    if not path:
        return None
    checkpoint = check_checkpoint(path, resume)
    check_same_tower(cfg.model, checkpoint, path)
    if resume:
        check_schedules(cfg, checkpoint, path)
        check_same_run(cfg, checkpoint, path, free=() if keep_seed else ('randomness.seed',))
    return checkpoint


def check_testing(
    cfg: Config, checkpoint: str | None = None, keep_pretrained: bool = False, data: bool = True
) -> dict | None:
    """Check a test before anything is built, the cheapest checks first.

    Args:
        cfg (Config): The config of a test on several sets.
        checkpoint (str, optional): The file to test. None: the pretrained weights.
        keep_pretrained (bool): The pretrained weights are needed besides the weights of the checkpoint.
        data (bool): Look for the images of the test sets too.

    Returns:
        dict, optional: The checkpoint.

    Raises:
        UserError: Names the key or the file, and what to do.
    """
    if 'id_set' not in (cfg.get('test_cfg') or {}):
        raise ConfigError(
            "the config must test by test_cfg=dict(type='MultiSetTestLoop', id_set=…), with a dict of named sets as "
            'test_dataloader; one_test_set is for programs that know one set (choose sets by --shifts here)'
        )
    check_all_images(cfg, 'test', find_sets(cfg))
    if checkpoint is None or keep_pretrained or cfg.model.get('knn_gate'):
        check_backbone(cfg.model)
    loaded = None if checkpoint is None else check_checkpoint(checkpoint)
    if loaded is None:
        check_class_names(cfg.model)
    else:
        if keep_pretrained:
            check_text_tower(cfg.model, loaded, checkpoint)
        check_same_tower(cfg.model, loaded, checkpoint)
        check_classes_of_checkpoint(cfg.model, loaded, checkpoint)
    if data:
        check_test_data(cfg)
        seed = None if loaded is None else loaded['meta'].get('seed')
        check_leakage(cfg, training=False, seed=seed)
    return loaded
