"""Pictures of the counterfactual images that a config trains on, and of relevance crops."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import init_default_scope
from mmpretrain.registry import DATASETS, TRANSFORMS
from torch import Tensor, nn
from torch.utils.data import Dataset

from ..counterfactual import (
    FILLS,
    MASKS,
    check_value,
    compare_relevance,
    object_coverage,
    part_of_grid,
    patch_grid,
    relevance_center,
    zoom_in,
)
from ..datasets.holdout import follow_run
from ..datasets.images import EXTENSIONS, find_images, why_unreadable
from ..errors import ConfigError, MissingFileError, StorageError
from ..evaluation.accuracy import head_labels
from ..models.inference.relevance_crop import check_crop_scale
from ..models.maker import PUBLISHED_VALUES, CounterfactualMaker
from ..models.preprocessor import to_unit_rgb
from ..reporting import Variant, counterfactual_panel, grey_out_patches, variants_panel
from .checkpoints import check_checkpoint
from .checks.model import counterfactual_settings, shown_settings
from .testing import build_model, find_class_names, make_file_pipeline

# Settings of counterfactual images beside the variant, and their words in the description.
CHANGES = dict(views='random views', color_mixing='random color mixing', donors='donors of other classes')


class Shown(NamedTuple):
    """Images of a picture.

    Attributes:
        model: The classifier.
        inputs: (B, 3, H, W), normalised.
        relevance: (B, h, w), for the labels, or for the predicted classes without labels.
        texts: One label per image.
        gt_masks: (B, H, W) bool, the objects, where the data set knows them.
        published: (B, h, w), the published relevance, where the config's is another.
        labels: (B,) int64, the classes that the relevance is for.
    """

    model: nn.Module
    inputs: Tensor
    relevance: Tensor
    texts: list[str]
    gt_masks: np.ndarray | None
    published: Tensor | None = None
    labels: Tensor | None = None

    def display(self, images: Tensor) -> Tensor:
        """Normalised images as RGB in 0..1."""
        return to_unit_rgb(self.model.data_preprocessor, images)

    def counterfactual(
        self, mask: str, fill: str, value: float | None, seed: int, **changes: Any
    ) -> tuple[Tensor, Tensor]:
        """Counterfactual images as RGB in 0..1, with hidden patches in grey, and the patches (B, h, w) taken out."""
        generator = torch.Generator(self.inputs.device).manual_seed(seed)
        made = CounterfactualMaker(mask, fill, value, **changes).counterfactual(
            self.inputs, patch_grid(self.model.backbone, self.inputs), self.relevance, generator, self.labels
        )
        images = self.display(made.images)
        return grey_out_patches(images, made.mask) if made.hidden else images, made.mask


def show_counterfactuals(
    cfg: Config,
    checkpoint: str | None = None,
    images: Sequence[str] = (),
    split: str | None = None,
    *,
    num: int = 8,
    labels: Sequence[str] | None = None,
    mask: str | None = None,
    fill: str | None = None,
    value: float | None = None,
    all_variants: bool = False,
    crop_scale: float | None = None,
    layout: str = 'rows',
    seed: int = 0,
    device: torch.device | str = 'cpu',
) -> tuple[Figure, str]:
    """Draw how counterfactual images come about: image, relevance, mask, counterfactual image.

    If the config has options of the relevance, the published map is shown before its own.

    Args:
        cfg: A config, which is changed.
        checkpoint: Path of a checkpoint; None for the pretrained model.
        images: Files, or folders of images.
        split: Instead of ``images``: a set of the config (``'train'``, ``'val'``, ``'test'`` or a test set).
        num: Maximum number of images.
        labels: Class names or indices of the files, one each or one for all; relevance is for the labels. None: for the
            predicted classes.
        mask, fill, value: The variant. None: as in the config, else the headline variant with its published value.
        all_variants: Show all nine masks x fills with their published values instead.
        crop_scale: Show the relevance crops of this scale instead.
        layout: ``'rows'`` or ``'columns'``, see :func:`mmcfmask.reporting.counterfactual_panel`.
        seed: Seed of the choice of images, of donor images and of random masks.
        device: Where the model runs.

    Returns:
        tuple[Figure, str]: The picture, and a description in one line.

    Raises:
        MissingFileError: A file or folder does not exist.
        StorageError: An image or the checkpoint cannot be read.
        ConfigError: A value, name or label is not valid, or the checkpoint does not fit the model.
    """
    follow_run(cfg, (cfg.get('randomness') or {}).get('seed'))
    init_default_scope(cfg.get('default_scope', 'mmpretrain'))
    mask, fill, value = choose_variant(cfg, mask, fill, value)
    files = find_files(images, num)
    if split:
        find_set(cfg, split)
    if crop_scale is not None:
        try:
            check_crop_scale(crop_scale)
        except ValueError as error:
            raise ConfigError(f'--relevance-crop: {error}') from None
    elif (len(files) if files else num) < 2 and (all_variants or fill != 'none'):
        raise ConfigError('a fill takes patches from other images: give at least 2 images, or use --fill none')
    trained, settings = counterfactual_settings(cfg.model), shown_settings(cfg.model)
    shown = read_images(cfg, checkpoint, files, split, num, labels, crop_scale is not None, seed, device)
    count = f'{len(shown.inputs)} images, '
    if crop_scale is not None:
        return draw_relevance_crop(shown, crop_scale, layout), count + (
            f'relevance crop of scale {crop_scale:g}, at the relevance of the predicted class'
        )
    if all_variants:
        return draw_variants(shown, seed), count + 'nine masks x fills with their published values'
    figure, patches, changes = draw_counterfactuals(shown, settings, mask, fill, value, seed, layout)
    share = changes.get('mask_share')
    chosen = f'share {share:g}' if value is None else f'value {value:g}'
    parts = [f'{mask} mask', f'{fill} fill', f'{chosen}: {patches.float().mean().item():.0%} of patches masked']
    parts += [CHANGES[name] for name in changes if name in CHANGES]
    note = '' if trained else '; the config itself does not train on counterfactual images'
    if len(trained) > 1:
        note = f'; the config trains on those of {" and ".join(trained)}, here of the first'
    return figure, count + ', '.join(parts) + note


def draw_counterfactuals(
    shown: Shown, settings: dict, mask: str, fill: str, value: float | None, seed: int, layout: str = 'rows'
) -> tuple[Figure, Tensor, dict[str, Any]]:
    """Image, relevance, mask and counterfactual image of each.

    Args:
        shown: The images.
        settings: Those of a data preprocessor or a loss term, for what is not given.
        mask, fill, value: The variant; without a value, the settings mask a share of the patches.
        seed, layout: As of :func:`show_counterfactuals`.

    Returns:
        tuple: The picture; the patches (B, h, w) taken out; the settings beside the variant that it was made with.
    """
    changes = {
        name: settings[name] for name in CHANGES if fill != 'none' and settings.get(name) not in (None, 'any', 0)
    }
    if value is None:
        changes['mask_share'] = settings['mask_share']
    counterfactuals, patches = shown.counterfactual(mask, fill, value, seed, **changes)
    figure = counterfactual_panel(
        shown.display(shown.inputs),
        shown.relevance,
        patches,
        counterfactuals,
        shown.texts,
        shown.gt_masks,
        layout,
        ('Image', 'Relevance', 'Mask', 'Hidden' if fill == 'none' else 'Counterfactual'),
        published=shown.published,
    )
    return figure, patches, changes


def draw_variants(shown: Shown, seed: int) -> Figure:
    """All nine masks x fills side by side, with their published values."""
    variants = [
        Variant(mask, fill, value, shown.counterfactual(mask, fill, value, seed)[0])
        for mask in MASKS
        for fill in FILLS
        for value in [PUBLISHED_VALUES[mask, fill]]
    ]
    return variants_panel(shown.display(shown.inputs), shown.relevance, variants, shown.texts)


def draw_relevance_crop(shown: Shown, scale: float, layout: str) -> Figure:
    """Image, relevance, what the crop leaves out, and the crop."""
    center = relevance_center(shown.relevance)
    outside = ~part_of_grid(center, scale, shown.relevance.shape[1:])
    return counterfactual_panel(
        shown.display(shown.inputs),
        shown.relevance,
        outside,
        shown.display(zoom_in(shown.inputs, center, scale)),
        shown.texts,
        shown.gt_masks,
        layout,
        ('Image', 'Relevance', 'Left out', 'Relevance crop'),
    )


def choose_variant(
    cfg: Config, mask: str | None, fill: str | None, value: float | None
) -> tuple[str, str, float | None]:
    """Mask, fill and value: as given, else as in the config, else the headline variant. The value is None if the config
    masks a share of the patches in its place.

    Raises:
        ConfigError: The value is not in the range of the mask.
    """
    settings = shown_settings(cfg.model)
    ours = {key: settings.get(key) for key in ('mask', 'fill', 'value')}
    mask, fill = mask or ours['mask'] or 'object', fill or ours['fill'] or 'single'
    if value is None and (mask, fill) == (ours['mask'], ours['fill']):
        value = ours['value']
    if value is None and settings.get('mask_share') is not None:
        return mask, fill, None
    value = PUBLISHED_VALUES[mask, fill] if value is None else value
    try:
        check_value(mask, value)
    except ValueError as error:
        raise ConfigError(f'--value: {error}') from None
    return mask, fill, value


def read_images(
    cfg: Config,
    checkpoint: str | None,
    files: Sequence[Path],
    split: str | None,
    num: int,
    labels: Sequence[str] | None,
    for_predicted: bool,
    seed: int,
    device: torch.device | str,
) -> Shown:
    """Build the model, read the images, and compute the relevance for their labels, or ``for_predicted`` classes."""
    loaded = check_checkpoint(checkpoint) if checkpoint else None
    model = build_model(cfg.model, loaded, checkpoint).to(device)
    gt_masks, sets = None, name_sets(cfg)
    if files:
        items = images_from_files(cfg, files)
        names = find_class_names([sets[name] for name in ('test', 'val', 'train') if name in sets], loaded)
    else:
        items, gt_masks, metainfo = pick_images(DATASETS.build(find_set(cfg, split)), num, seed)
        groups = metainfo.get('label_groups')
        names = metainfo.get('classes') if groups is None else None
    classes = None
    if split:
        classes = head_labels([int(item['data_samples'].gt_label) for item in items], groups)
    return look_at(model, items, names, classes or labels, gt_masks, for_predicted)


def look_at(
    model: nn.Module,
    items: Sequence[dict],
    names: Sequence[str] | None,
    labels: Sequence[int] | Sequence[str] | None = None,
    gt_masks: np.ndarray | None = None,
    for_predicted: bool = False,
) -> Shown:
    """Let a model look at images: their relevance for their labels, or for the predicted classes.

    Args:
        model: A classifier in eval mode.
        items: What a pipeline made of the images.
        names: The class names.
        labels: Indices of the classes, or texts as of ``--labels``. None: the predicted ones.
        gt_masks: (B, H, W) bool, the objects, if they are known.
        for_predicted: Relevance for the predicted classes, also with labels.

    Raises:
        ConfigError: A label is no class, or the model's masks need objects that are not known.
    """
    data = dict(inputs=[item['inputs'] for item in items], data_samples=[item['data_samples'] for item in items])
    inputs = model.data_preprocessor(data)['inputs']
    if gt_masks is not None and gt_masks.shape[1:] != inputs.shape[2:]:
        gt_masks = None  # the pipeline resized the images, not the masks
    with torch.no_grad():
        logits = model(inputs)
    if names is None or len(names) != logits.shape[1]:
        names = [f'class {i}' for i in range(logits.shape[1])]
    predicted = logits.argmax(1).tolist()
    classes = parse_labels(labels, list(names), len(items)) if labels and isinstance(labels[0], str) else labels
    shown = predicted if for_predicted else classes or predicted
    shown_labels = torch.tensor(shown, device=inputs.device)
    options = model.data_preprocessor.relevance
    relevance, *others = compare_relevance(model, inputs, shown_labels, [options, {}] if options else [{}])
    if model.data_preprocessor.oracle and not for_predicted:
        if gt_masks is None:
            raise ConfigError('model.data_preprocessor.oracle=True, but the objects of these images are not known')
        grid = patch_grid(model.backbone, inputs)
        relevance = object_coverage(torch.from_numpy(gt_masks).to(inputs.device), grid)
    texts = label_images(names, predicted, classes)
    return Shown(model, inputs, relevance, texts, gt_masks, *others, labels=shown_labels)


def label_images(names: Sequence[str], predicted: Sequence[int], classes: Sequence[int] | None) -> list[str]:
    """The text beside each image: its class, and the predicted class if that is another one."""
    short = [textwrap.shorten(name.split(',')[0], 20, placeholder='…') for name in names]
    texts = [f'pred. {short[index]}' for index in predicted]
    if classes is None:
        return texts
    return [
        short[label] + ('' if label == index else f'\n{text}') for label, index, text in zip(classes, predicted, texts)
    ]


def name_sets(cfg: Config) -> dict[str, dict]:
    """Configs of all data sets, by the names that ``--split`` takes."""
    sets = {name: cfg[f'{name}_dataloader'].dataset for name in ('train', 'val') if cfg.get(f'{name}_dataloader')}
    test = cfg.get('test_dataloader') or {}
    if 'dataset' in test:
        return {**sets, 'test': test.dataset}
    for name, loader in test.items():
        # A test set may have the name of a training split, such as ImageNet's val.
        sets[f'test/{name}' if name in sets else name] = loader.dataset
    id_set = (cfg.get('test_cfg') or {}).get('id_set')
    if 'test' not in sets and id_set in test:
        sets['test'] = test[id_set].dataset
    return sets


def find_set(cfg: Config, name: str) -> dict:
    """The config of a data set by the name that ``--split`` takes.

    Raises:
        ConfigError: There is no such set.
    """
    sets = name_sets(cfg)
    if name not in sets:
        raise ConfigError(f'unknown --split {name!r}: the config has {", ".join(sets) or "no data sets"}')
    return sets[name]


def pick_images(dataset: Dataset, num: int, seed: int) -> tuple[list[dict], np.ndarray | None, dict]:
    """Random items of a data set in its order, their objects if the data set knows them, and its metainfo."""
    chosen = sorted(np.random.default_rng(seed).permutation(len(dataset))[:num].tolist())
    masks = [dataset.get_data_info(i).get('gt_mask') for i in chosen]
    objects = None if any(mask is None for mask in masks) else np.stack(masks)
    return [dataset[i] for i in chosen], objects, dataset.metainfo


def find_files(paths: Sequence[str], num: int) -> list[Path]:
    """The image files named, and those in the folders named.

    Raises:
        MissingFileError: A path does not exist, or a folder has no images.
        StorageError: A file is not an image.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = find_images(path)
            if not inside:
                raise MissingFileError(f'{path}: there are no images in this folder ({", ".join(EXTENSIONS)})')
            files += [path / name for name in inside]
        elif path.is_file():
            files.append(path)
        else:
            raise MissingFileError(f'{path}: there is no such file or folder')
    for reason in filter(None, map(why_unreadable, files[:num])):
        raise StorageError(reason)
    return files[:num]


