"""The built-in benchmark: rendered shapes (the cause) on textured, coloured backgrounds (not the cause).

An image is determined by ``(split, seed, index)`` alone. :func:`sample_scene` draws what is to be seen,
:func:`render_scene` draws the pixels, :func:`caption` says it in words; :class:`ShapesDataset` serves a split to
mmengine. Shapes are signed distance functions in pixels: one function gives coverage, outline, shading, shadow and the
ground-truth mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from mmpretrain.datasets import BaseDataset
from mmpretrain.registry import DATASETS

from ..errors import ConfigError
from ..ranges import Count, Seed

IMAGE_SIZE = 64
SHAPES_CLASSES = ('circle', 'square', 'triangle', 'star', 'cross', 'heart', 'ring', 'crescent', 'bolt', 'bowtie')

COLORS = {
    'red': (0.85, 0.15, 0.15),
    'orange': (0.95, 0.55, 0.10),
    'yellow': (0.93, 0.86, 0.20),
    'green': (0.20, 0.62, 0.24),
    'cyan': (0.25, 0.80, 0.85),
    'blue': (0.15, 0.30, 0.85),
    'purple': (0.52, 0.20, 0.68),
    'pink': (0.96, 0.55, 0.75),
    'brown': (0.48, 0.30, 0.15),
    'white': (0.94, 0.94, 0.94),
    'gray': (0.50, 0.50, 0.50),
    'black': (0.10, 0.10, 0.10),
}
TEXTURES = ('brick', 'striped', 'dotted', 'checkered', 'wavy', 'grassy', 'cloudy', 'grid', 'zigzag', 'sandy')

# What the ID splits tie to each class, in the order of SHAPES_CLASSES: texture and colour of the background.
CLASS_BACKGROUNDS = (
    ('grassy', 'green'),
    ('brick', 'red'),
    ('sandy', 'yellow'),
    ('cloudy', 'blue'),
    ('grid', 'white'),
    ('dotted', 'pink'),
    ('wavy', 'cyan'),
    ('striped', 'black'),
    ('zigzag', 'purple'),
    ('checkered', 'brown'),
)
SPURIOUS_RATE = 0.95

RENDITIONS = ('flat', 'painted', 'inverted', 'cartoon')
STYLES = ('photo', *RENDITIONS, 'sketch')
STYLE_WORDS = dict(
    photo=('photo', 'picture', 'photograph'),
    flat=('flat icon', 'clip art'),
    painted=('painting', 'watercolor'),
    inverted=('negative', 'inverted photo'),
    cartoon=('cartoon', 'comic'),
    sketch=('sketch', 'line drawing', 'doodle'),
)

#: Prompts of the zero-shot head, ``str.format`` style.
SHAPES_TEMPLATES = (
    'a photo of a {}.',
    'a picture of a {}.',
    'a photo of a small {}.',
    'a photo of a large {}.',
    'a flat icon of a {}.',
    'a painting of a {}.',
    'a negative of a {}.',
    'a cartoon of a {}.',
    'a sketch of a {}.',
    'a line drawing of a {}.',
)

#: Number of images of a split where none is asked for.
SPLIT_SIZES = dict(pretrain=60_000, train=4000, val=500, test=1000, v2=1000, r=1000, sketch=1000, a=1000)
SPLITS = tuple(SPLIT_SIZES)


@dataclass(frozen=True)
class Nuisance:
    """Ranges of everything that is not the class; lengths in pixels, angles in degrees."""

    radius: tuple[float, float]
    max_angle: float
    max_shift: float
    clutter: tuple[int, int] = (0, 0)  # number of stray bars, inclusive
    cut_rate: float = 0.0  # share of objects that stick out of the image
    noise: tuple[float, float] = (0.01, 0.04)  # of the sensor, photo style only
    light: float = 0.35  # strength of the lighting gradient, photo style only


_ID = Nuisance(radius=(15, 22), max_angle=20, max_shift=8, clutter=(0, 1))
NUISANCES = dict(
    pretrain=Nuisance(
        radius=(13, 23), max_angle=25, max_shift=9, clutter=(0, 2), cut_rate=0.05, noise=(0.01, 0.05), light=0.4
    ),
    train=_ID,
    val=_ID,
    test=_ID,
    v2=Nuisance(radius=(13, 21), max_angle=28, max_shift=10, clutter=(0, 2), noise=(0.02, 0.06), light=0.5),
    r=_ID,
    sketch=_ID,
    a=Nuisance(radius=(11, 16), max_angle=25, max_shift=12, clutter=(1, 3), cut_rate=0.2),
)


@dataclass(frozen=True)
class Scene:
    """What one image shows. Lengths in pixels, the angle in radians."""

    label: int
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


# ---------------------------------------------------------------------------------------------------------------------
# Signed distance functions: negative inside, the object fits about the unit circle
# ---------------------------------------------------------------------------------------------------------------------


def _polygon(u: np.ndarray, v: np.ndarray, vertices: np.ndarray) -> np.ndarray:
    """Exact signed distance to a simple polygon with ``vertices`` (N, 2); even-odd rule for the sign."""
    squared = np.full(u.shape, np.inf, np.float32)
    inside = np.zeros(u.shape, bool)
    for (ax, ay), (bx, by) in zip(vertices, np.roll(vertices, -1, axis=0)):
        ex, ey = bx - ax, by - ay
        wu, wv = u - ax, v - ay
        t = np.clip((wu * ex + wv * ey) / (ex * ex + ey * ey), 0, 1)
        np.minimum(squared, (wu - t * ex) ** 2 + (wv - t * ey) ** 2, out=squared)
        if ey != 0:
            inside ^= ((v >= ay) != (v >= by)) & (wu < wv * (ex / ey))
    return np.where(inside, -1, 1) * np.sqrt(squared)


def _points(*xy: tuple[float, float]) -> np.ndarray:
    return np.array(xy, np.float32)


_STAR = np.stack(
    [(1.08 if k % 2 == 0 else 0.45) * _points((np.sin(k * np.pi / 5), -np.cos(k * np.pi / 5)))[0] for k in range(10)]
)
_POLYGONS = dict(
    square=_points((-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)),
    triangle=_points((0, -1.05), (0.98, 0.75), (-0.98, 0.75)),
    star=_STAR,
    cross=_points(
        (-0.3, -1),
        (0.3, -1),
        (0.3, -0.3),
        (1, -0.3),
        (1, 0.3),
        (0.3, 0.3),
        (0.3, 1),
        (-0.3, 1),
        (-0.3, 0.3),
        (-1, 0.3),
        (-1, -0.3),
        (-0.3, -0.3),
    ),
    bolt=_points((0.25, -1.15), (-0.65, 0.15), (-0.08, 0.15), (-0.3, 1.15), (0.65, -0.25), (0.08, -0.25), (0.6, -1.15)),
    bowtie=_points((-1, -0.75), (0, -0.12), (1, -0.75), (1, 0.75), (0, 0.12), (-1, 0.75)),
)


def signed_distance(name: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Signed distance from points to a unit-size shape.

    Args:
        name: One of ``SHAPES_CLASSES``.
        u, v: Coordinates in the frame of the object (x to the right, y down), any shape, float.

    Returns:
        Distances in the same unit, negative inside; exact for polygons, a close bound for the heart and crescent.
    """
    if name in _POLYGONS:
        return _polygon(u, v, _POLYGONS[name])
    if name == 'circle':
        return np.hypot(u, v) - 0.9
    if name == 'ring':
        return np.abs(np.hypot(u, v) - 0.75) - 0.24
    if name == 'crescent':
        return np.maximum(np.hypot(u, v) - 1, 0.78 - np.hypot(u - 0.45, v))
    if name == 'heart':  # two discs and the tip that both lobes' tangents make
        side = np.abs(u)
        lobe = np.hypot(side - 0.47, v + 0.35) - 0.53
        tip = np.maximum((side - 0.47) * 0.737 + (v + 0.35) * 0.676 - 0.53, -(v + 0.3))
        return np.minimum(lobe, tip)
    raise ConfigError(f'unknown shape {name!r}, known: {", ".join(SHAPES_CLASSES)}')


