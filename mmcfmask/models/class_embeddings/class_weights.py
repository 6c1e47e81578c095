"""Class embeddings that the classification head starts from: of texts, of images, or from a file.

All are (C, D) float32 tensors with L2-normalised rows; the weights of a linear probe, which are no embeddings, have a
column more. Those that cost time are kept in a cache folder (``cache_dir``, by default ``$MMCFMASK_CACHE`` or
``~/.cache/mmcfmask``) under a hash of everything that determines them.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import os
import string
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from filelock import FileLock
from mmengine.dataset import pseudo_collate
from mmengine.logging import print_log
from mmpretrain.registry import DATASETS
from rich.progress import track
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from ...datasets.names import class_names, read_names
from ...datasets.shapes import SHAPES_TEMPLATES
from ...errors import ConfigError, MissingFileError, StorageError
from ...files import atomic_write, check_whole, remove_leftovers
from ...ranges import Count, Positive, Seed, Whole
from ..towers.loading import NoTextTowerError, load_text_model, reason_of, resolve_pretrained
from ..towers.torchscript import is_torchscript
from .linear_probe import STRENGTHS, fit_linear_probe

PROMPTS_PER_BATCH = 800


def build_class_weights(cfg: dict, classifier: nn.Module, classnames: Sequence[str] | None = None) -> Tensor:
    """Class embeddings for a classifier's head, by config.

    Args:
        cfg: One of

            - ``dict(type='text', classnames=..., templates='openai', model_name=None, pretrained=None,
            cache_dir=None)``:
              the mean over prompts of their text embeddings. ``classnames`` is ``'imagenet'``, a list, a text file with
              a name per line, or ``'dataset'`` (those in the argument of this function); ``templates`` is ``'openai'``
              (the 80 ImageNet templates), ``'shapes'`` (those of the built-in benchmark) or a list of strings with a
              ``{}``. The text tower is the backbone's partner if no other is named.
            - ``dict(type='file', path=...)``: a tensor (C, D) in a .pt, .safetensors (key ``'weight'``) or .npy file.
            - ``dict(type='prototype', dataset=dict(...), per_class=60, batch_size=64, seed=0, num_workers=0,
            cache_dir=None)``:
              the mean feature of ``per_class`` images of each class of an mmpretrain dataset.
            - ``dict(type='linear_probe', dataset=dict(...), held_out=None, strengths=None, batch_size=64,
            num_workers=0,
              cache_dir=None)``: logistic regression on the frozen features of all images of ``dataset``, its strength
              of regularisation chosen on ``held_out`` (:func:`.linear_probe.fit_linear_probe`): the start of LP-FT.
              ``held_out`` is another dataset; None stands for the part that ``dataset`` holds out itself, by its
              ``holdout``.
        classifier: Has ``backbone``, ``neck``, ``extract_feat(inputs)[-1]`` -> (B, D) and ``data_preprocessor``.
        classnames: The names that ``classnames='dataset'`` stands for.

    Returns:
        (C, D) float32 on the CPU, rows L2-normalised; of ``linear_probe`` (C, D + 1), weights and in the last column
        biases.

    Raises:
        ValueError: Unknown type, names or templates; weights without a text tower; too few images in a class.
        FileNotFoundError: A file that does not exist.
    """
    cfg = dict(cfg)
    kind = cfg.pop('type', None)
    if kind not in CLASS_WEIGHTS:
        raise ConfigError(f'class_weights.type={kind!r} is unknown: choose from {", ".join(map(repr, CLASS_WEIGHTS))}.')
    if cfg.get('classnames') == 'dataset':
        if classnames is None:
            raise ConfigError(
                "class_weights.classnames='dataset', but the dataset's class names are not known here: list the "
                'names, or give the path of a text file with one per line.'
            )
        cfg['classnames'] = list(classnames)
    try:
        inspect.signature(CLASS_WEIGHTS[kind]).bind(classifier, **cfg)
    except TypeError as error:  # a key too many or too few
        raise ConfigError(f'class_weights=dict(type={kind!r}, ...): {error}') from error
    return CLASS_WEIGHTS[kind](classifier, **cfg)


def text_class_weights(
    model: nn.Module,
    tokenizer: Callable,
    classnames: Sequence[str],
    templates: Sequence[str],
    device: str | torch.device = 'cpu',
) -> Tensor:
    """Zero-shot classifier of CLIP: each prompt's text embedding L2-normalised, their mean per class, normalised again.

    Args:
        model: Whole open_clip model on ``device``.
        tokenizer: Its tokenizer.
        classnames: C names; duplicates are kept.
        templates: Strings with a ``{}`` for the name.

    Returns:
        (C, D) float32 on the CPU, rows L2-normalised.
    """
    return _mean_text_embeddings(
        model, tokenizer, classnames, templates, device, f'Text embeddings of {len(classnames)} classes'
    )


def text_context_weights(
    model: nn.Module,
    tokenizer: Callable,
    classnames: Sequence[str],
    templates: Sequence[str],
    device: str | torch.device = 'cpu',
) -> Tensor:
    """What :func:`text_class_weights` is to classes, to contexts: each prompt's text embedding L2-normalised, their
    mean over the classes per template, normalised again (CAR-FT, Mao et al. 2024, section 3).

    Returns:
        (K, D) float32 on the CPU for K templates, rows L2-normalised.
    """
    # The mean is over the second factor of the prompts: here the names, each a function of the template.
    names = [lambda template, name=name: template.format(name) for name in classnames]
    return _mean_text_embeddings(
        model, tokenizer, templates, names, device, f'Text embeddings of {len(templates)} contexts'
    )


def _mean_text_embeddings(model, tokenizer, rows, columns, device, description) -> Tensor:
    size = max(1, PROMPTS_PER_BATCH // len(columns))
    parts = [rows[start : start + size] for start in range(0, len(rows), size)]
    embeddings = [
        open_clip.build_zero_shot_classifier(model, tokenizer, part, columns, num_classes_per_batch=None, device=device)
        for part in track(parts, description=description)
    ]
    return torch.cat(embeddings, dim=1).T.float().cpu().contiguous()


def image_features(
    extract_feat: Callable[[Tensor], tuple],
    data_preprocessor: nn.Module,
    dataset: Dataset,
    indices: Sequence[int],
    batch_size: int = 64,
    num_workers: int = 0,
) -> Tensor:
    """L2-normalised features (N, D), float32 on the CPU, of the images at ``indices``; arguments as
    :func:`prototype_class_weights`."""
    features = []
    for inputs in batches_of(
        Subset(dataset, indices), data_preprocessor, batch_size, num_workers, f'Features of {len(indices)} images'
    ):
        with torch.no_grad(), torch.autocast(inputs.device.type, enabled=False):
            features.append(F.normalize(extract_feat(inputs)[-1].float(), dim=-1).cpu())
    return torch.cat(features)


def batches_of(
    dataset: Dataset, data_preprocessor: nn.Module, batch_size: int, num_workers: int, description: str
) -> Iterator[Tensor]:
    """All images of ``dataset`` in order, as normalised batches (B, 3, H, W) on the device of ``data_preprocessor``;
    shows progress."""
    loader = DataLoader(dataset, batch_size, num_workers=num_workers, collate_fn=pseudo_collate)
    for batch in track(loader, description=description):
        yield data_preprocessor(batch)['inputs']


def labels_of(dataset: Dataset, indices: Iterable[int]) -> Tensor:
    """Labels (N,), int64, without reading the images."""
    return torch.tensor([int(dataset.get_data_info(index)['gt_label']) for index in indices])


def prototype_class_weights(
    extract_feat: Callable[[Tensor], tuple],
    data_preprocessor: nn.Module,
    dataset: Dataset,
    indices: Iterable[int] | None = None,
    batch_size: int = 64,
    num_workers: int = 0,
) -> Tensor:
    """Class means of image features: each L2-normalised, their mean per class, normalised again.

    Args:
        extract_feat: Normalised images (B, 3, H, W) to a tuple whose last entry is features (B, D).
        data_preprocessor: Maps a collated batch to a dict with ``inputs``.
        dataset: An mmpretrain dataset whose items are those of ``PackInputs``.
        indices: The images to use, e.g. of :func:`draw_per_class`. None: all.

    Returns:
        (C, D) float32 on the CPU, rows L2-normalised; C is the number of classes in ``dataset.metainfo``, or the
        highest label + 1.

    Raises:
        ValueError: A class without an image.
    """
    indices = list(range(len(dataset)) if indices is None else indices)
    labels = labels_of(dataset, indices)
    members = F.one_hot(labels, num_classes(dataset, labels.tolist())).float()  # (N, C)
    if (members.sum(dim=0) == 0).any():
        empty = [class_name(dataset, label) for label in range(members.shape[1]) if not members[:, label].any()]
        raise ConfigError(f'No image of the {len(empty)} classes {", ".join(empty[:5])} for their mean feature.')
    features = image_features(extract_feat, data_preprocessor, dataset, indices, batch_size, num_workers)
    return F.normalize(members.T @ features, dim=-1)


def draw_per_class(dataset: Dataset, per_class: int, seed: int = 0) -> list[int]:
    """Indices of ``per_class`` images of each class, drawn with a seed, ordered by class.

    Raises:
        ValueError: A class with fewer images (its name and the counts are given).
    """
    labels = np.array([dataset.get_data_info(index)['gt_label'] for index in range(len(dataset))])
    rng = np.random.RandomState(seed)
    drawn, short = [], []
    for label in range(num_classes(dataset, labels)):
        members = rng.permutation(np.flatnonzero(labels == label))
        if len(members) < per_class:
            short.append(f'{class_name(dataset, label)} ({len(members)})')
        drawn += members[:per_class].tolist()
    if short:
        raise ConfigError(
            f'per_class={per_class}, but these {len(short)} classes have fewer images: {", ".join(short[:10])}. '
            'Lower per_class of class_weights, or give its dataset more images (no holdout).'
        )
    return drawn


def num_classes(dataset: Dataset, labels: Sequence[int]) -> int:
    """Number of classes by the dataset's names, or by its labels where it has none."""
    names = dataset.metainfo.get('classes')
    return len(names) if names else int(max(labels)) + 1


