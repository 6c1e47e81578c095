"""A fine-tuned model for another library: what tools/export.py runs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mmpretrain.models.classifiers import ImageClassifier

from ..datasets.wrappers import inner_configs
from ..errors import ConfigError
from ..files import as_path, hash_file, new_folder, write_text
from ..messages import near_names
from ..models.export import graphs, hugging_face_folder, open_clip_folder
from ..models.export.mmpretrain_folder import write_mmpretrain
from ..models.export.parts import Preprocessing, cosine_head, open_clip_backbone, whole_model
from ..models.towers.adapters import remove_adapters
from ..models.towers.backbone import OpenCLIPBackbone
from ..reporting.model_card import model_card
from ..reporting.runs import FILE_NAME, Run, read_run
from ..version import __version__
from .checks.model import check_has_weights
from .config import load_config
from .hub import published_checkpoint
from .provenance import read_training_settings
from .testing import build_model, find_class_names, name_method, prepare_test

# Format to the parts that it can hold, the default first.
PARTS = {
    'open_clip': ('full', 'image'),
    'hf': ('full', 'image', 'classifier'),
    'mmpretrain': ('image',),
    'torch': ('classifier', 'image'),
    'onnx': ('image',),
    'onnx-classifier': ('classifier',),
}
ABOUT_PARTS = dict(
    full='It is the whole model: this image tower, and the text tower as it was before.',
    image='It is the image tower alone, with its projection to the embedding.',
    classifier='It is the image tower with its classifier, whose logits are W z/‖z‖ + b of an image embedding z.',
)
ANY_BACKBONE = 'torch, onnx or onnx-classifier'
METRICS = ('top1', 'mean_per_class', 'worst_group', 'group_average', 'nll', 'ece')


def run_export(
    config: str | os.PathLike,
    checkpoint: str | os.PathLike | None = None,
    options: Mapping[str, Any] | Sequence[str] = (),
    *,
    to: str,
    out: str | os.PathLike,
    part: str | None = None,
    metrics: str | os.PathLike | None = None,
    show: bool = False,
) -> Path:
    """Write a model for another library, with a model card, into a folder.

    Args:
        config (str): The config file.
        checkpoint (str, optional): The fine-tuned weights. None: the pretrained ones.
        options: As of ``--cfg-options``; see :func:`mmcfmask.engine.config.load_config`.
        to (str): The format: 'open_clip', 'hf' (transformers), 'mmpretrain', 'torch' (``torch.export``), 'onnx' or
            'onnx-classifier'.
        out (str): The folder; it must be new or empty.
        part (str, optional): 'full' (image tower fine-tuned, text tower as it was, or as FLYP trained it), 'image' (the
            image tower) or 'classifier'. None: the first of these that the format can hold.
        metrics (str, optional): The ``metrics.json`` of the checkpoint, for the card. None: the one beside the
            checkpoint, if it is of this checkpoint.
        show (bool): Print the names of the files.

    Returns:
        Path: The folder.

    Raises:
        UserError: Something the user can mend, such as a tower that the format cannot hold; the message says which can.
    """
    config, checkpoint, out, metrics = map(as_path, (config, checkpoint, out, metrics))
    part = check_part(to, part)
    if to.startswith('onnx'):
        graphs.check_onnx()
    checkpoint = published_checkpoint(checkpoint, config)
    folder = Path(out)
    with new_folder(folder) as unfinished:
        exported = load_export_model(config, checkpoint, options)
        run = find_metrics(checkpoint, metrics)
        usage = write_model(unfinished, to=to, part=part, **exported.files())
        about = describe_model(exported.model, exported.method, exported.checkpoint is not None)
        card = model_card(
            title=f'{Path(config).stem} for {to}',
            about=f'{about} {ABOUT_PARTS[part]}',
            usage=usage,
            preprocessing=describe_preprocessing(exported.preprocessing),
            training=read_training_settings((exported.checkpoint or {}).get('meta') or {}),
            results=None if run is None else choose_metrics(run),
            tested='' if run is None else f'Measured by `tools/test.py`, seed {run.seed}; in percent, except nll.',
            classes=exported.classes if part == 'classifier' else None,
            library={'hf': 'transformers', 'open_clip': 'open_clip'}.get(to),
            task=dict(full='zero-shot-image-classification', image='image-feature-extraction').get(
                part, 'image-classification'
            ),
        )
        write_text(unfinished / 'README.md', card)
    if show:
        print(f'{folder}: {", ".join(sorted(path.name for path in folder.iterdir()))}')
    return folder


class ExportModel(NamedTuple):
    """A model to export.

    Attributes:
        model: In eval mode, on the CPU, adapters merged.
        checkpoint: Its checkpoint; None for pretrained weights.
        preprocessing: Of its images.
        classes: Names of its classes.
        method: What tests call it.
    """

    model: ImageClassifier
    checkpoint: dict | None
    preprocessing: Preprocessing
    classes: Sequence[str] | None
    method: str

    def files(self) -> dict[str, Any]:
        """What :func:`write_model` needs."""
        state = (self.checkpoint or {}).get('state_dict')
        return dict(model=self.model, preprocessing=self.preprocessing, classes=self.classes, checkpoint=state)


def load_export_model(
    config: str, checkpoint: str | None = None, options: Mapping[str, Any] | Sequence[str] = ()
) -> ExportModel:
    """Load the model of a config and a checkpoint, as :func:`run_export` does.

    Raises:
        UserError: The config has no such model, or the checkpoint does not fit.
    """
    cfg = load_config(config, options)
    for name in ('knn_gate', 'crop_scale'):
        if cfg.model.get(name):
            raise ConfigError(
                f'model.{name} is set, but an exported model predicts from the whole image by itself: add '
                f'--cfg-options model.{name}=None'
            )
    loaded = prepare_test(cfg, checkpoint, data=False)
    if loaded is None:
        check_has_weights(cfg)
    method = name_method(config, cfg.model, loaded)
    id_set = cfg.test_dataloader[cfg.test_cfg.id_set]
    classes = find_class_names([id_set.dataset], loaded)
    model = build_model(cfg.model, loaded, checkpoint)
    remove_adapters(model, merge=True)
    return ExportModel(model, loaded, read_preprocessing(model, next(inner_configs(id_set.dataset))), classes, method)


def check_part(to: str, part: str | None) -> str:
    """The part to export to a format; None: the first that it can hold.

    Raises:
        ConfigError: An unknown format, or one that cannot hold the part.
    """
    if to not in PARTS:
        raise ConfigError(f'unknown format {to!r}.{near_names(to, list(PARTS))} Formats: {", ".join(PARTS)}')
    part = part or PARTS[to][0]
    if part not in PARTS[to]:
        others = ', '.join(name for name, parts in PARTS.items() if part in parts)
        raise ConfigError(
            f'the format {to} holds {" or ".join(PARTS[to])}, not {part!r}'
            + (f'; {part} can be exported to {others}' if others else '')
        )
    return part


def write_model(
    folder: Path,
    model: ImageClassifier,
    to: str,
    part: str,
    preprocessing: Preprocessing,
    classes: Sequence[str] | None = None,
    checkpoint: Mapping | None = None,
) -> str:
    """Write the files of a format.

    Args:
        folder (Path): Where to write.
        model (ImageClassifier): In eval mode, on the CPU.
        to (str): The format.
        part (str): Of those that the format can hold.
        preprocessing (Preprocessing): Of images.
        classes (Sequence[str], optional): Names of the classes.
        checkpoint (Mapping, optional): State dict of the training, which may hold a text tower.

    Returns:
        str: Python that loads the model and computes something.

    Raises:
        ConfigError: The format cannot hold this tower.
        StorageError: A file cannot be written.
    """
    if to in ('torch', 'onnx', 'onnx-classifier'):
        graph = graphs.export_graph(model, preprocessing.image_size, part == 'classifier')
        output = 'logits' if part == 'classifier' else 'features'
        return (graphs.write_graph if to == 'torch' else graphs.write_onnx)(folder, graph, output)
    backbone = open_clip_backbone(model, ANY_BACKBONE)
    if to == 'mmpretrain':
        return write_mmpretrain(folder, backbone)
    if part == 'classifier':
        return hugging_face_folder.write_classifier(folder, backbone, cosine_head(model), preprocessing, classes)
    library = open_clip_folder if to == 'open_clip' else hugging_face_folder
    if part == 'image':
        return library.write_image_tower(folder, backbone, preprocessing)
    return library.write_whole_model(folder, backbone, whole_model(backbone, checkpoint), preprocessing)


def describe_model(model: ImageClassifier, method: str, trained: bool) -> str:
    """A sentence for the card: the tower, its pretrained weights, and the method."""
    backbone = model.backbone
    name = type(backbone).__name__
    if isinstance(backbone, OpenCLIPBackbone):
        weights = f' ({Path(backbone.pretrained).name})' if backbone.pretrained else ''
        name = f'{backbone.model_name}{weights}'
    how = f'fine-tuned by {method}' if trained else f'not fine-tuned ({method})'
    return f'Image tower: {name}, {how} with mmcfmask {__version__}.'


def read_preprocessing(model: ImageClassifier, dataset: Mapping) -> Preprocessing:
    """How the test images of a config become the input of a model.

    Args:
        model (ImageClassifier): Its data preprocessor normalises.
        dataset (Mapping): Config of the test set; its pipeline may resize the shorter side to more than is cut out.

    Raises:
        ConfigError: The backbone does not say its size of images.
    """
    backbone, normalise = model.backbone, model.data_preprocessor
    size = getattr(backbone, 'image_size', None) or getattr(backbone, 'img_size', None)
    if size is None:
        raise ConfigError(f'model.backbone {type(backbone).__name__} has no image_size, which a graph needs')
    height, width = (size, size) if isinstance(size, int) else size
    edges = [
        step['scale']
        for step in dataset.get('pipeline') or ()
        if step['type'] == 'ResizeEdge' and isinstance(step['scale'], int)
    ]
    mean, std = [0.0] * 3, [1.0] * 3
    if normalise._enable_normalize:
        mean, std = (getattr(normalise, key).flatten().tolist() for key in ('mean', 'std'))
    return Preprocessing(
        (height, width),
        edges[-1] if edges else min(height, width),
        *(tuple(round(value / 255, 8) for value in values) for values in (mean, std)),
    )


def describe_preprocessing(preprocessing: Preprocessing) -> dict[str, str]:
    """The steps of a preprocessing, for the card."""
    height, width = preprocessing.image_size
    return {
        'Resize': f'shorter side to {preprocessing.edge} pixels, bicubic',
        'Cut out the centre': f'{height} × {width} pixels (height × width), RGB, scaled to 0–1',
        'Mean': ', '.join(f'{value:.6g}' for value in preprocessing.mean),
        'Standard deviation': ', '.join(f'{value:.6g}' for value in preprocessing.std),
    }


def find_metrics(checkpoint: str | None, metrics: str | None = None) -> Run | None:
    """The results of a checkpoint: in ``metrics``, or else in the metrics.json beside it.

    Raises:
        MissingFileError: There is no file ``metrics``.
        ConfigError: ``metrics`` is no metrics.json, or one of another checkpoint.
    """
    path = Path(metrics) if metrics else Path(checkpoint).parent / FILE_NAME if checkpoint else None
    if path is None or not (metrics or path.is_file()):
        return None
    try:
        run = read_run(path)
    except ConfigError:
        if metrics:
            raise
        return None
    tested = (run.content.get('checkpoint') or {}).get('sha256')
    if tested == (hash_file(checkpoint) if checkpoint else None):
        return run
    if metrics:
        raise ConfigError(f'--metrics {path} holds the results of another checkpoint than {checkpoint}')
    return None


def choose_metrics(run: Run) -> dict[str, dict[str, float]]:
    """Set to metric to value, without what belongs to single groups."""
    return {
        name: {key: result['metrics'][key] for key in METRICS if key in result['metrics']}
        for name, result in run.sets.items()
    }
