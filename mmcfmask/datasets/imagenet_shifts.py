"""ImageNet and its distribution shifts, each with the labels and classes of its published protocol."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmengine.dist import is_main_process
from mmpretrain.registry import DATASETS
from rich.progress import track

from ..errors import ConfigError, MissingFileError
from ..messages import short_list, short_list_with_nearest
from .folder import FolderDataset
from .imagenet_labels import (
    IMAGENET_CLASSES,
    IMAGENET_WNIDS,
    flat_images,
    flat_val_images,
    read_class_map,
    read_objectnet_mapping,
)
from .layouts import (
    CORRUPTIONS,
    SETS,
    SEVERITIES,
    SPLITS,
    corruption_folders,
    find_imagenet,
    find_set,
    objectnet_images,
    objectnet_mappings,
)

ALL_CORRUPTIONS = tuple(name for names in CORRUPTIONS.values() for name in names)


def check_corruptions(
    where: str, corruptions: Sequence[str] | None, severities: Sequence[int]
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Check a selection of corruptions (None: all fifteen) and of severities, for errors of the class ``where``.

    Raises:
        ConfigError: An unknown name or severity, one that is listed twice, or none; the message names it.
    """
    names = ALL_CORRUPTIONS if corruptions is None else tuple(corruptions)
    unknown = [name for name in names if name not in ALL_CORRUPTIONS]
    if unknown or not names:
        raise ConfigError(
            f'{where}: corruptions={corruptions!r}: {short_list_with_nearest(unknown, ALL_CORRUPTIONS) or "none"}; '
            f'choose from {", ".join(ALL_CORRUPTIONS)}.'
        )
    levels = tuple(severities)
    if not levels or any(type(level) is not int or level not in SEVERITIES for level in levels):
        raise ConfigError(f'{where}: severities={severities!r} must be a selection of 1, 2, 3, 4, 5.')
    for key, values in dict(corruptions=names, severities=levels).items():
        if len(set(values)) < len(values):  # its images would count twice in the mean
            raise ConfigError(f'{where}: {key}={list(values)!r} lists one of them twice.')
    return names, levels


def subset_metainfo(name: str, wnids: Sequence[str]) -> dict:
    """Class names, label groups and protocol of a published set with a subset of ImageNet's classes."""
    indices = [IMAGENET_WNIDS.index(wnid) for wnid in wnids]
    return dict(
        classes=tuple(IMAGENET_CLASSES[index] for index in indices),
        label_groups=tuple((index,) for index in indices),
        protocol=SETS[name].protocol,
    )


@DATASETS.register_module()
class ImageNetDataset(FolderDataset):
    """ImageNet-1k: 1000 folders named by WordNet id, labels in the usual order, class names of OpenAI's CLIP.

    The validation images may also lie flat, as in their archive. Then a file in or beside the folder gives their labels
    (:func:`mmcfmask.datasets.imagenet_labels.find_ground_truth`).

    Args:
        data_root (str): Folder of ImageNet, or one that holds it (:func:`mmcfmask.datasets.layouts.find_imagenet`).
        split_dir (str): 'train' or 'val', or the name of any sub-folder with the 1000 class folders. Defaults to '':
            ``data_root`` itself holds them.
        ground_truth (str, optional): File with the labels of flat validation images. Defaults to the one that is found.
        **kwargs: Arguments of :class:`FolderDataset` except ``folders``: ``holdout``, ``per_class``, ``pipeline``, ...

    Raises:
        MissingSetError: The folder does not exist.
        MissingFileError: Flat images without a ground truth.
        ConfigError: Unknown, missing or empty class folders, or a ground truth that does not fit.
    """

    METAINFO = dict(classes=IMAGENET_CLASSES, label_groups=None, folders=IMAGENET_WNIDS)

    def __init__(self, data_root: str, split_dir: str = '', ground_truth: str | None = None, **kwargs) -> None:
        self.ground_truth = ground_truth
        if split_dir in SPLITS:
            data_root, name = (
                find_imagenet(data_root, split_dir),
                'imagenet' if split_dir == 'val' else 'imagenet-train',
            )
            kwargs['metainfo'] = dict(protocol=SETS[name].protocol)
            split_dir = ''
        super().__init__(str(data_root), split_dir, folders=IMAGENET_WNIDS, **kwargs)

    def class_images(self, root: Path) -> dict[str, list[str]]:
        """As :class:`FolderDataset`; flat images are sorted into classes by the ground truth."""
        names = flat_images(root)
        return flat_val_images(root, names, self.ground_truth) if names else super().class_images(root)