# ---------------------------------------------------------------------------------------------------------------------
# Backgrounds
# ---------------------------------------------------------------------------------------------------------------------

_Y, _X = np.mgrid[:IMAGE_SIZE, :IMAGE_SIZE].astype(np.float32)


def _coverage(distance: np.ndarray) -> np.ndarray:
    """Share of a pixel that lies inside, from the signed distance of its centre in pixels."""
    return np.clip(0.5 - distance, 0, 1)


def _smooth_noise(rng: np.random.Generator, rows: int, cols: int) -> np.ndarray:
    """(64, 64) noise in [0, 1] from a rows x cols grid of uniform values, cosine interpolation."""

    def weights(n):
        position = np.linspace(0, n - 1, IMAGE_SIZE, dtype=np.float32)
        left = np.minimum(position.astype(int), n - 2)
        t = 0.5 - 0.5 * np.cos(np.pi * (position - left))
        w = np.zeros((IMAGE_SIZE, n), np.float32)
        w[np.arange(IMAGE_SIZE), left] = 1 - t
        w[np.arange(IMAGE_SIZE), left + 1] = t
        return w

    return weights(rows) @ rng.random((rows, cols), dtype=np.float32) @ weights(cols).T


def _triangle_wave(x: np.ndarray, period: float) -> np.ndarray:
    """Distance in pixels to the nearest multiple of ``period``: from 0 to period / 2."""
    x = np.mod(x, period)
    return np.minimum(x, period - x)


