"""From a config and a checkpoint to a model that is tested."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from mmengine.config import Config
from mmpretrain.registry import DATASETS, MODELS
from torch import nn

from ..compat import (
    loads_file,
)
from ..datasets import FolderDataset
from ..datasets.holdout import follow_run
from ..errors import ConfigError, blame
from ..models import CounterfactualClassifier, OpenCLIPBackbone
from ..models.inference.relevance_crop import check_crop_scale
from .build import usable_cores
from .checkpoints import check_checkpoint, check_same_tower, check_state_dict
from .checks import check_testing
from .checks.model import check_has_weights, makes_head
from .config import load_config
from .test_loop import find_sets
from .values import is_a


def prepare_test(
    cfg: Config,
    checkpoint: str | None = None,
    shifts: list[str] | None = None,
    skip_broken: bool = False,
    amp: bool = False,
    keep_pretrained: bool = False,
    data: bool = True,
) -> dict | None:
    """Edit a config for a test on several sets, and find what is wrong before anything is loaded.

    Args:
        cfg (Config): With a :class:`MultiSetTestLoop`.
        checkpoint (str, optional): The file to test.
        shifts (list[str], optional): Test on these and on the ID set; their data must be there. None: as the config
            says.
        skip_broken (bool): Leave out images that cannot be read.
        amp (bool): bfloat16 autocast.
        keep_pretrained (bool): Keep the pre-trained weights besides those of the checkpoint, as WiSE-FT needs them.
        data (bool): Look for the images of the test sets too.

    Returns:
        dict, optional: The checkpoint.

    Raises:
        ValueError: Another kind of test, an unknown shift, a set that cannot leave images out, a checkpoint of another
            number of classes.
        FileNotFoundError: No such checkpoint.
    """
    loop = cfg.get('test_cfg') or {}
    loop['amp'] = amp
    if shifts is not None:
        loop['shifts'] = shifts
        loop['skip_missing'] = [loop.get('id_set')] if loop.get('skip_missing') else False
    loaded = check_testing(cfg, checkpoint, keep_pretrained, data)
    for name in find_sets(cfg, 'test') if skip_broken else ():
        dataset = cfg.test_dataloader[name].dataset
        if not is_a(FolderDataset, dataset.type, DATASETS):
            raise ConfigError(
                f'the test set {name} is a {dataset.type}, which cannot leave out broken images (a FolderDataset can)'
            )
        dataset.skip_unreadable = True
    cfg.load_from = checkpoint
    cfg.resume = False
    follow_run(cfg, ((loaded or {}).get('meta') or {}).get('seed', (cfg.get('randomness') or {}).get('seed')))
    if not (keep_pretrained and makes_head(cfg.model)):
        forget_training(cfg.model)
    if loaded is not None and not keep_pretrained and not cfg.model.get('knn_gate'):
        skip_pretrained_weights(cfg.model)
    return loaded


def inference_config(path: str, checkpoint: str | None = None, options: dict | None = None) -> Config:
    """A config for mmpretrain's ``get_model`` and ``ImageClassificationInferencer``, which look for one test set: that
    in distribution.

    Its model has its weights whoever builds it, its pipeline begins with an image file, and ``classes`` are the names
    of the classes.

    Args:
        path (str): A config file that tests on several sets.
        checkpoint (str, optional): The weights. None: the pre-trained ones.
        options (dict, optional): As ``--cfg-options``.

    Raises:
        FileNotFoundError, ValueError: As of :func:`load_config` and :func:`prepare_test`; without a checkpoint, a
            config that names no pre-trained weights.

    Example:
        >>> inferencer = ImageClassificationInferencer(inference_config('configs/cfmask_vitb16.py', 'best.pth'))
        >>> inferencer('photo.jpg')
    """
    cfg = load_config(path, options or {})
    loaded = prepare_test(cfg, checkpoint, data=False)
    if checkpoint is None:
        check_has_weights(cfg)
    cfg.test_dataloader = cfg.test_dataloader[cfg.test_cfg.id_set]
    dataset = cfg.test_dataloader.dataset
    while 'pipeline' not in dataset and (
        'dataset' in dataset or 'datasets' in dataset
    ):  # a wrapper, of sets that are read alike
        dataset = dataset.get('dataset') or dataset.datasets[0]
    cfg.test_dataloader.dataset = dataset
    cfg.classes = class_names([dataset], loaded)
    dataset.pipeline = file_pipeline(dataset, cfg.model)
    cfg.model = dict(type='ModelWithWeights', model=cfg.model, checkpoint=checkpoint)
    return cfg


@MODELS.register_module()
def ModelWithWeights(model: dict, checkpoint: str | None = None, data_preprocessor: None = None) -> nn.Module:  # noqa: N802
    """A model of a config with the weights it is tested with, for those who build configs and load no weights, as
    ``get_model`` does.

    Args:
        model: The ``model`` of a config.
        checkpoint: Its weights. None: the pre-trained ones.
        data_preprocessor: ``get_model`` puts one that is None into every config; that of ``model`` counts.

    Raises:
        FileNotFoundError, ValueError: No such checkpoint, or one that does not fit the model.
    """
    built = MODELS.build(model)
    loaded = None if checkpoint is None else check_checkpoint(checkpoint)
    load_weights(built, loaded, checkpoint)
    return built


def class_names(datasets: Sequence[dict], checkpoint: dict | None = None) -> Sequence[str] | None:
    """Names of a model's classes: those in a checkpoint, else of the first data set that has names of its own, or has
    its images at hand, whose folders have names. None where there are none.

    Args:
        datasets: Configs.
        checkpoint: From :func:`check_checkpoint`.
    """
    names = (((checkpoint or {}).get('meta') or {}).get('dataset_meta') or {}).get('classes')
    for dataset in datasets:
        names = names or getattr(DATASETS.get(dataset['type']), 'METAINFO', {}).get('classes')
    for dataset in datasets if names is None else ():
        with suppress(OSError, ValueError, RuntimeError):
            return DATASETS.build({**dataset, 'pipeline': []}).metainfo.get('classes')
    return names


def file_pipeline(dataset: dict, model: dict) -> list[dict]:
    """The pipeline of a data set from image files on, also of one that renders its images.

    Args:
        dataset: Config of a data set.
        model: Config of a model, whose data preprocessor says in which order of channels the set gives its images.
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