@DATASETS.register_module()
class ImageNetV2Dataset(FolderDataset):
    """ImageNet-V2 (Recht et al., ICML 2019): 10 images of each class in folders "0" to "999", which are the labels.

    Args:
        data_root (str): Folder of the set, or a common folder of all sets (:func:`mmcfmask.datasets.layouts.find_set`).
        variant (str): 'matched-frequency' (the one usually reported), 'threshold-0.7' or 'top-images'. Defaults to
            'matched-frequency'.
        **kwargs: Arguments of :class:`FolderDataset` except ``split_dir`` and ``folders``.
    """

    VARIANTS = {
        'matched-frequency': 'imagenet-v2',
        'threshold-0.7': 'imagenet-v2-threshold-0.7',
        'top-images': 'imagenet-v2-top-images',
    }
    METAINFO = dict(classes=IMAGENET_CLASSES, label_groups=None, protocol=SETS['imagenet-v2'].protocol)

    def __init__(self, data_root: str, variant: str = 'matched-frequency', **kwargs) -> None:
        if variant not in self.VARIANTS:
            raise ConfigError(
                f'ImageNetV2Dataset: unknown variant {variant!r}, choose one of {", ".join(self.VARIANTS)}.'
            )
        if variant != 'matched-frequency':
            kwargs['metainfo'] = dict(
                notes=[f'the variant {variant}, not matched-frequency, which is usually reported']
            )
        # By number: sorted as strings, "10" would come before "2".
        super().__init__(
            str(find_set(self.VARIANTS[variant], data_root)), folders=[str(label) for label in range(1000)], **kwargs
        )


@DATASETS.register_module()
class ImageNetRDataset(FolderDataset):
    """ImageNet-R (Hendrycks et al., ICCV 2021): renditions of 200 of ImageNet's classes.

    Args:
        data_root (str): Folder of the set, or a common folder of all sets (:func:`mmcfmask.datasets.layouts.find_set`).
        **kwargs: Arguments of :class:`FolderDataset` except ``split_dir`` and ``folders``.
    """

    WNIDS = read_class_map('imagenet_r')
    METAINFO = subset_metainfo('imagenet-r', WNIDS)

    def __init__(self, data_root: str, **kwargs) -> None:
        super().__init__(str(find_set('imagenet-r', data_root)), folders=self.WNIDS, **kwargs)


@DATASETS.register_module()
class ImageNetADataset(FolderDataset):
    """ImageNet-A (Hendrycks et al., CVPR 2021): natural adversarial examples of 200 of ImageNet's classes.

    Args:
        data_root (str): Folder of the set, or a common folder of all sets (:func:`mmcfmask.datasets.layouts.find_set`).
        **kwargs: Arguments of :class:`FolderDataset` except ``split_dir`` and ``folders``.
    """

    WNIDS = read_class_map('imagenet_a')
    METAINFO = subset_metainfo('imagenet-a', WNIDS)

    def __init__(self, data_root: str, **kwargs) -> None:
        super().__init__(str(find_set('imagenet-a', data_root)), folders=self.WNIDS, **kwargs)


@DATASETS.register_module()
class ImageNetSketchDataset(FolderDataset):
    """ImageNet-Sketch (Wang et al., NeurIPS 2019): black-and-white sketches of all classes.

    Args:
        data_root (str): Folder of the set, or a common folder of all sets (:func:`mmcfmask.datasets.layouts.find_set`).
        **kwargs: Arguments of :class:`FolderDataset` except ``split_dir`` and ``folders``.
    """

    METAINFO = dict(
        classes=IMAGENET_CLASSES, label_groups=None, folders=IMAGENET_WNIDS, protocol=SETS['imagenet-sketch'].protocol
    )

    def __init__(self, data_root: str, **kwargs) -> None:
        super().__init__(str(find_set('imagenet-sketch', data_root)), folders=IMAGENET_WNIDS, **kwargs)