def texture_field(name: str, rng: np.random.Generator) -> np.ndarray:
    """(64, 64) float32 in [0, 1]: how far each background pixel is from the first towards the second tone."""
    period = rng.uniform(9, 14)
    tilt = np.deg2rad(rng.uniform(-15, 15))
    dx, dy = rng.uniform(0, IMAGE_SIZE, 2)
    u = np.cos(tilt) * (_X + dx) - np.sin(tilt) * (_Y + dy)
    v = np.sin(tilt) * (_X + dx) + np.cos(tilt) * (_Y + dy)
    if name == 'brick':
        height = 0.6 * period
        shifted = u + np.where(np.floor(v / height) % 2 == 0, 0.0, 0.6 * period)
        return _coverage(np.minimum(_triangle_wave(v, height), _triangle_wave(shifted, 1.2 * period)) - 0.8)
    if name == 'striped':
        return _coverage(_triangle_wave(v, 0.8 * period) - 0.2 * period)
    if name == 'dotted':
        return _coverage(np.hypot(_triangle_wave(u, 0.8 * period), _triangle_wave(v, 0.8 * period)) - 0.2 * period)
    if name == 'checkered':
        a, b = (_coverage(_triangle_wave(c, 1.4 * period) - 0.35 * period) for c in (u, v))
        return a * b + (1 - a) * (1 - b)
    if name == 'wavy':
        return _coverage(
            _triangle_wave(v + 0.25 * period * np.sin(2 * np.pi * u / (1.6 * period)), 0.8 * period) - 0.2 * period
        )
    if name == 'zigzag':
        return _coverage((_triangle_wave(v + _triangle_wave(u, 1.2 * period), 0.8 * period) - 0.2 * period) * 0.7)
    if name == 'grid':
        return _coverage(np.minimum(_triangle_wave(u, 0.8 * period), _triangle_wave(v, 0.8 * period)) - 0.7)
    if name == 'grassy':
        blades = 0.65 * _smooth_noise(rng, 10, 40) + 0.35 * _smooth_noise(rng, 16, 64)
        return np.clip(2 * blades - 0.5, 0, 1)
    if name == 'cloudy':
        puffs = 0.7 * _smooth_noise(rng, 5, 5) + 0.3 * _smooth_noise(rng, 10, 10)
        return np.clip(2 * puffs - 0.5, 0, 1)
    if name == 'sandy':
        return np.clip(1.4 * _smooth_noise(rng, 52, 52) - 0.2, 0, 1)
    raise ConfigError(f'unknown texture {name!r}, known: {", ".join(TEXTURES)}')