def add_gate(cfg: Config) -> None:
    """Give the model of ``cfg`` a :class:`mmcfmask.models.KNNGate` of its training and validation images, in place,
    with what ``cfg.model.knn_gate`` says already.

    Raises:
        ValueError: The model cannot have one, or the config has no such images.
    """
    if not is_a(CounterfactualClassifier, cfg.model.type, MODELS):
        raise ConfigError(f'a gate needs a CounterfactualClassifier, but model.type={cfg.model.type!r}')
    gate = dict(cfg.model.get('knn_gate') or {})
    for part, loader in dict(dataset='train_dataloader', held_out='val_dataloader').items():
        if 'type' in (gate.get(part) or {}):
            continue
        images = cfg.get(loader) or {}
        if 'dataset' not in images:
            raise ConfigError(
                f'a gate is made of the training and the validation images, but the config has no {loader}.dataset: '
                f'use one that has, or set model.knn_gate.{part}'
            )
        gate[part] = {**copy.deepcopy(images.dataset), **(gate.get(part) or {})}
        gate.setdefault('num_workers', min(images.get('num_workers', 0), usable_cores()))
    cfg.model.knn_gate = gate


def add_second_look(cfg: Config, side: float) -> None:
    """Let the model of ``cfg`` predict by two looks, in place; see
    :func:`mmcfmask.models.inference.relevance_crop.predict_with_crop`.

    Raises:
        ValueError: The model cannot, or ``side`` is out of range.
    """
    if not is_a(CounterfactualClassifier, cfg.model.type, MODELS):
        raise ConfigError(f'a second look needs a CounterfactualClassifier, but model.type={cfg.model.type!r}')
    with blame('second look'):
        check_crop_scale(side)
    cfg.model.crop_scale = side


def method_name(config: str, model: dict, checkpoint: dict | None) -> str:
    """What a test is called in tables and reports; the words are those of studies.

    The name of the config that was trained, with what was made of its weights and with what they were tested. Without a
    checkpoint nothing of the config was trained: it is 'zero-shot', or 'LP' where the head is a linear probe.

    Args:
        config (str): Path of the config.
        model (dict): The model as it was tested.
        checkpoint (dict, optional): What was tested.
    """
    meta = (checkpoint or {}).get('meta') or {}
    start = ((model.get('head') or {}).get('class_weights') or {}).get('type')
    name = Path(config).stem if checkpoint else 'LP' if start == 'linear_probe' else 'zero-shot'
    made = [
        *(['WiSE-FT'] if meta.get('wise_ft_alpha') is not None else []),
        *([f'{meta["soup"]} soup'] if meta.get('soup') else []),
    ]
    ways = [words for part, words in dict(knn_gate='k-NN gate', crop_scale='relevance crop').items() if model.get(part)]
    return ' + '.join([name, *made, *([' and '.join(ways)] if ways else [])])


def forget_training(model: dict) -> None:
    """Edit a model config in place so that it holds nothing that is of use in training alone."""
    for part in ('teacher', 'losses'):
        model.pop(part, None)


def skip_pretrained_weights(model: dict) -> None:
    """Edit a model config in place so that it loads nothing: a checkpoint will bring all weights."""
    forget_training(model)
    model.pop('knn_gate', None)  # it is made of the pre-trained weights
    for part, setting in (('head', 'class_weights'), ('backbone', 'init_cfg'), ('neck', 'init_cfg')):
        if model.get(part) and model[part].get(setting):
            model[part][setting] = None
    if model.get('backbone') and model.backbone.get('pretrained'):
        if is_a(OpenCLIPBackbone, model.backbone.type, MODELS):
            model.backbone.load = False  # `pretrained` still decides the activation
        else:
            model.backbone.pretrained = None


def build_model(cfg: dict, checkpoint: dict | None = None, name: str | None = None) -> nn.Module:
    """Build a classifier to look at, in eval mode and without a teacher, with its pre-trained weights or a
    checkpoint's.

    Args:
        cfg (dict): The ``model`` of a config. It is changed.
        checkpoint (dict, optional): From :func:`check_checkpoint`.
        name (str, optional): Of the checkpoint, for errors.

    Raises:
        ValueError: The checkpoint does not fit the model.
    """
    ours = cfg.type == 'CounterfactualClassifier'
    if checkpoint is not None:
        check_same_tower(cfg, checkpoint, name)
    if ours and checkpoint is not None:
        skip_pretrained_weights(cfg)
    elif ours:
        forget_training(cfg)
    model = MODELS.build(cfg).eval()
    load_weights(model, checkpoint, name)
    return model


def load_weights(model: nn.Module, checkpoint: dict | None, name: str | None = None) -> None:
    """Put the weights of a checkpoint into a model, or without one the pre-trained; arguments and errors of
    :func:`build_model`."""
    if checkpoint is not None:
        check_state_dict(model, checkpoint, name)
        model.load_state_dict(checkpoint['state_dict'], strict=False)
    elif not isinstance(model, CounterfactualClassifier):  # which has them from construction
        model.init_weights()