def class_name(dataset: Dataset, label: int) -> str:
    names = dataset.metainfo.get('classes')
    return names[label] if names else f'label {label}'


def resolve_classnames(classnames: str | Sequence[str]) -> list[str]:
    """``'imagenet'`` (OpenAI's curated names, duplicates kept), a text file with one name per line, or the names
    themselves."""
    if isinstance(classnames, str) and classnames == 'imagenet':
        return list(open_clip.IMAGENET_CLASSNAMES)
    if isinstance(classnames, str):
        path = Path(classnames).expanduser()
        if not path.is_file():
            raise MissingFileError(
                f"class_weights.classnames={classnames!r} is neither 'imagenet', 'dataset' nor a file that "
                f'exists (looked for {path.absolute()}).'
            )
        return read_names(path)
    if not classnames:
        raise ConfigError('class_weights.classnames is empty.')
    return class_names(classnames, 'class_weights.classnames')


def resolve_templates(templates: str | Sequence[str]) -> list[str]:
    """``'openai'``, ``'shapes'``, or strings with a ``{}``, as such strings."""
    if isinstance(templates, str):
        if templates not in ('openai', 'shapes'):
            raise ConfigError(
                f"class_weights.templates={templates!r} is unknown: choose 'openai', 'shapes', or give a list of "
                "strings such as ['a photo of a {}.']."
            )
        named = dict(openai=open_clip.OPENAI_IMAGENET_TEMPLATES, shapes=SHAPES_TEMPLATES)[templates]
        # open_clip's are functions of the name: rendered with '{}' they are strings like all others.
        return [template if isinstance(template, str) else template('{}') for template in named]
    templates = list(templates)
    wrong = [
        template
        for template in templates
        if not isinstance(template, str) or '{}' not in template or not _takes_a_name(template)
    ]
    if wrong or not templates:
        raise ConfigError(
            f"class_weights.templates must be strings with a '{{}}' for the class name, but got "
            f'{wrong[0] if wrong else templates!r}.'
        )
    return templates


