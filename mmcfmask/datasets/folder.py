"""Image folders with one sub-folder per class, seeded hold-outs and subsets; PACS."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from mmengine.logging import print_log
from mmpretrain.datasets import BaseDataset
from mmpretrain.registry import DATASETS
from rich.progress import track

from ..distributed import on_node
from ..errors import ConfigError, StorageError
from ..messages import short_list
from ..ranges import Count, SubsetSeed
from .class_folders import check_are_classes, check_folders, warn_of_deeper_classes
from .holdout import check_holdout, split_holdout, take_per_class
from .images import EXTENSIONS, left_out_words, why_unreadable, why_unreadable_all
from .names import class_names, composed, read_names
from .published import DOMAIN_IMAGES
from .shards import Folders, Shards, open_tree


@DATASETS.register_module()
class FolderDataset(BaseDataset):
    """Images in ``data_root/split_dir/<class folder>/**``. :func:`mmcfmask.datasets.images.find_images` decides which
    files are images. In place of class folders there may be shards (:mod:`mmcfmask.datasets.shards`).

    Items are dicts with ``img_path``, ``gt_label`` and ``sample_idx``. Hold-out and subset depend on file names and
    seeds only, not on the order of the file system.

    ``metainfo['label_groups']`` maps each class to logits of the model's head: None if the head has the same classes in
    the same order, otherwise a tuple with one tuple of ints per class. ``metainfo['folders']`` holds the folder names
    if their order defines the labels. Published sets have ``metainfo['protocol']``, a dict with ``images`` (None with a
    hold-out), ``num_classes`` and ``source``. If a hold-out is taken from more or fewer images than published,
    ``metainfo['notes']`` says so.

    Args:
        data_root (str): Folder of the data set.
        split_dir (str): Sub-folder that holds the class folders or shards, such as ``'train'``, or a pattern of shards,
            such as ``'data/train-*.parquet'``. Defaults to ''.
        classes (Sequence[str] | str, optional): Class names in label order, or a text file with one name per line.
            Defaults to the folder names.
        folders (Sequence[str], optional): Folder names in label order. The tree must hold exactly these. Defaults to
            all folders in alphabetical order; numbered folders (``2``, ``class_10``) in the order of their numbers.
        other_folders (Sequence[str]): Folders to ignore, besides ``folders``. Defaults to ().
        holdout (dict, optional): Splits the images into seeded parts, stratified by class: ``dict(size=10240, seed=0,
            part='train')`` with ``part`` 'train' or 'held_out', or ``fraction=0.2`` in place of ``size``. ``test=0.1``,
            in the same unit, cuts off a third part 'test' first, by its own seed ``test_seed=0``. The parts are
            disjoint and together hold all images; each class is divided in proportion. A ``size`` above half of the
            images is lowered to half, with a warning. ``seed='run'`` stands for the seed of the run, which the tools
            fill in: train and held_out then differ between runs, test does not. Defaults to None: all images.
        per_class (int, optional): Number of images to keep of every class, drawn after the hold-out. Defaults to None:
            all.
        subset_seed (int | str): Seed of ``per_class``; ``'run'`` as in ``holdout``. A smaller draw is part of a larger
            one. Defaults to 0.
        skip_unreadable (bool): Decode all images when the dataset is built, skip those that fail and name them in the
            log. If False, an unreadable image raises an error with its path when it is read. Defaults to False.
        label_field (str, optional): Of shards: the column, the member or the key of the JSON that holds the labels.
            Defaults to the one that is found (:class:`mmcfmask.datasets.shards.Shards`).
        **kwargs: Arguments of :class:`mmpretrain.datasets.BaseDataset`: ``pipeline``, ``test_mode``, ``indices``, ...

    Attributes:
        num_listed (int): Number of images before hold-out, ``skip_unreadable`` and subset.
        num_skipped (int): Number of images that ``skip_unreadable`` skipped.
        left_out (Counter): Number of files in class folders that are not images, by file extension; also logged.

    Raises:
        MissingSetError: The folder does not exist.
        MissingFileError: The folder has no class folders.
        ConfigError: Empty, unknown or missing class folders; too few images for the hold-out or for ``per_class``.

    Examples:
        >>> train = FolderDataset('data/pets', holdout=dict(fraction=0.2, seed=0, part='train'), pipeline=[...])
        >>> val = FolderDataset('data/pets', holdout=dict(fraction=0.2, seed=0, part='held_out'), pipeline=[...])
    """

    def __init__(
        self,
        data_root: str,
        split_dir: str = '',
        classes: Sequence[str] | str | None = None,
        folders: Sequence[str] | None = None,
        other_folders: Sequence[str] = (),
        holdout: dict | None = None,
        per_class: Count | None = None,
        subset_seed: SubsetSeed = 0,
        skip_unreadable: bool = False,
        label_field: str | None = None,
        **kwargs,
    ) -> None:
        self.folders = None if folders is None else list(folders)
        self.other_folders = list(other_folders)
        self.holdout = None if holdout is None else dict(holdout)
        self.per_class = per_class
        self.subset_seed = subset_seed
        self.skip_unreadable = skip_unreadable
        self.label_field = label_field
        self.num_listed = self.num_skipped = 0
        self.left_out = Counter()
        self._trees: dict[Path, Folders | Shards] = {}
        if self.holdout is not None:
            check_holdout(self.holdout)
        if per_class is not None and per_class < 1:
            raise ConfigError(f'per_class={per_class} must be at least 1.')
        if classes is not None:
            classes = read_names(classes) if isinstance(classes, str) else class_names(classes, 'classes')
        super().__init__(
            ann_file='', data_root=os.path.expanduser(data_root), data_prefix=split_dir, classes=classes, **kwargs
        )

    def full_init(self) -> None:
        """List the images, once for all processes of a machine: they share the list in memory."""
        if self._fully_initialized:
            return

        def settings() -> dict:
            return {key: value for key, value in vars(self).items() if key != 'pipeline'}

        def listed() -> dict:
            super(FolderDataset, self).full_init()
            return settings()

        vars(self).update(on_node(f'{type(self)} {settings()}', listed) if self.serialize_data else listed())
        if self.left_out:
            print_log(
                f'{Path(self.img_prefix)}: ignores {left_out_words(self.left_out)} that are not images (docs/data.md '
                'lists the file extensions of images).',
                'current',
                level=logging.WARNING,
            )

    def load_data_list(self) -> list[dict]:
        """List the images of every class and apply hold-out, check and subset."""
        self._metainfo.setdefault('label_groups', None)
        self.num_listed = 0
        self.left_out.clear()
        items = self.list_items(Path(self.img_prefix))
        self._trees.clear()  # they hold the names of all images
        protocol = self._metainfo.get('protocol')
        if protocol and self.holdout is not None:  # no number is published for a part
            listed, published = self.num_listed, protocol.get('images')
            self._metainfo['protocol'] = dict(protocol, images=None)
            if published not in (None, listed):
                note = (
                    f'held out of an incomplete set: {listed:,} of {published:,} images'
                    if listed < published
                    else f'held out of a set that is not the published one: {listed:,} images instead of {published:,}'
                )
                self._metainfo['notes'] = [*self._metainfo.get('notes', ()), note]
        return items

    def list_items(self, root: Path) -> list[dict]:
        """The items of all images below ``root``, ordered by class and name."""
        images = self.class_images(root)
        empty = [folder for folder, names in images.items() if not names]
        if empty:
            others = f'; {left_out_words(self.left_out)} are not images' if self.left_out else ''
            raise ConfigError(
                f'{root}: no images in the {len(empty)} class folders {short_list(empty)}{others}. Image files end in '
                f'{", ".join(EXTENSIONS)}, in any case.'
            )
        self.num_listed += sum(map(len, images.values()))
        if self.holdout is not None:
            images = split_holdout(images, **self.holdout)
        if self.skip_unreadable:
            before = sum(map(len, images.values()))
            images = drop_unreadable(images, root, self.tree(root).path)
            self.num_skipped += before - sum(map(len, images.values()))
        if self.per_class is not None:
            images = take_per_class(images, self.per_class, self.subset_seed)
        path = self.tree(root).path
        return [
            dict(img_path=path(name), gt_label=label) for label, names in enumerate(images.values()) for name in names
        ]

    def tree(self, root: Path) -> Folders | Shards:
        """The class folders in ``root``, or the shards that take their place."""
        if root not in self._trees:
            expected = None if self.folders is None else [*self.folders, *self.other_folders]
            self._trees[root] = open_tree(root, self.label_field, expected)
        return self._trees[root]

    def class_images(self, root: Path) -> dict[str, list[str]]:
        """Sorted image names relative to ``root``, by class folder, in label order. Sets the class names if unset."""
        folders, tree = self.name_classes(root), self.tree(root)
        images = {folder: tree.images(folder, self.left_out) for folder in folders}
        if self.folders is None and isinstance(tree, Folders):
            warn_of_deeper_classes(images, root)
        return images

    def name_classes(self, root: Path) -> list[str]:
        """Names of the class folders on disk, in label order. Sets ``folders`` and ``classes`` of the metainfo."""
        present = self.tree(root).folders()
        check_folders(self.folders or present, present, root, self.other_folders)
        here = {composed(folder): folder for folder in present}
        if self.folders is None:
            check_are_classes(present, root)
            self._metainfo['folders'] = tuple(here)
        names = tuple(map(composed, self.folders or present))
        if self._metainfo.get('classes') is None:
            self._metainfo['classes'] = names
        if len(self._metainfo['classes']) != len(names):
            raise ConfigError(
                f'{root} has {len(names)} class folders, but {len(self._metainfo["classes"])} class names are given.'
            )
        return [here[name] for name in names]

    def prepare_data(self, idx: int):
        """Run the pipeline. An image that cannot be read raises a StorageError that names it."""
        try:
            return super().prepare_data(idx)
        except Exception:
            path = self.get_data_info(idx)['img_path']
            reason = why_unreadable(path)
            if reason is None:
                raise  # a transform failed, not the image
            raise StorageError(
                f'{reason}. Repair or remove it, or skip such images: --skip-broken of tools/test.py and '
                'tools/wise_ft.py, elsewhere skip_unreadable=True on the dataset.'
            ) from None

    def extra_repr(self) -> list[str]:
        """Where the images are, and which of them are used."""
        return [
            f'Root of images: \t{self.img_prefix}',
            f'Hold-out: \t{self.holdout}',
            f'Images per class: \t{self.per_class}',
        ]


@DATASETS.register_module()
class PACSDataset(FolderDataset):
    """One domain of PACS (Li et al., ICCV 2017): 7 classes in ``data_root/<domain>/<class>``. All domains but one:
    :class:`mmcfmask.datasets.DomainDataset`.

    Args:
        data_root (str): Folder of the data set, with the domains as sub-folders.
        domain (str): 'photo', 'art_painting', 'cartoon' or 'sketch'. Defaults to 'photo'.
        **kwargs: Arguments of :class:`FolderDataset` except ``split_dir`` and ``folders``.
    """

    METAINFO = dict(classes=('dog', 'elephant', 'giraffe', 'guitar', 'horse', 'house', 'person'))
    IMAGES = DOMAIN_IMAGES['pacs']
    DOMAINS = tuple(IMAGES)

    def __init__(self, data_root: str, domain: str = 'photo', **kwargs) -> None:
        if domain not in self.DOMAINS:
            raise ConfigError(f'PACSDataset: unknown domain {domain!r}, choose one of {", ".join(self.DOMAINS)}.')
        protocol = dict(
            images=self.IMAGES[domain], num_classes=7, source='https://dali-dl.github.io/project_iccv2017.html'
        )
        super().__init__(
            data_root, split_dir=domain, folders=self.METAINFO['classes'], metainfo=dict(protocol=protocol), **kwargs
        )


def drop_unreadable(
    images: dict[str, list[str]], root: Path, path: Callable[[str], str] | None = None
) -> dict[str, list[str]]:
    """Decode every image once; drop the unreadable ones and log them. ``path`` says where an image is; by default below
    ``root``."""
    names = [name for folder in images.values() for name in folder]
    paths = [f'{root}/{name}' if path is None else path(name) for name in names]
    reasons = list(track(why_unreadable_all(paths), f'Reading the images of {root}', len(names)))
    bad = {name: reason for name, reason in zip(names, reasons) if reason is not None}
    if bad:
        listed = '\n'.join(f'    {reason}' for reason in bad.values())
        print_log(
            f'{len(bad)} of {len(names)} images cannot be read and are skipped:\n{listed}',
            'current',
            level=logging.WARNING,
        )
    readable = {folder: [name for name in names if name not in bad] for folder, names in images.items()}
    emptied = [folder for folder in images if images[folder] and not readable[folder]]
    if emptied:
        raise ConfigError(f'{root}: no readable image in the class folders {short_list(emptied)}.')
    return readable