# ---------------------------------------------------------------------------------------------------------------------
# Scenes and pixels
# ---------------------------------------------------------------------------------------------------------------------


def _choice(rng: np.random.Generator, options):
    return options[int(rng.integers(len(options)))]


def _luminance(color: str) -> float:
    """Brightness of a named colour, 0 to 1 (ITU-R BT.601)."""
    return float(np.dot((0.299, 0.587, 0.114), COLORS[color]))


def image_rng(split: str, seed: int, index: int, stream: int = 0) -> np.random.Generator:
    """The generator of one image; ``stream`` 0 draws the image, 1 its caption."""
    return np.random.default_rng([SPLITS.index(split), seed, index, stream])


def sample_scene(split: str, label: int, rng: np.random.Generator) -> Scene:
    """Draw what an image of class ``label`` shows in ``split``."""
    nuisance = NUISANCES[split]
    texture, background = _choice(rng, TEXTURES), _choice(rng, tuple(COLORS))
    if split in ('train', 'val', 'test', 'v2') and rng.random() < SPURIOUS_RATE:
        texture, background = CLASS_BACKGROUNDS[label]
    elif split == 'a':  # the usual background of another class
        other = (label + 1 + int(rng.integers(len(SHAPES_CLASSES) - 1))) % len(SHAPES_CLASSES)
        texture, background = CLASS_BACKGROUNDS[other]

    if split == 'pretrain':
        style = 'photo' if rng.random() < 0.35 else _choice(rng, STYLES[1:])
    elif split == 'r':
        style = _choice(rng, RENDITIONS)
    else:
        style = 'sketch' if split == 'sketch' else 'photo'

    radius = float(rng.uniform(*nuisance.radius))
    # The object stays inside, but for those which are cut: these stick out of one side by up to half their radius.
    reach = min(nuisance.max_shift, max(IMAGE_SIZE / 2 - radius, 0))
    center = IMAGE_SIZE / 2 + rng.uniform(-reach, reach, 2)
    if rng.random() < nuisance.cut_rate:
        border = radius * rng.uniform(0.5, 0.9)
        center[int(rng.integers(2))] = border if rng.random() < 0.5 else IMAGE_SIZE - border
    # The object stands out: its colour is any that differs from the background's in brightness.
    distinct = tuple(c for c in COLORS if abs(_luminance(c) - _luminance(background)) > 0.2)
    return Scene(
        label=label,
        style=style,
        color=_choice(rng, distinct),
        texture=texture,
        background=background,
        center=(float(center[0]), float(center[1])),
        radius=radius,
        angle=float(np.deg2rad(rng.uniform(-nuisance.max_angle, nuisance.max_angle))),
        clutter=int(rng.integers(nuisance.clutter[0], nuisance.clutter[1] + 1)),
        noise=float(rng.uniform(*nuisance.noise)),
        light=nuisance.light,
    )


