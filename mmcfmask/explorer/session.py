"""What the explorer computes: relevance, mask, counterfactual image and predictions of one choice."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import Tensor

from ..counterfactual import object_coverage, patch_grid, relevance_map
from ..datasets.holdout import follow_run
from ..engine.checkpoints import read_checkpoint
from ..engine.checks.model import counterfactual_settings, shown_settings
from ..engine.counterfactual_images import CHANGES, choose_variant
from ..engine.testing import find_class_names
from ..errors import ConfigError
from ..models.losses.base import hidden_from
from ..models.maker import PUBLISHED_VALUES, Counterfactual, CounterfactualMaker
from ..models.preprocessor import to_unit_rgb
from ..reporting import grey_out_patches
from .images import ImageShelf, Source
from .towers import ZERO_SHOT, load_towers

BETTER = dict(outliers=6.0, smooth='mean')
"""The relevance map of docs/relevance.md, for configs that have none of their own."""

CANDIDATES = 32  # images that a donor is looked for among
MULTI_DONORS = 7
"""Images that patches of a 'multi' fill come from: with the image itself, a batch of 8."""

PUBLISHED, CLEANED, OBJECT = 'published', 'cleaned', 'true object'
MAPS = (PUBLISHED, CLEANED, OBJECT)


@dataclass(frozen=True)
class Choice:
    """What a person has chosen.

    Attributes:
        image: The image.
        label: Its class, an output of the head.
        donor: The image that gives patches. With a 'multi' fill, the first of several.
        mask, fill, value, mask_share: As of :class:`mmcfmask.models.maker.CounterfactualMaker`.
        changes: With the other options of the config: views and colours.
        map: One of :data:`MAPS`.
        tower: Whose relevance map it is, by the names of :func:`.towers.load_towers`.
        alpha: α of WiSE-FT, of all fine-tuned models, in [0, 1].
        seed: Of random masks, of the donors of a 'multi' fill, and of random views and colours.
    """

    image: Source
    label: int
    donor: Source | None = None
    mask: str = 'object'
    fill: str = 'single'
    value: float | None = None
    mask_share: float | None = None
    changes: bool = True
    map: str = PUBLISHED
    tower: str = ZERO_SHOT
    alpha: float = 1.0
    seed: int = 0


class Answer(NamedTuple):
    """Class probabilities (C,) of one model, for the image and for its counterfactual image."""

    tower: str
    image: Tensor
    counterfactual: Tensor


class Look(NamedTuple):
    """What a choice leads to.

    Attributes:
        choice: The choice.
        image: (3, H, W) RGB in 0..1.
        relevance: (h, w).
        mask: (h, w) bool, the patches taken out.
        counterfactual: (3, H, W) RGB in 0..1; hidden patches are grey.
        made: The counterfactual image as training makes it: normalised, (1, 3, H, W).
        donors: (3, H, W) RGB in 0..1 each, those that may have given patches.
        object: (H, W) bool, the true object, where it is known.
        answers: Of every model.
    """

    choice: Choice
    image: Tensor
    relevance: Tensor
    mask: Tensor
    counterfactual: Tensor
    made: Counterfactual
    donors: list[Tensor]
    object: Tensor | None
    answers: list[Answer]


class Explorer:
    """Computes what the page shows. Models are loaded once; relevance maps, predictions for images and the images
    themselves are kept, so that another threshold costs a mask, a refill and a prediction.

    Args:
        cfg (Config): A config whose model has pretrained weights.
        checkpoints (Sequence[str]): Files of fine-tuned weights.
        device: Where the models run.

    Attributes:
        classes (list[str]): The names of the outputs of the head.
        towers (dict[str, Tower]): The models.
        shelf (ImageShelf): The images.
        map_options (dict): Options of the cleaned relevance map.

    Raises:
        ConfigError: See :func:`.towers.load_towers`.
        MissingFileError: There is no such checkpoint.
    """

    def __init__(self, cfg: Config, checkpoints: Sequence[str] = (), device: torch.device | str = 'cpu') -> None:
        follow_run(cfg, (cfg.get('randomness') or {}).get('seed'))
        init_default_scope(cfg.get('default_scope', 'mmpretrain'))
        self.cfg = cfg
        self.towers = load_towers(cfg, list(checkpoints), device)
        self.shelf = ImageShelf(cfg)
        self.preprocessor = self.towers[ZERO_SHOT].model.data_preprocessor
        self.map_options: dict[str, Any] = self.preprocessor.relevance or BETTER
        num_classes = self.towers[ZERO_SHOT].model.head.num_classes
        trained = read_checkpoint(checkpoints[0]) if checkpoints else None
        names = find_class_names([self.shelf.sets[name] for name in self.shelf.names], trained)
        known = names is not None and len(names) == num_classes
        self.classes = list(names) if known else [f'class {index}' for index in range(num_classes)]
        self._lock = threading.RLock()  # the weights of a model change with α
        self._relevance = lru_cache(256)(self._compute_relevance)
        self._answer = lru_cache(256)(self._compute_answer)

    # What a person chooses from

    def pick(self, name: str, num: int, page: int = 0) -> list[Source]:
        """Images of a set, see :meth:`.images.ImageShelf.pick`."""
        with self._lock:
            return self.shelf.pick(name, num, page)

    def thumbnail(self, source: Source) -> tuple[np.ndarray, str]:
        """An image as a model sees it, (H, W, 3) uint8, and its class."""
        with self._lock:
            label = self.shelf.label(source, len(self.classes))
            pixels = self.display(self.inputs(source))[0].permute(1, 2, 0).numpy()
        return (pixels * 255).round().astype(np.uint8), source.words if label is None else self.classes[label]

    def default_choice(self, image: Source) -> Choice:
        """The choice to begin with: the variant of the config."""
        used = CLEANED if self.preprocessor.relevance else PUBLISHED
        used = OBJECT if self.preprocessor.oracle and OBJECT in self.maps(image) else used
        label = self.find_label(image)
        mask, fill, value = choose_variant(self.cfg, None, None, None)
        share = self.settings.get('mask_share') if value is None else None
        donor = self.find_donor(image, label)
        return Choice(image, label, donor, mask, fill, value, share, map=used)

    def with_image(self, choice: Choice | None, image: Source) -> Choice:
        """A choice with another image and its class, and with a donor that may give patches to it."""
        if choice is None:
            return self.default_choice(image)
        label, donor = self.find_label(image), choice.donor
        if donor is None or donor == image:
            donor = self.find_donor(image, label)
        used = choice.map if choice.map in self.maps(image) else PUBLISHED
        return replace(choice, image=image, label=label, donor=donor, map=used)

    def drawn_again(self, choice: Choice) -> Choice:
        """A choice with other random numbers, and another donor of the same set; a file stays the donor."""
        donor, seed = choice.donor, choice.seed + 1
        if donor is not None and donor.index is not None:
            donor = self.find_donor(choice.image, choice.label, donor.name, seed)
        return replace(choice, donor=donor, seed=seed)

    def maps(self, image: Source) -> list[str]:
        """The relevance maps that an image has: that of the true object, where it is known."""
        with self._lock:
            return [kind for kind in MAPS if kind != OBJECT or 'gt_mask' in self.shelf.item(image)]

    def with_usual_value(self, choice: Choice, share: bool = False) -> Choice:
        """A choice with the value of the config for its mask and fill, or else the published one.

        Args:
            choice: The choice.
            share: The share of patches of the config in its place, or else a half.
        """
        if share:
            return replace(choice, value=None, mask_share=self.settings.get('mask_share') or 0.5)
        ours = self.settings.get('value')
        same = (choice.mask, choice.fill) == choose_variant(self.cfg, None, None, None)[:2]
        value = ours if same and ours is not None else PUBLISHED_VALUES[choice.mask, choice.fill]
        return replace(choice, value=value, mask_share=None)

    def find_label(self, image: Source) -> int:
        """The class of an image, or else the zero-shot prediction."""
        with self._lock:
            label = self.shelf.label(image, len(self.classes))
            return int(self._answer(image, ZERO_SHOT, 1.0).argmax()) if label is None else label

    def find_donor(self, image: Source, label: int, name: str | None = None, page: int = 0) -> Source | None:
        """An image that can give patches to ``image``: of the set ``name``, or else of its own set, or of the first set
        for a file. None if there is none. Other pages have others."""
        name = name or (image.name if image.index is not None else next(iter(self.shelf.names), None))
        with self._lock:
            return None if name is None else next(self._candidates(name, image, label, page), None)

    def _candidates(self, name: str, image: Source, label: int, page: int = 0) -> Iterator[Source]:
        """Other images of a set, of other classes where the config asks for that."""
        others = [source for source in self.shelf.pick(name, CANDIDATES, page) if source != image]
        any_class = self.settings.get('donors') != 'other_class'
        return (s for s in others if any_class or self.shelf.label(s, len(self.classes)) != label)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of the counterfactual images of the config."""
        return shown_settings(self.cfg.model)

    @property
    def trains_on_counterfactuals(self) -> bool:
        """Whether the config trains on counterfactual images."""
        return bool(counterfactual_settings(self.cfg.model))

    @property
    def changes(self) -> dict[str, Any]:
        """The settings beside mask and fill that change the picture: random views and colours."""
        found = {name: self.settings.get(name) for name in CHANGES if name != 'donors'}
        return {name: value for name, value in found.items() if value not in (None, 0)}

    # What is computed

    def look(self, choice: Choice) -> Look:
        """Compute everything that the page shows of a choice.

        Raises:
            ConfigError: A value out of range, a fill without a donor, images of different sizes, or a relevance map
                that this tower or image does not have.
            StorageError: An image cannot be read.
        """
        with self._lock:
            if choice.tower not in self.towers:
                raise ConfigError(f'there is no model {choice.tower!r}: choose {", ".join(self.towers)}')
            image = self.inputs(choice.image)
            donors = [self.inputs(source) for source in self.donors(choice)]
            if any(donor.shape != image.shape for donor in donors):
                raise ConfigError('the donor has another size than the image: choose one of the same set')
            model = self.towers[choice.tower].at(choice.alpha)
            grid = patch_grid(model.backbone, image)
            alpha = 1.0 if choice.tower == ZERO_SHOT else choice.alpha  # a zero-shot model has no α
            relevance = self._relevance(choice.image, choice.label, choice.map, choice.tower, alpha)
            made = make_counterfactual(image, donors, relevance, grid, self.maker(choice), choice.seed)
            answers = [self._answers(name, choice, made) for name in self.towers]
            item = self.shelf.item(choice.image)
            shown = self.display(made.images)[0]
            return Look(
                choice=choice,
                image=self.display(image)[0],
                relevance=relevance[0].cpu(),
                mask=made.mask[0].cpu(),
                counterfactual=torch.as_tensor(grey_out_patches(shown[None], made.mask)[0]) if made.hidden else shown,
                made=made,
                donors=[self.display(donor)[0] for donor in donors],
                object=item.get('gt_mask'),
                answers=answers,
            )

    def maker(self, choice: Choice) -> CounterfactualMaker:
        """What training makes counterfactual images with.

        Raises:
            ConfigError: A value out of range.
        """
        changes = self.changes if choice.changes and choice.fill != 'none' else {}
        try:
            return CounterfactualMaker(choice.mask, choice.fill, choice.value, choice.mask_share, **changes)
        except ValueError as error:
            raise ConfigError(str(error)) from None

    def donors(self, choice: Choice) -> list[Source]:
        """The images that may give patches: none, the chosen one, or with a 'multi' fill some more of its set.

        Raises:
            ConfigError: There is no donor, or it is the image itself.
        """
        if choice.fill == 'none':
            return []
        if choice.donor is None:
            raise ConfigError('a fill takes patches from another image: choose a donor, or the fill "none"')
        if choice.donor == choice.image:
            raise ConfigError('the donor is the image itself: choose another one')
        if choice.fill == 'single' or choice.donor.index is None:
            return [choice.donor]
        others = self._candidates(choice.donor.name, choice.image, choice.label, choice.seed)
        more = (source for source in others if source != choice.donor)
        return [choice.donor, *islice(more, MULTI_DONORS - 1)]

    def inputs(self, source: Source) -> Tensor:
        """An image (1, 3, H, W), normalised, on the device."""
        item = self.shelf.item(source)
        return self.preprocessor(dict(inputs=[item['inputs']], data_samples=[item['data_samples']]))['inputs']

    def display(self, images: Tensor) -> Tensor:
        """Normalised images as RGB in 0..1, on the CPU."""
        return to_unit_rgb(self.preprocessor, images).cpu()

    def _compute_relevance(self, source: Source, label: int, kind: str, tower: str, alpha: float) -> Tensor:
        """The relevance map (1, h, w) of an image for a class."""
        image, model = self.inputs(source), self.towers[tower].at(alpha)
        if kind not in MAPS:
            raise ConfigError(f'there is no relevance map {kind!r}: choose {", ".join(MAPS)}')
        if kind == OBJECT:
            known = self.shelf.item(source).get('gt_mask')
            if known is None:
                raise ConfigError('the object of this image is not known: choose another relevance map')
            return object_coverage(known[None].to(image.device), patch_grid(model.backbone, image))
        options = {} if kind == PUBLISHED else self.map_options
        return relevance_map(model, image, torch.tensor([label], device=image.device), **options)

    def _answers(self, name: str, choice: Choice, made: Counterfactual) -> Answer:
        """The answers of a model to an image, which are kept, and to a counterfactual image."""
        alpha = 1.0 if name == ZERO_SHOT else choice.alpha
        image = self._answer(choice.image, name, alpha)
        model = self.towers[name].at(alpha)
        with hidden_from(model.backbone, made):
            return Answer(name, image, predict(model, made.images))

    def _compute_answer(self, source: Source, tower: str, alpha: float) -> Tensor:
        return predict(self.towers[tower].at(alpha), self.inputs(source))