def images_from_files(cfg: Config, files: Sequence[Path]) -> list[dict]:
    """Files through the pipeline of the test images.

    Raises:
        ConfigError: The config has no data set.
    """
    sets = name_sets(cfg)
    dataset = next((sets[name] for name in ('test', 'val', 'train') if name in sets), None)
    if dataset is None:
        raise ConfigError('the config has no data set, so there is no pipeline to load images with')
    pipeline = Compose([TRANSFORMS.build(step) for step in make_file_pipeline(dataset, cfg.model)])
    return [pipeline(dict(img_path=str(path))) for path in files]


def parse_labels(labels: Sequence[str], names: Sequence[str], num: int) -> list[int]:
    """Class indices of names or indices, one for each of ``num`` images.

    Raises:
        ConfigError: The number of labels is neither 1 nor ``num``, or there is no such class.
    """
    if len(labels) not in (1, num):
        raise ConfigError(f'--labels: {len(labels)} labels for {num} images; give one per image, or one for all')
    indices = []
    for label in labels:
        if label in names:
            indices.append(names.index(label))
        elif label.isdigit() and int(label) < len(names):
            indices.append(int(label))
        else:
            known = ', '.join(names[:10]) + (', …' if len(names) > 10 else '')
            raise ConfigError(f'--labels: {label!r} is neither a class name nor an index below {len(names)} ({known})')
    return indices * num if len(indices) == 1 else indices