def _takes_a_name(template: str) -> bool:
    """Whether a template has a place for one name, and nothing else that ``str.format`` would fill."""
    try:
        return all(
            field in ('', None) and not spec and not how for _, field, spec, how in string.Formatter().parse(template)
        ) and bool(template.format('name'))
    except (ValueError, IndexError):
        return False


def load_class_weights(path: str | Path) -> Tensor:
    """Read class embeddings (C, D) from a .pt, .pth, .safetensors or .npy file, and normalise their rows.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Not a finite (C, D) tensor, or a row of zeros.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise MissingFileError(f'class_weights.path={str(path)!r}: there is no such file.')
    try:
        if path.suffix == '.npy':
            weight = torch.from_numpy(np.load(path, allow_pickle=False))
        elif path.suffix == '.safetensors':
            weight = load_file(path)
        else:
            check_whole(path)
            if is_torchscript(path):
                raise ConfigError('it is a TorchScript archive')
            weight = torch.load(path, map_location='cpu', weights_only=True)
    except StorageError:
        raise
    except Exception as error:  # the readers raise pickle, zip, safetensors and value errors of many types
        raise ConfigError(f'{path} cannot be read as a tensor: {reason_of(error)}') from None
    if isinstance(weight, dict):
        if 'weight' not in weight:
            raise ConfigError(f"{path} has no key 'weight'; its keys: {', '.join(map(str, list(weight)[:10]))}.")
        weight = weight['weight']
    if not isinstance(weight, Tensor) or weight.ndim != 2:
        shape = tuple(weight.shape) if isinstance(weight, Tensor) else type(weight).__name__
        raise ConfigError(f'{path} must hold a tensor (classes, features), but holds {shape}.')
    if not weight.is_floating_point() or weight.layout != torch.strided:
        raise ConfigError(
            f'{path} must hold an ordinary tensor of floating-point numbers, but holds {weight.dtype}, {weight.layout}.'
        )
    weight = weight.float()
    bad = (~torch.isfinite(weight)).any(dim=1) | (weight == 0).all(dim=1)
    if bad.any():
        raise ConfigError(
            f'{path}, shape {tuple(weight.shape)}: rows {bad.nonzero().flatten().tolist()[:10]} are zero or not finite.'
        )
    return F.normalize(weight, dim=-1)


def text_source(
    classifier: nn.Module, model_name: str | None = None, pretrained: str | None = None
) -> tuple[str, str | None]:
    """Name and weights of a text tower: the partner of the classifier's image tower, if no other is named.

    Raises:
        ValueError: The tower has no name, so no partner.
    """
    own_name = getattr(classifier.backbone, 'model_name', None)
    model_name = model_name or own_name
    if model_name is None:
        raise ConfigError(
            f'{type(classifier.backbone).__name__} has no text tower of its own: name one with '
            "model_name='ViT-B-16-quickgelu', pretrained='openai', for a head in class_weights=dict(type='text', ...)."
        )
    if pretrained is None and model_name == own_name:
        pretrained = getattr(classifier.backbone, 'pretrained', None)
    return model_name, pretrained


def text_embeddings(
    classifier: nn.Module,
    kind: str,
    classnames: str | Sequence[str],
    templates: str | Sequence[str] = 'openai',
    model_name: str | None = None,
    pretrained: str | None = None,
    cache_dir: str | None = None,
) -> Tensor:
    """Mean text embeddings per class or per context of a classifier's prompts, from the cache where they are there.

    Args:
        classifier: Has ``backbone``.
        kind: ``'text'``: per class (:func:`text_class_weights`); ``'context'``: per template
            (:func:`text_context_weights`).
        classnames, templates, model_name, pretrained, cache_dir: As in :func:`build_class_weights`.

    Raises:
        NoTextTowerError: The weights hold an image tower alone.
        ValueError, FileNotFoundError: As :func:`build_class_weights`.
    """
    embed = dict(text=text_class_weights, context=text_context_weights)[kind]
    classnames, templates = resolve_classnames(classnames), resolve_templates(templates)
    model_name, pretrained = text_source(classifier, model_name, pretrained)

    def compute() -> Tensor:
        device = _device()
        return embed(*load_text_model(model_name, pretrained, device), classnames, templates, device)

    key = dict(
        type=kind, open_clip=open_clip.__version__, model_name=model_name, classnames=classnames, templates=templates
    )
    if ':' in model_name:  # hf-hub:org/repo or local-dir:path
        folder = Path(model_name.partition(':')[2])
        files = sorted(folder.iterdir()) if model_name.startswith('local-dir:') and folder.is_dir() else []
        key['weights'] = {file.name: _hash_file(file) for file in files if file.is_file()}
    elif pretrained is None:
        print_log(
            f'The text tower of {model_name!r} has random weights (pretrained=None), and so has what is made of it.',
            'current',
            level=logging.WARNING,
        )
        return compute()  # differs every time
    elif open_clip.is_pretrained_cfg(model_name, pretrained):
        key['weights'] = pretrained
    else:
        key['weights'] = _hash_file(resolve_pretrained(model_name, pretrained))
    return cached(key, compute, cache_dir)


def _build_text(
    classifier: nn.Module,
    *,
    classnames: str | Sequence[str],
    templates: str | Sequence[str] = 'openai',
    model_name: str | None = None,
    pretrained: str | None = None,
    cache_dir: str | None = None,
) -> Tensor:
    try:
        return text_embeddings(classifier, 'text', classnames, templates, model_name, pretrained, cache_dir)
    except NoTextTowerError as error:
        raise NoTextTowerError(f"{error}; use class_weights=dict(type='prototype', ...) or type='file'.") from None


def _build_file(classifier: nn.Module, *, path: str) -> Tensor:
    return load_class_weights(path)


def _build_prototype(
    classifier: nn.Module,
    *,
    dataset: dict,
    per_class: Count = 60,
    batch_size: Count = 64,
    seed: Seed = 0,
    num_workers: Whole = 0,
    cache_dir: str | None = None,
) -> Tensor:
    cfg, dataset = dataset, DATASETS.build(dataset)
    indices = draw_per_class(dataset, per_class, seed)

    def compute() -> Tensor:
        with _ready(classifier):
            return prototype_class_weights(
                classifier.extract_feat, classifier.data_preprocessor, dataset, indices, batch_size, num_workers
            )

    return cached(_images_key('prototype', classifier, cfg, dataset, indices), compute, cache_dir)


def _build_linear_probe(
    classifier: nn.Module,
    *,
    dataset: dict,
    held_out: dict | None = None,
    strengths: Sequence[Positive] | None = None,
    batch_size: Count = 64,
    num_workers: Whole = 0,
    cache_dir: str | None = None,
) -> Tensor:
    strengths = list(STRENGTHS if strengths is None else strengths)
    if held_out is None:
        if (dataset.get('holdout') or {}).get('part') != 'train':
            raise ConfigError(
                "class_weights=dict(type='linear_probe', ...) chooses its strength on held-out images: give held_out, "
                "a dataset, or dataset.holdout=dict(fraction=0.2, part='train')"
            )
        held_out = {key: value for key, value in dataset.items() if key != 'per_class'}
        held_out['holdout'] = {**dataset['holdout'], 'part': 'held_out'}
    parts = [(cfg, DATASETS.build(cfg)) for cfg in (dataset, held_out)]
    keys = [_images_key('features', classifier, cfg, part, range(len(part))) for cfg, part in parts]
    labels = [labels_of(part, range(len(part))) for _, part in parts]
    classes = num_classes(parts[0][1], labels[0].tolist())

    def compute() -> Tensor:
        device = _device()
        (x, y), (held_out_x, held_out_y) = (
            (cached_features(classifier, cfg, part, batch_size, num_workers, cache_dir).to(device), target.to(device))
            for (cfg, part), target in zip(parts, labels)
        )
        probe = fit_linear_probe(x, y, held_out_x, held_out_y, classes, strengths)
        print_log(
            f'Linear probe: C = {probe.strength:.3g} is best on the held-out images ({probe.accuracy:.2f} %, '
            f'cross-entropy {probe.nll:.3f}).',
            'current',
        )
        return torch.cat([probe.weight, probe.bias[:, None]], dim=1).cpu()

    key = dict(type='linear_probe', features=keys, strengths=strengths, chosen_by='nll within a standard error')
    return cached(key, compute, cache_dir)


def cached_features(
    classifier: nn.Module,
    cfg: dict,
    dataset: Dataset,
    batch_size: int = 64,
    num_workers: int = 0,
    cache_dir: str | None = None,
) -> Tensor:
    """L2-normalised features (N, D), float32 on the CPU, of all images of ``dataset``, built from ``cfg``; read once
    for given weights."""
    indices = range(len(dataset))

    def compute() -> Tensor:
        with _ready(classifier):
            return image_features(
                classifier.extract_feat, classifier.data_preprocessor, dataset, indices, batch_size, num_workers
            )

    return cached(_images_key('features', classifier, cfg, dataset, indices), compute, cache_dir)


def _images_key(kind: str, classifier: nn.Module, cfg: dict, dataset: Dataset, indices: Iterable[int]) -> dict:
    """Everything that determines the features of some images."""
    preprocessor = classifier.data_preprocessor
    digest = hashlib.sha256()
    for index in indices:
        _update(digest, dataset.get_data_info(index))
    return dict(
        type=kind,
        dataset=cfg,
        images=digest.hexdigest(),
        weights=[_hash_state(module) for module in (classifier.backbone, classifier.neck) if module is not None],
        tower=repr(classifier.backbone),  # activations, and sizes that no weight shows
        preprocessor={name: buffer.tolist() for name, buffer in preprocessor.named_buffers()},
        to_rgb=getattr(preprocessor, 'to_rgb', False),
    )


@contextmanager
def _ready(classifier: nn.Module) -> Iterator[None]:
    """Inside the context the classifier is on the fastest device and in eval mode."""
    home, training = next(classifier.parameters()).device, classifier.training
    classifier.to(_device()).eval()
    try:
        yield
    finally:
        classifier.to(home).train(training)


def cached(key: dict, compute: Callable[[], Tensor], cache_dir: str | None = None) -> Tensor:
    """``compute()``, or its result of an earlier time under an equal ``key``.

    Files are written atomically, and by one process only while others wait; one that cannot be read is made again.

    Raises:
        OSError: The cache folder cannot be written.
    """
    text = json.dumps(key, sort_keys=True, default=repr)
    folder = Path(cache_dir or os.environ.get('MMCFMASK_CACHE') or '~/.cache/mmcfmask').expanduser()
    path = folder / f'{key["type"]}-{hashlib.sha256(text.encode()).hexdigest()[:32]}.safetensors'
    weights = _read(path)
    if weights is not None:
        return weights
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_suffix('.lock')).acquire()
    except OSError as error:
        raise StorageError(
            f'The cache folder {folder} for class embeddings cannot be written ({error}): set cache_dir of '
            'class_weights or the environment variable MMCFMASK_CACHE.'
        ) from error
    with lock:
        weights = _read(path)
        if weights is None:
            weights = compute().contiguous()
            try:
                remove_leftovers(folder)
                with atomic_write(path) as file:
                    file.write(save({'weight': weights}, metadata={'key': text, 'sha256': _hash_tensor(weights)}))
            except StorageError as error:  # what is computed is not lost
                print_log(
                    f'{error}; this run goes on, the next one computes it again.', 'current', level=logging.WARNING
                )
    return weights


def _read(path: Path) -> Tensor | None:
    try:
        with safe_open(path, 'pt') as file:
            weight, checksum = file.get_tensor('weight'), (file.metadata() or {}).get('sha256')
    except FileNotFoundError:
        return None
    except (OSError, KeyError, SafetensorError) as error:
        wrong = str(error)
    else:
        if checksum in (None, _hash_tensor(weight)) and weight.isfinite().all():  # version 0.1 wrote no checksum
            return weight
        wrong = 'its checksum is wrong, or it holds numbers that are not finite'
    print_log(f'{path} is damaged ({wrong}) and is made again.', 'current', level=logging.WARNING)
    return None


def _device() -> torch.device:
    return torch.device('cuda' if torch.cuda.is_available() else 'cpu')


def _hash_file(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        for block in iter(lambda: file.read(1 << 20), b''):
            digest.update(block)
    return digest.hexdigest()


def _hash_tensor(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.numpy().tobytes()).hexdigest()


def _hash_state(module: nn.Module) -> str:
    digest = hashlib.sha256()
    _update(digest, {name: value.cpu().numpy() for name, value in module.state_dict().items()})
    return digest.hexdigest()


def _update(digest: Any, info: dict) -> None:
    """Feed a flat dict of arrays and plain values, and the state of the file it names, to a hash."""
    for name, value in sorted(info.items()):
        if isinstance(value, np.ndarray):
            digest.update(f'{name} {value.dtype} {value.shape}'.encode())
            digest.update(np.ascontiguousarray(value).tobytes())
        else:
            digest.update(f'{name} {value!r}'.encode())
    if 'img_path' in info and os.path.isfile(info['img_path']):
        stat = os.stat(info['img_path'])
        digest.update(f'{stat.st_size} {stat.st_mtime_ns}'.encode())


# Where class embeddings come from: the type of a config to what makes them.
CLASS_WEIGHTS = dict(text=_build_text, file=_build_file, prototype=_build_prototype, linear_probe=_build_linear_probe)