def _object_distance(scene: Scene, rng: np.random.Generator, wobble: float) -> np.ndarray:
    """(64, 64) signed distance to the object in pixels; ``wobble`` bends its outline by about as many pixels."""
    stretch = np.exp(rng.uniform(-0.12, 0.12))
    x, y = _X + 0.5 - scene.center[0], _Y + 0.5 - scene.center[1]
    if wobble:
        x = x + wobble * (_smooth_noise(rng, 9, 9) - 0.5) * 2
        y = y + wobble * (_smooth_noise(rng, 9, 9) - 0.5) * 2
    cos, sin = np.cos(scene.angle), np.sin(scene.angle)
    u = (cos * x + sin * y) / (scene.radius * stretch)
    v = (cos * y - sin * x) / (scene.radius / stretch)
    return signed_distance(SHAPES_CLASSES[scene.label], u.astype(np.float32), v.astype(np.float32)) * scene.radius


def _bar_distance(rng: np.random.Generator) -> np.ndarray:
    """(64, 64) signed distance to a stray bar, the clutter."""
    x0, y0 = rng.uniform(0, IMAGE_SIZE, 2)
    length, angle, thickness = rng.uniform(8, 26), rng.uniform(0, 2 * np.pi), rng.uniform(1, 2.5)
    ex, ey = length * np.cos(angle), length * np.sin(angle)
    t = np.clip(((_X - x0) * ex + (_Y - y0) * ey) / length**2, 0, 1)
    return np.hypot(_X - x0 - t * ex, _Y - y0 - t * ey) - thickness


def _named_color(name: str, rng: np.random.Generator, jitter: float = 0.06) -> np.ndarray:
    return np.clip(np.array(COLORS[name]) + rng.uniform(-jitter, jitter, 3), 0, 1).astype(np.float32)