@torch.no_grad()
def predict(model: torch.nn.Module, image: Tensor) -> Tensor:
    """Class probabilities (C,) of a normalised image (1, 3, H, W), as a test predicts it."""
    return model.predict(image)[0].pred_score.float().cpu()


def make_counterfactual(
    image: Tensor,
    donors: Sequence[Tensor],
    relevance: Tensor,
    grid: tuple[int, int],
    maker: CounterfactualMaker,
    seed: int,
) -> Counterfactual:
    """The counterfactual image that training makes of a batch of the image and its donors.

    Args:
        image (Tensor): (1, 3, H, W), normalised.
        donors (Sequence[Tensor]): (1, 3, H, W) each. With one of them, it is the donor; with more, each patch of a
            'multi' fill draws its own.
        relevance (Tensor): (1, h, w), of the image.
        grid (tuple[int, int]): h and w.
        maker (CounterfactualMaker): What training makes it with.
        seed (int): Of what is random.

    Returns:
        Counterfactual: Of the image alone, as a batch of 1.
    """
    batch = torch.cat([image, *donors])
    relevances = torch.cat([relevance, relevance.new_zeros(len(donors), *grid)])  # the masks of donors do not matter
    generator = torch.Generator(image.device).manual_seed(seed)
    made = maker.counterfactual(batch, grid, relevances, generator)
    return Counterfactual(made.images[:1], made.mask[:1], made.hidden, made.kept)