@DATASETS.register_module()
class ObjectNetDataset(FolderDataset):
    """ObjectNet (Barbu et al., NeurIPS 2019): the 113 of its 313 classes that overlap with ImageNet.

    The set's own mapping files say which. Several ImageNet classes may mean one ObjectNet class. The images have a red
    border: :class:`CropBorder` must come before the resize in the pipeline.

    Args:
        data_root (str): Folder of the set (with ``images/`` and ``mappings/``), or a common folder of all sets
            (:func:`mmcfmask.datasets.layouts.find_set`).
        mappings (str, optional): Folder of the mapping files. Defaults to ``mappings/``, or the set's folder itself.
        **kwargs: Arguments of :class:`FolderDataset` except ``split_dir``, ``folders`` and ``classes``.

    Raises:
        MissingFileError: A mapping file does not exist; the message names it and its source.
        ConfigError: Mapping files that do not fit together; unknown, missing or empty class folders.
    """

    def __init__(self, data_root: str, mappings: str | None = None, **kwargs) -> None:
        root = find_set('objectnet', data_root)
        mapping = read_objectnet_mapping(objectnet_mappings(root) if mappings is None else Path(mappings).expanduser())
        folders = sorted(folder for folder, group in mapping.groups.items() if group)
        super().__init__(
            str(objectnet_images(root)),
            folders=folders,
            other_folders=[folder for folder, group in mapping.groups.items() if not group],
            classes=[mapping.labels[folder] for folder in folders],
            metainfo=dict(
                label_groups=tuple(mapping.groups[folder] for folder in folders), protocol=SETS['objectnet'].protocol
            ),
            **kwargs,
        )


@DATASETS.register_module()
class ImageNetCDataset(FolderDataset):
    """ImageNet-C (Hendrycks & Dietterich, ICLR 2019): the validation images under 15 corruptions of 5 severities each.

    Class folders lie in ``<corruption>/<severity>/``, or in ``<archive>/<corruption>/<severity>/`` with the archives
    noise, blur, weather and digital. Items also have ``corruption`` (str) and ``severity`` (int), which
    ``PackInputs(meta_keys=…)`` passes on. Listing all 3.75 million images takes a minute and 3.3 GB of memory in every
    process; the list keeps 0.6 GB.

    Args:
        data_root (str): Folder of the set, or a common folder of all sets (:func:`mmcfmask.datasets.layouts.find_set`).
        corruptions (Sequence[str], optional): A selection of the 15. Defaults to all.
        severities (Sequence[int]): A selection of 1 to 5. Defaults to all.
        **kwargs: Arguments of :class:`FolderDataset` except ``split_dir`` and ``folders``; ``per_class`` and
            ``holdout`` select the same images under every corruption.
    """

    CORRUPTIONS = ALL_CORRUPTIONS
    METAINFO = dict(classes=IMAGENET_CLASSES, label_groups=None)

    def __init__(
        self, data_root: str, corruptions: Sequence[str] | None = None, severities: Sequence[int] = SEVERITIES, **kwargs
    ) -> None:
        self.corruptions, self.severities = check_corruptions('ImageNetCDataset', corruptions, severities)
        protocol = dict(SETS['imagenet-c'].protocol, images=50_000 * len(self.corruptions) * len(self.severities))
        super().__init__(
            str(find_set('imagenet-c', data_root)), folders=IMAGENET_WNIDS, metainfo=dict(protocol=protocol), **kwargs
        )

    def list_items(self, root: Path) -> list[dict]:
        """The items of every corruption and severity, in the order of the arguments."""
        places = corruption_folders(root, self.corruptions, self.severities)
        missing = [f'{name}/{severity}' for (name, severity), place in places.items() if place is None]
        if missing:
            raise MissingFileError(
                f'{root}: {len(missing)} of {len(places)} folders are missing: {short_list(missing)}. Get them from '
                f'{SETS["imagenet-c"].source}, or select existing ones with corruptions and severities.'
            )
        items = []
        for (name, severity), place in track(
            places.items(), 'Listing ImageNet-C', transient=True, disable=not is_main_process()
        ):
            items += [dict(item, corruption=name, severity=severity) for item in super().list_items(place)]
        return items