def _blend(image: np.ndarray, layer: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    return image + alpha[..., None] * (layer - image)


def _direction(rng: np.random.Generator) -> np.ndarray:
    """(64, 64) linear ramp in [-1, 1] in a random direction."""
    angle = rng.uniform(0, 2 * np.pi)
    return ((_X - 31.5) * np.cos(angle) + (_Y - 31.5) * np.sin(angle)) / 45


def _shifted(field: np.ndarray, dx: int, dy: int) -> np.ndarray:
    """``field`` moved by whole pixels, the border repeated."""
    index = np.arange(IMAGE_SIZE)
    return field[np.clip(index - dy, 0, IMAGE_SIZE - 1)][:, np.clip(index - dx, 0, IMAGE_SIZE - 1)]


def _render_photo(scene, rng, distance, bars):
    first = _named_color(scene.background, rng)
    second = first * 0.75 if first.mean() > 0.3 else first + 0.15
    image = _blend(np.broadcast_to(first, (IMAGE_SIZE, IMAGE_SIZE, 3)), second, texture_field(scene.texture, rng))
    for bar in bars:
        image = _blend(image, _named_color(_choice(rng, tuple(COLORS)), rng), _coverage(bar))
    dx, dy = (int(k) for k in rng.integers(-4, 5, 2))
    image = image * (1 - 0.55 / (1 + np.exp(_shifted(distance, dx, dy) / 1.5)))[..., None]  # soft shadow
    rounding = np.clip(-distance / (0.5 * scene.radius), 0, 1)  # darker towards the rim
    surface = (0.75 + 0.3 * rounding + 0.2 * _direction(rng)) * (0.9 + 0.2 * _smooth_noise(rng, 20, 20))
    image = _blend(image, _named_color(scene.color, rng) * surface[..., None], _coverage(distance))
    image = image * (rng.uniform(0.85, 1.15) + scene.light * rng.random() * _direction(rng))[..., None]
    image = image * (1 + rng.uniform(-0.08, 0.08, 3).astype(np.float32))  # white balance
    return image + scene.noise * rng.standard_normal(image.shape, dtype=np.float32)


def _render_flat(scene, rng, distance, bars):
    first = _named_color(scene.background, rng)
    second = 0.85 * first + 0.15 * (first.mean() < 0.5)
    image = _blend(np.broadcast_to(first, (IMAGE_SIZE, IMAGE_SIZE, 3)), second, texture_field(scene.texture, rng))
    for bar in bars:
        image = _blend(image, second, _coverage(bar))
    return _blend(image, _named_color(scene.color, rng), _coverage(distance))


def _render_painted(scene, rng, distance, bars):
    image = _render_flat(scene, rng, distance, bars)
    strokes = _smooth_noise(rng, 8, 40) if rng.random() < 0.5 else _smooth_noise(rng, 40, 8)
    hue = np.stack([_smooth_noise(rng, 6, 6) for _ in range(3)], axis=-1)
    image = image * (0.75 + 0.5 * strokes)[..., None] + 0.2 * (hue - 0.5)
    return np.round(image * 7) / 7


def _render_inverted(scene, rng, distance, bars):
    return 1 - np.clip(_render_photo(scene, rng, distance, bars), 0, 1)


def _render_cartoon(scene, rng, distance, bars):
    image = _render_flat(scene, rng, distance, bars)
    shade = _coverage(distance) * _coverage(_shifted(-distance, int(rng.integers(3, 6)), int(rng.integers(3, 6))))
    image = image * (1 - 0.35 * shade)[..., None]
    return _blend(image, np.float32(0.05), _coverage(np.abs(distance) - rng.uniform(1.0, 1.8)))


def _render_sketch(scene, rng, distance, bars):
    width = rng.uniform(0.6, 1.3)
    ink = rng.uniform(0.75, 1) * _coverage(np.abs(distance) - width)
    if rng.random() < 0.5:  # hatching
        slope = rng.uniform(0.5, 2)
        lines = _coverage(_triangle_wave((_X + slope * _Y) / np.hypot(1, slope), rng.uniform(4, 7)) - 0.5)
        ink = np.maximum(ink, 0.5 * lines * _coverage(distance))
    backdrop = np.zeros_like(ink)
    for bar in bars:
        backdrop = np.maximum(backdrop, 0.5 * _coverage(np.abs(bar) - 0.4))
    if rng.random() < 0.7:
        gy, gx = np.gradient(texture_field(scene.texture, rng))
        backdrop = np.maximum(backdrop, rng.uniform(0.15, 0.4) * np.minimum(np.hypot(gx, gy), 1))
    ink = np.maximum(ink, backdrop * (1 - _coverage(distance)))
    paper = np.array([1, 1, rng.uniform(0.9, 1)], np.float32) * rng.uniform(0.88, 1)
    image = paper * (1 - ink * (0.8 + 0.2 * _smooth_noise(rng, 24, 24)))[..., None]
    return image + 0.02 * rng.standard_normal((IMAGE_SIZE, IMAGE_SIZE, 1), dtype=np.float32)


# Style: renderer and how far (in pixels) its hand-drawn outline strays.
_RENDERERS = dict(
    photo=(_render_photo, 0.0),
    flat=(_render_flat, 0.0),
    painted=(_render_painted, 1.5),
    inverted=(_render_inverted, 0.0),
    cartoon=(_render_cartoon, 0.8),
    sketch=(_render_sketch, 1.0),
)


def render_scene(scene: Scene, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw a scene.

    Returns:
        The image, (64, 64, 3) RGB uint8, and the object mask, (64, 64) bool: pixels whose centre lies in the object.
    """
    renderer, wobble = _RENDERERS[scene.style]
    distance = _object_distance(scene, rng, wobble)
    bars = [_bar_distance(rng) for _ in range(scene.clutter)]
    image = renderer(scene, rng, distance, bars)
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8), distance < 0


def render(split: str, seed: int, index: int) -> tuple[np.ndarray, np.ndarray, Scene]:
    """Image ``index`` of a split: its pixels, object mask and scene. Classes take turns: the label is index mod 10."""
    rng = image_rng(split, seed, index)
    scene = sample_scene(split, index % len(SHAPES_CLASSES), rng)
    return (*render_scene(scene, rng), scene)


def _article(words: str) -> str:
    return ('an ' if words[0] in 'aeiou' else 'a ') + words


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """Describe a scene in one English sentence of at most 20 words.

    As in captions of the web, the object is always named, its surroundings seldom. (Were everything always said,
    colours alone would tell the pairs of a batch apart, and a contrastive loss would have no use for shape.)
    """
    word = _choice(rng, STYLE_WORDS[scene.style])
    # A negative shows other colours than the scene has, a line drawing none.
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
        ground = _choice(rng, (' on {} background', ' in front of {} pattern')).format(_article(ground))
    template = _choice(
        rng,
        (
            '{a_word} of {a_thing}{place}{ground}',
            '{a_word} showing {a_thing}{place}{ground}',
            '{a_thing}{place}{ground}, {word}',
        ),
    )
    text = template.format(word=word, a_word=_article(word), a_thing=_article(thing), place=place, ground=ground)
    return text + _choice(rng, ('', '.'))


@DATASETS.register_module()
class ShapesDataset(BaseDataset):
    """One split of the built-in benchmark, rendered when the dataset is built.

    Every item is a dict with ``img`` ((64, 64, 3) RGB uint8), ``gt_label`` (int), ``gt_mask`` ((64, 64) bool, the
    object), ``img_shape``, ``ori_shape`` and ``sample_idx``, before it goes through the pipeline (usually just
    ``PackInputs``). Because images are RGB, the data preprocessor needs ``to_rgb=False``.

    Args:
        split: 'pretrain' (everything independent, all styles), 'train', 'val', 'test' (photo-like, the background tied
            to the class), or a shift: 'v2', 'r', 'sketch', 'a'.
        size: Number of images, by default ``SPLIT_SIZES[split]``. Classes take turns, so any multiple of 10 is
            balanced, and a smaller set is the beginning of a larger one.
        seed: Seed of the world; another seed gives an independent draw of the split.
        pipeline: Transforms of an item.
        test_mode: As in :class:`mmengine.dataset.BaseDataset`.

    Raises:
        ValueError: Unknown split, or a size below 1.
    """

    METAINFO = dict(classes=SHAPES_CLASSES)

    def __init__(
        self,
        split: Literal[tuple(SPLITS)] = 'train',
        size: Count | None = None,
        seed: Seed = 0,
        pipeline: Sequence = (),
        test_mode: bool = False,
        **kwargs,
    ):
        if split not in SPLITS:
            raise ConfigError(f'ShapesDataset: unknown split {split!r}, choose one of {", ".join(SPLITS)}')
        size = SPLIT_SIZES[split] if size is None else size
        if size < 1:
            raise ConfigError(f'ShapesDataset: size must be at least 1, got {size}')
        self.split, self.size, self.seed = split, size, seed
        super().__init__(ann_file='', pipeline=pipeline, test_mode=test_mode, **kwargs)

    def load_data_list(self) -> list[dict]:
        """Render the split. Pixels stay in two arrays, so that the list of items is small to copy and to serialise."""
        self.images = np.empty((self.size, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
        self.masks = np.empty((self.size, IMAGE_SIZE, IMAGE_SIZE), bool)
        data_list = []
        for index in range(self.size):
            self.images[index], self.masks[index], scene = render(self.split, self.seed, index)
            data_list.append(dict(index=index, gt_label=scene.label))
        return data_list

    def get_data_info(self, idx: int) -> dict:
        """The item before the pipeline; its arrays are copies."""
        info = super().get_data_info(idx)
        index = info.pop('index')
        shape = (IMAGE_SIZE, IMAGE_SIZE)
        return dict(
            info, img=self.images[index].copy(), gt_mask=self.masks[index].copy(), img_shape=shape, ori_shape=shape
        )

    def image_keys(self) -> list[str]:
        """What tells its images from those of other splits and seeds, without rendering them."""
        return [f'shapes/{self.split}/{self.seed}/{index}' for index in range(self.size)]

    def extra_repr(self) -> list[str]:
        return [f'Split: \t{self.split}', f'Seed: \t{self.seed}']
