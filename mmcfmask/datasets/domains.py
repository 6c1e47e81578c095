"""Benchmarks of domain generalisation in DomainBed's layout: PACS, VLCS, Office-Home, Terra Incognita, DomainNet."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from mmpretrain.registry import DATASETS

from ..errors import ConfigError
from ..messages import near_names
from .class_folders import MissingSetError, sub_folders
from .folder import FolderDataset
from .layouts import SETS, find_set
from .published import DOMAIN_IMAGES


@DATASETS.register_module()
class DomainDataset(FolderDataset):
    """All domains of a benchmark but one, or that one, for leave-one-domain-out (Gulrajani & Lopez-Paz, "In Search of
    Lost Domain Generalization", ICLR 2021).

    Layout: ``<benchmark>/<domain>/<class>/``, as DomainBed's download script makes it. All domains have the same class
    folders, whose order is that of the labels. Items carry ``group`` (int), the domain.

    Args:
        data_root (str): Folder of the benchmark, or a folder of all sets that holds it
            (:func:`mmcfmask.datasets.layouts.find_set`).
        benchmark (str): 'pacs', 'vlcs', 'office-home', 'terra-incognita' or 'domainnet'.
        left_out (str, optional): A domain, by the name of its folder; case, spaces and underscores do not matter.
            Defaults to None: none is left out.
        use (str): 'others' or 'left_out'. Defaults to 'others'.
        **kwargs: Arguments of :class:`FolderDataset` except ``split_dir`` and ``folders``. ``holdout`` and
            ``per_class`` act on each domain; so ``holdout`` takes a ``fraction``.

    Raises:
        MissingSetError: The benchmark or a domain does not exist.
        ConfigError: An unknown benchmark or domain; domains with different class folders.
    """

    def __init__(
        self,
        data_root: str,
        benchmark: str,
        left_out: str | None = None,
        use: Literal['others', 'left_out'] = 'others',
        **kwargs,
    ) -> None:
        if benchmark not in DOMAIN_IMAGES:
            raise ConfigError(
                f'DomainDataset: unknown benchmark={benchmark!r}, choose one of {", ".join(DOMAIN_IMAGES)}.'
                f'{near_names(str(benchmark), list(DOMAIN_IMAGES))}'
            )
        images = DOMAIN_IMAGES[benchmark]
        names = {plain(name): name for name in images}
        if left_out is not None and plain(left_out) not in names:
            raise ConfigError(
                f'DomainDataset: {benchmark} has no domain left_out={left_out!r}, but {", ".join(images)}.'
                f'{near_names(str(left_out), list(images))}'
            )
        if use not in ('others', 'left_out') or use == 'left_out' and left_out is None:
            raise ConfigError(
                f"DomainDataset: use={use!r} with left_out={left_out!r}: use is 'others', or 'left_out' with the name "
                'of a domain.'
            )
        if kwargs.get('holdout') and kwargs['holdout'].get('size') is not None:
            raise ConfigError('DomainDataset: holdout takes a fraction of each domain, not a size.')
        away = None if left_out is None else names[plain(left_out)]
        self.domains = (away,) if use == 'left_out' else tuple(name for name in images if name != away)
        counts = [images[name] for name in self.domains]
        published = SETS[benchmark]
        total = None if None in counts else sum(counts)
        super().__init__(
            str(find_set(benchmark, data_root)),
            metainfo=dict(protocol=dict(published.protocol, images=total), group_names=self.domains),
            **kwargs,
        )

    def domain_folders(self, root: Path) -> list[Path]:
        """Folders of the domains.

        Raises:
            MissingSetError: A domain does not exist.
        """
        here = {plain(name): root / name for name in sub_folders(root)}
        missing = [name for name in self.domains if plain(name) not in here]
        if missing:
            found = ', '.join(sub_folders(root)) or 'none'
            raise MissingSetError(f'{root}: there is no folder of the domain {missing[0]}; there are {found}.')
        return [here[plain(name)] for name in self.domains]

    def name_classes(self, root: Path) -> list[str]:
        """Names of the class folders of a domain, or of the first one if ``root`` is the folder of all."""
        return super().name_classes(self.domain_folders(root)[0] if root == Path(self.img_prefix) else root)

    def list_items(self, root: Path) -> list[dict]:
        """The items of every domain; all domains must have the class folders of the first."""
        items, given = [], self.folders
        try:
            for group, place in enumerate(self.domain_folders(root)):
                items += [dict(item, group=group) for item in super().list_items(place)]
                self.folders = self.folders or list(self._metainfo['folders'])
        finally:
            self.folders = given
        return items


def plain(name: str) -> str:
    """The name of a domain in lower case, with letters and digits only."""
    return re.sub(r'[^a-z0-9]', '', str(name).lower())
