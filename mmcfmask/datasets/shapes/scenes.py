"""Scenes: what an image shows, drawn at random from the ranges of its split, and its caption."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .tables import (
    CLASS_BACKGROUNDS,
    COLORS,
    IMAGE_SIZE,
    NEW_OUTLINE_RATE,
    NUISANCES,
    OUTLINES,
    RENDITIONS,
    SHAPES_CLASSES,
    SPLITS,
    SPURIOUS_RATE,
    STYLE_WORDS,
    STYLES,
    TEXTURES,
)


@dataclass(frozen=True)
class Scene:
    """What one image shows. Lengths in pixels, the angle in radians; ``outline`` is one of the class's ``OUTLINES``."""

    label: int
    outline: str
    style: str
    color: str
    texture: str
    background: str
    center: tuple[float, float]
    radius: float
    angle: float
    clutter: int
    noise: float
    light: float


def choice(rng: np.random.Generator, options):
    return options[int(rng.integers(len(options)))]


def luminance(color: str) -> float:
    """Brightness of a named colour, 0 to 1 (ITU-R BT.601)."""
    return float(np.dot((0.299, 0.587, 0.114), COLORS[color]))


def image_rng(split: str, seed: int, index: int, stream: int = 0) -> np.random.Generator:
    """The generator of one image; ``stream`` 0 draws the image, 1 its caption."""
    return np.random.default_rng([SPLITS.index(split), seed, index, stream])


def is_on_own_background(scene: Scene) -> bool:
    """Whether the background is one that the ID splits tie to the class."""
    return (scene.texture, scene.background) in CLASS_BACKGROUNDS[scene.label]


def sample_scene(split: str, label: int, rng: np.random.Generator, own: bool = True) -> Scene:
    """Draw a scene of class ``label`` in ``split``.

    ``own`` counts in the split 'groups' alone: one of the class's own backgrounds, or else of another class's.
    """
    nuisance = NUISANCES[split]
    texture, background = choice(rng, TEXTURES), choice(rng, tuple(COLORS))
    if split in ('train', 'val', 'test'):
        own = rng.random() < SPURIOUS_RATE
    elif split == 'a':
        own = False
    if split not in ('pretrain', 'v2', 'r', 'sketch'):
        other = (label + 1 + int(rng.integers(len(SHAPES_CLASSES) - 1))) % len(SHAPES_CLASSES)
        texture, background = choice(rng, CLASS_BACKGROUNDS[label if own else other])

    outline, *new_outlines = OUTLINES[SHAPES_CLASSES[label]]
    # The images of pre-training draw nothing here: they are those that the shipped weights saw.
    if split != 'pretrain' and rng.random() < NEW_OUTLINE_RATE:
        outline = choice(rng, new_outlines)

    if split == 'pretrain':
        style = 'photo' if rng.random() < 0.35 else choice(rng, STYLES[1:])
    elif split == 'r':
        style = choice(rng, RENDITIONS)
    else:
        style = 'sketch' if split == 'sketch' else 'photo'

    radius = float(rng.uniform(*nuisance.radius))
    # The object stays inside, unless it is cut: then it sticks out of one side by up to half its radius.
    reach = min(nuisance.max_shift, max(IMAGE_SIZE / 2 - radius, 0))
    center = IMAGE_SIZE / 2 + rng.uniform(-reach, reach, 2)
    if rng.random() < nuisance.cut_rate:
        border = radius * rng.uniform(0.5, 0.9)
        center[int(rng.integers(2))] = border if rng.random() < 0.5 else IMAGE_SIZE - border
    # The object stands out: its colour differs from the background in brightness.
    distinct = tuple(c for c in COLORS if abs(luminance(c) - luminance(background)) > 0.2)
    return Scene(
        label=label,
        outline=outline,
        style=style,
        color=choice(rng, distinct),
        texture=texture,
        background=background,
        center=(float(center[0]), float(center[1])),
        radius=radius,
        angle=float(np.deg2rad(rng.uniform(-nuisance.max_angle, nuisance.max_angle))),
        clutter=int(rng.integers(nuisance.clutter[0], nuisance.clutter[1] + 1)),
        noise=float(rng.uniform(*nuisance.noise)),
        light=nuisance.light,
    )


def _article(words: str) -> str:
    return ('an ' if words[0] in 'aeiou' else 'a ') + words


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """Describe a scene in one English sentence of at most 20 words.

    As in captions on the web, the object is always named, its surroundings rarely. (If captions said everything,
    colours alone would tell the pairs of a batch apart, and a contrastive loss would not need the shape.)
    """
    word = choice(rng, STYLE_WORDS[scene.style])
    # A negative shows other colours than the scene, a line drawing shows none.
    colored = scene.style not in ('inverted', 'sketch')
    thing = SHAPES_CLASSES[scene.label]
    if colored and rng.random() < 0.4:
        thing = f'{scene.color} {thing}'
    if rng.random() < 0.3:
        thing = ('small ' if scene.radius < 13 else 'large ' if scene.radius > 18 else 'medium ') + thing
    place = ''
    if rng.random() < 0.25:
        dx, dy = (c - IMAGE_SIZE / 2 for c in scene.center)
        if max(abs(dx), abs(dy)) > 5:
            side = ('left' if dx < 0 else 'right') if abs(dx) > abs(dy) else ('top' if dy < 0 else 'bottom')
            place = f' at the {side}'
        else:
            place = ' in the middle'
    ground = ''
    if rng.random() < 0.35:
        ground = scene.texture
        if colored and rng.random() < 0.5:
            ground = f'{scene.background} {ground}'
        ground = choice(rng, (' on {} background', ' in front of {} pattern')).format(_article(ground))
    template = choice(
        rng,
        (
            '{a_word} of {a_thing}{place}{ground}',
            '{a_word} showing {a_thing}{place}{ground}',
            '{a_thing}{place}{ground}, {word}',
        ),
    )
    text = template.format(word=word, a_word=_article(word), a_thing=_article(thing), place=place, ground=ground)
    return text + choice(rng, ('', '.'))
