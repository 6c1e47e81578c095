"""Models for tests and for inference: from a config and a checkpoint to a classifier with its weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from mmengine.config import Config
from mmpretrain.models.backbones import TIMMBackbone
from mmpretrain.registry import DATASETS, MODELS
from torch import nn

from ..compat import loads_file
from ..datasets import FolderDataset, ZeroShotDataset
from ..datasets.holdout import follow_run
from ..datasets.wrappers import inner_configs
from ..errors import ConfigError, blame
from ..models import VRF, CounterfactualClassifier, OpenCLIPBackbone
from ..models.inference.relevance_crop import check_crop_scale
from ..models.towers.adapters import forget_adapters, holds_adapters, remove_adapters, uses_adapters
from .checkpoints import check_checkpoint, check_same_tower, check_state_dict
from .checks import check_testing
from .checks.model import check_has_weights, makes_head
from .config import load_config
from .hub import published_checkpoint
from .soup import SOUPS
from .test_loop import find_sets
from .values import is_a

GATES = dict(KNNGate='k-NN gate', VRF='VRF')
"""Types of ``model.knn_gate``, and how tables call them."""


def prepare_test(
    cfg: Config,
    checkpoint: str | None = None,
    shifts: list[str] | None = None,
    skip_broken: bool = False,
    amp: bool = False,
    keep_pretrained: bool = False,
    data: bool = True,
) -> dict | None:
    """Prepare a config for a test on several sets, in place, and check it before anything is built.

    Args:
        cfg (Config): Its test loop is a :class:`MultiSetTestLoop`.
        checkpoint (str, optional): The file to test. None: the pretrained weights.
        shifts (list[str], optional): Test on these shifts and the ID set; a missing one is an error. None: the shifts
            of the config.
        skip_broken (bool): Leave out images that cannot be read.
        amp (bool): bfloat16 autocast.
        keep_pretrained (bool): Keep the pretrained weights beside the checkpoint's, as WiSE-FT needs them.
        data (bool): Look for the images of the test sets too.

    Returns:
        dict, optional: The checkpoint.

    Raises:
        ConfigError: Another kind of test, an unknown shift, a set that cannot leave images out, or a checkpoint that
            does not fit.
        MissingFileError: There is no such checkpoint.
    """
    loop = cfg.get('test_cfg') or {}
    loop['amp'] = amp
    if shifts is not None:
        loop['shifts'] = shifts
        loop['skip_missing'] = [loop.get('id_set')] if loop.get('skip_missing') else False
    loaded = check_testing(cfg, checkpoint, keep_pretrained, data)
    for name in find_sets(cfg, 'test') if skip_broken else ():
        for dataset in inner_configs(cfg.test_dataloader[name].dataset):
            if not is_a(FolderDataset, dataset.type, DATASETS):
                raise ConfigError(
                    f'the test set {name} is a {dataset.type}, which cannot leave out broken images (a FolderDataset '
                    'can)'
                )
            dataset.skip_unreadable = True
    cfg.load_from = checkpoint
    cfg.resume = False
    fit_adapters(cfg.model, loaded)
    follow_run(cfg, ((loaded or {}).get('meta') or {}).get('seed', (cfg.get('randomness') or {}).get('seed')))
    if not (keep_pretrained and makes_head(cfg.model)):
        forget_training(cfg.model)
    pretrained = bool(cfg.model.get('knn_gate')) or compares_with_pretrained(cfg)
    if loaded is not None and not keep_pretrained and not pretrained:
        skip_pretrained_weights(cfg.model)
    return loaded


def inference_config(
    path: str, checkpoint: str | None = None, options: Mapping[str, Any] | Sequence[str] | None = None
) -> Config:
    """Make a config for mmpretrain's ``get_model`` and ``ImageClassificationInferencer``.

    They expect one test set, which is the ID set here. The model loads its weights when it is built, the pipeline reads
    an image file, and ``classes`` holds the class names.

    Args:
        path (str): A config file that tests on several sets.
        checkpoint (str, optional): The weights. None: the pretrained ones.
        options: Overrides, as of ``--cfg-options``.

    Returns:
        Config: For ``get_model(cfg)`` or ``ImageClassificationInferencer(cfg)``.

    Raises:
        ConfigError: See :func:`load_config` and :func:`prepare_test`; or there is neither a checkpoint nor pretrained
            weights.
        MissingFileError: There is no such config or checkpoint.

    Example:
        >>> inferencer = ImageClassificationInferencer(inference_config('configs/cfmask_vitb16.py', 'best.pth'))
        >>> inferencer('photo.jpg')
    """
    checkpoint = published_checkpoint(checkpoint, path)
    cfg = load_config(path, options or {})
    loaded = prepare_test(cfg, checkpoint, data=False)
    if checkpoint is None:
        check_has_weights(cfg)
    cfg.test_dataloader = cfg.test_dataloader[cfg.test_cfg.id_set]
    dataset = next(inner_configs(cfg.test_dataloader.dataset))
    cfg.test_dataloader.dataset = dataset
    cfg.classes = find_class_names([dataset], loaded)
    dataset.pipeline = make_file_pipeline(dataset, cfg.model)
    cfg.model = dict(type='ModelWithWeights', model=cfg.model, checkpoint=checkpoint)
    return cfg


@MODELS.register_module()
def ModelWithWeights(model: dict, checkpoint: str | None = None, data_preprocessor: None = None) -> nn.Module:  # noqa: N802
    """Build a model and load its weights, for programs that build a config and load none, such as ``get_model``.
    Adapters are merged.

    Args:
        model: The ``model`` of a config.
        checkpoint: Its weights. None: the pretrained ones.
        data_preprocessor: Ignored. ``get_model`` adds ``data_preprocessor=None`` to every config.

    Returns:
        nn.Module: The classifier.

    Raises:
        ConfigError: The checkpoint does not fit the model.
        MissingFileError: There is no such checkpoint.
    """
    built = MODELS.build(model)
    loaded = None if checkpoint is None else check_checkpoint(checkpoint)
    load_weights(built, loaded, checkpoint)
    remove_adapters(built, merge=True)
    return built


def find_class_names(datasets: Sequence[dict], checkpoint: dict | None = None) -> Sequence[str] | None:
    """Find the class names of a model.

    Args:
        datasets (Sequence[dict]): Configs of data sets. The classes of a wrapper are those of its first set.
        checkpoint (dict, optional): From :func:`check_checkpoint`.

    Returns:
        Sequence[str], optional: The names in the checkpoint, or else in the first data set that has names of its own
        or has its images on this machine, in folders with names. None if there are none.
    """
    datasets = [next(inner_configs(dataset)) for dataset in datasets]
    names = (((checkpoint or {}).get('meta') or {}).get('dataset_meta') or {}).get('classes')
    for dataset in datasets:
        names = names or getattr(DATASETS.get(dataset['type']), 'METAINFO', {}).get('classes')
    for dataset in datasets if names is None else ():
        with suppress(OSError, ValueError, RuntimeError):
            return DATASETS.build({**dataset, 'pipeline': []}).metainfo.get('classes')
    return names


def make_file_pipeline(dataset: dict, model: dict) -> list[dict]:
    """Make a pipeline that begins with an image file, also for a data set that renders its images.

    Args:
        dataset (dict): Config of a data set.
        model (dict): Config of a model; its data preprocessor knows the order of channels that the set gives.

    Returns:
        list[dict]: Configs of transforms.
    """
    if any(loads_file(step) for step in dataset.pipeline):
        return dataset.pipeline
    height, width = DATASETS.build({**dataset, 'pipeline': []})[0]['img'].shape[:2]
    order = (
        []
        if (model.get('data_preprocessor') or {}).get('to_rgb')
        else [dict(type='NumpyToPIL', to_rgb=True), dict(type='PILToNumpy')]
    )
    return [
        dict(type='LoadImageFromFile', imdecode_backend='pillow', color_type='color_ignore_orientation'),
        dict(type='ResizeEdge', scale=min(height, width), edge='short', backend='pillow', interpolation='bicubic'),
        dict(type='CenterCrop', crop_size=(width, height)),
        *order,
        *dataset.pipeline,
    ]


def add_gate(cfg: Config, kind: Literal['KNNGate', 'VRF'] = 'KNNGate') -> None:
    """Add a :class:`mmcfmask.models.KNNGate` or :class:`mmcfmask.models.VRF` to the model of a config, in place.

    It uses the training and the validation images, unless ``cfg.model.knn_gate`` names others.

    Raises:
        ConfigError: The model takes no gate or has one of another kind, or the config has no such images.
    """
    name = dict(KNNGate='the k-NN gate', VRF='VRF')[kind]
    if not is_a(CounterfactualClassifier, cfg.model.type, MODELS):
        raise ConfigError(f'{name} needs a CounterfactualClassifier, but model.type={cfg.model.type!r}')
    gate = dict(cfg.model.get('knn_gate') or {})
    if kind == 'VRF':
        gate.setdefault('type', kind)
    if gate_kind(gate) != kind:
        raise ConfigError(f'{name} was asked for, but model.knn_gate.type={gate.get("type")!r}: leave one of them out')
    for part, loader in dict(dataset='train_dataloader', held_out='val_dataloader').items():
        if 'type' in (gate.get(part) or {}):
            continue
        images = cfg.get(loader) or {}
        if 'dataset' not in images:
            raise ConfigError(
                f'{name} needs training and validation images, but the config has no {loader}.dataset: use a '
                f'config that has it, or set model.knn_gate.{part}'
            )
        gate[part] = {**copy.deepcopy(images.dataset), **(gate.get(part) or {})}
    cfg.model.knn_gate = gate


def gate_kind(gate: dict) -> str:
    """Which of :data:`GATES` a ``model.knn_gate`` is."""
    return 'VRF' if is_a(VRF, gate.get('type'), MODELS) else 'KNNGate'


def add_relevance_crop(cfg: Config, scale: float) -> None:
    """Let the model of a config also predict from the relevant part of an image, in place.

    Args:
        cfg (Config): The config.
        scale (float): See :func:`mmcfmask.models.inference.relevance_crop.predict_with_crop`.

    Raises:
        ConfigError: The model cannot, or the scale is out of range.
    """
    if not is_a(CounterfactualClassifier, cfg.model.type, MODELS):
        raise ConfigError(f'the relevance crop needs a CounterfactualClassifier, but model.type={cfg.model.type!r}')
    with blame('--relevance-crop'):
        check_crop_scale(scale)
    cfg.model.crop_scale = scale


def name_method(config: str, model: dict, checkpoint: dict | None) -> str:
    """Name a test for tables and reports, in the words of studies.

    The name consists of the trained config, what was made of its weights (WiSE-FT, a soup), and how they were tested
    (k-NN gate or VRF, relevance crop).

    Args:
        config (str): Path of the config.
        model (dict): The model as it was tested.
        checkpoint (dict, optional): The tested checkpoint; a published one has its name. Without one nothing was
            trained, and the config is called 'zero-shot', or 'LP' if its head is a linear probe.

    Returns:
        str: Such as 'ft + WiSE-FT + k-NN gate'.
    """
    meta = (checkpoint or {}).get('meta') or {}
    weights = ((model.get('head') or {}).get('class_weights') or {}).get('type')
    parts = [Path(config).stem if checkpoint else 'LP' if weights == 'linear_probe' else 'zero-shot']
    if published := meta.get('method'):  # it says what was made of the weights
        parts = [published]
    else:
        parts += ['WiSE-FT'] if meta.get('wise_ft_alpha') is not None else []
        parts += [SOUPS.get(meta['soup'], f'{meta["soup"]} soup')] if meta.get('soup') else []
    gate = model.get('knn_gate')
    ways = [GATES[gate_kind(gate)]] if gate else []
    ways += ['relevance crop'] if model.get('crop_scale') else []
    if ways:
        parts.append(' and '.join(ways))
    return ' + '.join(parts)


def compares_with_pretrained(cfg: Config) -> bool:
    """Whether a test has sets with classes of their own, on which the pretrained tower answers too."""
    return any(
        is_a(ZeroShotDataset, cfg.test_dataloader[name].dataset.get('type'), DATASETS)
        for name in find_sets(cfg, 'test') or ()
    )


def forget_training(model: dict) -> None:
    """Drop what only a training needs from a model config, in place."""
    for part in ('teacher', 'losses'):
        model.pop(part, None)


def fit_adapters(model: dict, checkpoint: dict | None) -> None:
    """Drop the adapters from a model config, in place, for a checkpoint that holds merged weights.

    Args:
        model (dict): The ``model`` of a config.
        checkpoint (dict, optional): From :func:`check_checkpoint`. None: the pretrained weights, which have no use for
            adapters either, but WiSE-FT compares them with a model that has.
    """
    if checkpoint is not None and uses_adapters(model) and not holds_adapters(checkpoint['state_dict']):
        forget_adapters(model)


def skip_pretrained_weights(model: dict) -> None:
    """Make a model config load no weights, in place: a checkpoint will bring them all. With adapters, it brings the
    head alone, and the weights of the tower are loaded."""
    forget_training(model)
    model.pop('knn_gate', None)  # it needs the pretrained weights
    if uses_adapters(model):
        model['head']['class_weights'] = None
        return
    for part, setting in (
        ('head', 'class_weights'),
        ('head', 'descriptions'),
        ('backbone', 'init_cfg'),
        ('neck', 'init_cfg'),
    ):
        if model.get(part) and model[part].get(setting):
            model[part][setting] = None
    if model.get('backbone') and model.backbone.get('pretrained'):
        if is_a(OpenCLIPBackbone, model.backbone.type, MODELS):
            model.backbone.load = False  # `pretrained` still decides the activation
        elif is_a(TIMMBackbone, model.backbone.type, MODELS):
            model.backbone.pretrained = False
        else:
            model.backbone.pretrained = None
    if model.get('backbone'):
        model.backbone.pop('checkpoint_path', None)


def build_model(cfg: dict, checkpoint: dict | None = None, name: str | None = None) -> nn.Module:
    """Build a classifier for inference: in eval mode, without a teacher, with its weights.

    Args:
        cfg (dict): The ``model`` of a config. It is changed.
        checkpoint (dict, optional): From :func:`check_checkpoint`. None: the pretrained weights.
        name (str, optional): Path of the checkpoint, for errors.

    Returns:
        nn.Module: The classifier.

    Raises:
        ConfigError: The checkpoint does not fit the model.
    """
    ours = cfg.type == 'CounterfactualClassifier'
    if checkpoint is not None:
        check_same_tower(cfg, checkpoint, name)
        fit_adapters(cfg, checkpoint)
    if ours and checkpoint is not None:
        skip_pretrained_weights(cfg)
    elif ours:
        forget_training(cfg)
    model = MODELS.build(cfg).eval()
    load_weights(model, checkpoint, name)
    return model


def load_weights(model: nn.Module, checkpoint: dict | None, name: str | None = None) -> None:
    """Load a checkpoint, or else the pretrained weights, into a model.

    Args:
        model (nn.Module): The model.
        checkpoint (dict, optional): From :func:`check_checkpoint`. None: the pretrained weights.
        name (str, optional): Path of the checkpoint, for errors.

    Raises:
        ConfigError: The checkpoint does not fit the model.
    """
    if checkpoint is not None:
        check_state_dict(model, checkpoint, name)
        model.load_state_dict(checkpoint['state_dict'], strict=False)
    elif not isinstance(model, CounterfactualClassifier):  # it has them since it was built
        model.init_weights()
