"""``one_test_set = 'imagenet-r'`` in a config: the variant with this test set alone.

The configs name several test sets. Programs that know one, such as mmpretrain's confusion matrix and t-SNE, read the
config of a child with this line::

    _base_ = __import__('mmcfmask') and 'mmcfmask::cfmask_vitb16.py'
    one_test_set = 'imagenet-r'
"""

from __future__ import annotations

from functools import wraps

from mmengine.config import Config

from ..errors import ConfigError
from ..messages import near_names
from .test_loop import list_metrics


def keep_one_set(cfg: Config) -> None:
    """Make the test of a config the test of its ``one_test_set`` alone, in place, if it has one.

    ``test_dataloader`` becomes the loader of this set, ``test_evaluator`` its metrics, named ``<set>/<metric>``, and
    ``test_cfg`` an :class:`.OneSetTestLoop`. Nothing else changes.

    Raises:
        ConfigError: The config has no such set.
    """
    name = cfg.pop('one_test_set', None)  # a dump of the config is complete
    if name is None:
        return
    loaders = cfg.get('test_dataloader') or {}
    if 'id_set' not in (cfg.get('test_cfg') or {}):
        raise ConfigError(
            f'one_test_set={name!r} chooses one of the named sets of a MultiSetTestLoop; the config has none'
        )
    if not isinstance(name, str) or name not in loaders:
        raise ConfigError(f'one_test_set={name!r} is none of the test sets.{near_names(str(name), list(loaders))}')
    metrics = list_metrics(name, cfg.test_evaluator)
    cfg.test_dataloader = loaders[name]
    cfg.test_evaluator = [dict(metric, prefix=name) for metric in metrics]
    cfg.test_cfg = dict(type='OneSetTestLoop')


def keep_one_set_of_files() -> None:
    """Let ``Config.fromfile`` itself do it, in every program that imports mmcfmask."""
    original = Config.fromfile

    @wraps(original)
    def fromfile(*args, **kwargs) -> Config:
        cfg = original(*args, **kwargs)
        keep_one_set(cfg)
        return cfg

    Config.fromfile = staticmethod(fromfile)
