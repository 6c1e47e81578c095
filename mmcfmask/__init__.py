"""Robust fine-tuning of CLIP with counterfactual masked images, as an extension of MMPretrain.

Importing this package registers its components and lets configs inherit from ``mmcfmask::…``.
"""

from importlib.util import find_spec

if find_spec('mmcv') is None:  # no requirement of the package: mmcv and mmcv-lite must not be installed over each other
    raise ModuleNotFoundError(
        "mmcfmask needs mmcv: `pip install 'mmcfmask[lite]'` installs mmcv-lite, which is enough; "
        '`mim install mmcv` installs a full mmcv',
        name='mmcv',
    )

from . import compat, datasets, engine, evaluation, models  # noqa: F401  registration
from .apis import inference_config, load_model
from .counterfactual import patch_mask, refill, relevance_map
from .version import __version__

compat.allow_config_inheritance()
compat.drop_leftover_deletes()
compat.register_clip_projection()
compat.infer_by_the_pipeline()
compat.silence_file_client()
compat.build_datasets_without_garbage_collection()
compat.keep_checkpoints_plain()
compat.write_configs_whole()
compat.read_yaml_safely()
engine.shared.share_between_files()
engine.one_set.keep_one_set_of_files()
compat.reread_config_that_imports()

__all__ = ['__version__', 'inference_config', 'load_model', 'patch_mask', 'refill', 'relevance_map']
