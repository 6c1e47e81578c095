"""Scenes to pixels: a renderer for every style."""

from __future__ import annotations

import numpy as np

from .geometry import X, Y, coverage, signed_distance, smooth_noise, texture_field, triangle_wave
from .scenes import Scene, choice, image_rng, sample_scene
from .tables import COLORS, IMAGE_SIZE, SHAPES_CLASSES


def _object_distance(scene: Scene, rng: np.random.Generator, wobble: float) -> np.ndarray:
    """(64, 64) signed distance to the object in pixels; ``wobble`` bends its outline by about as many pixels."""
    stretch = np.exp(rng.uniform(-0.12, 0.12))
    x, y = X + 0.5 - scene.center[0], Y + 0.5 - scene.center[1]
    if wobble:
        x = x + wobble * (smooth_noise(rng, 9, 9) - 0.5) * 2
        y = y + wobble * (smooth_noise(rng, 9, 9) - 0.5) * 2
    cos, sin = np.cos(scene.angle), np.sin(scene.angle)
    u = (cos * x + sin * y) / (scene.radius * stretch)
    v = (cos * y - sin * x) / (scene.radius / stretch)
    return signed_distance(scene.outline, u.astype(np.float32), v.astype(np.float32)) * scene.radius


def _bar_distance(rng: np.random.Generator) -> np.ndarray:
    """(64, 64) signed distance to a stray bar, the clutter."""
    x0, y0 = rng.uniform(0, IMAGE_SIZE, 2)
    length, angle, thickness = rng.uniform(8, 26), rng.uniform(0, 2 * np.pi), rng.uniform(1, 2.5)
    ex, ey = length * np.cos(angle), length * np.sin(angle)
    t = np.clip(((X - x0) * ex + (Y - y0) * ey) / length**2, 0, 1)
    return np.hypot(X - x0 - t * ex, Y - y0 - t * ey) - thickness


def _named_color(name: str, rng: np.random.Generator, jitter: float = 0.06) -> np.ndarray:
    return np.clip(np.array(COLORS[name]) + rng.uniform(-jitter, jitter, 3), 0, 1).astype(np.float32)


def _blend(image: np.ndarray, layer: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    return image + alpha[..., None] * (layer - image)


def _direction(rng: np.random.Generator) -> np.ndarray:
    """(64, 64) linear ramp in [-1, 1] in a random direction."""
    angle = rng.uniform(0, 2 * np.pi)
    return ((X - 31.5) * np.cos(angle) + (Y - 31.5) * np.sin(angle)) / 45


def _shifted(field: np.ndarray, dx: int, dy: int) -> np.ndarray:
    """``field`` moved by whole pixels, the border repeated."""
    index = np.arange(IMAGE_SIZE)
    return field[np.clip(index - dy, 0, IMAGE_SIZE - 1)][:, np.clip(index - dx, 0, IMAGE_SIZE - 1)]


def _render_photo(scene, rng, distance, bars):
    first = _named_color(scene.background, rng)
    second = first * 0.75 if first.mean() > 0.3 else first + 0.15
    image = _blend(np.broadcast_to(first, (IMAGE_SIZE, IMAGE_SIZE, 3)), second, texture_field(scene.texture, rng))
    for bar in bars:
        image = _blend(image, _named_color(choice(rng, tuple(COLORS)), rng), coverage(bar))
    dx, dy = (int(k) for k in rng.integers(-4, 5, 2))
    image = image * (1 - 0.55 / (1 + np.exp(_shifted(distance, dx, dy) / 1.5)))[..., None]  # soft shadow
    rounding = np.clip(-distance / (0.5 * scene.radius), 0, 1)  # darker towards the rim
    surface = (0.75 + 0.3 * rounding + 0.2 * _direction(rng)) * (0.9 + 0.2 * smooth_noise(rng, 20, 20))
    image = _blend(image, _named_color(scene.color, rng) * surface[..., None], coverage(distance))
    image = image * (rng.uniform(0.85, 1.15) + scene.light * rng.random() * _direction(rng))[..., None]
    image = image * (1 + rng.uniform(-0.08, 0.08, 3).astype(np.float32))  # white balance
    return image + scene.noise * rng.standard_normal(image.shape, dtype=np.float32)


def _render_flat(scene, rng, distance, bars):
    first = _named_color(scene.background, rng)
    second = 0.85 * first + 0.15 * (first.mean() < 0.5)
    image = _blend(np.broadcast_to(first, (IMAGE_SIZE, IMAGE_SIZE, 3)), second, texture_field(scene.texture, rng))
    for bar in bars:
        image = _blend(image, second, coverage(bar))
    return _blend(image, _named_color(scene.color, rng), coverage(distance))


def _render_painted(scene, rng, distance, bars):
    image = _render_flat(scene, rng, distance, bars)
    strokes = smooth_noise(rng, 8, 40) if rng.random() < 0.5 else smooth_noise(rng, 40, 8)
    hue = np.stack([smooth_noise(rng, 6, 6) for _ in range(3)], axis=-1)
    image = image * (0.75 + 0.5 * strokes)[..., None] + 0.2 * (hue - 0.5)
    return np.round(image * 7) / 7


def _render_inverted(scene, rng, distance, bars):
    return 1 - np.clip(_render_photo(scene, rng, distance, bars), 0, 1)


def _render_cartoon(scene, rng, distance, bars):
    image = _render_flat(scene, rng, distance, bars)
    shade = coverage(distance) * coverage(_shifted(-distance, int(rng.integers(3, 6)), int(rng.integers(3, 6))))
    image = image * (1 - 0.35 * shade)[..., None]
    return _blend(image, np.float32(0.05), coverage(np.abs(distance) - rng.uniform(1.0, 1.8)))


def _render_sketch(scene, rng, distance, bars):
    width = rng.uniform(0.6, 1.3)
    ink = rng.uniform(0.75, 1) * coverage(np.abs(distance) - width)
    if rng.random() < 0.5:  # hatching
        slope = rng.uniform(0.5, 2)
        lines = coverage(triangle_wave((X + slope * Y) / np.hypot(1, slope), rng.uniform(4, 7)) - 0.5)
        ink = np.maximum(ink, 0.5 * lines * coverage(distance))
    backdrop = np.zeros_like(ink)
    for bar in bars:
        backdrop = np.maximum(backdrop, 0.5 * coverage(np.abs(bar) - 0.4))
    if rng.random() < 0.7:
        gy, gx = np.gradient(texture_field(scene.texture, rng))
        backdrop = np.maximum(backdrop, rng.uniform(0.15, 0.4) * np.minimum(np.hypot(gx, gy), 1))
    ink = np.maximum(ink, backdrop * (1 - coverage(distance)))
    paper = np.array([1, 1, rng.uniform(0.9, 1)], np.float32) * rng.uniform(0.88, 1)
    image = paper * (1 - ink * (0.8 + 0.2 * smooth_noise(rng, 24, 24)))[..., None]
    return image + 0.02 * rng.standard_normal((IMAGE_SIZE, IMAGE_SIZE, 1), dtype=np.float32)


# Style: its renderer, and by how many pixels its hand-drawn outline strays.
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


def draw_scene(split: str, seed: int, index: int) -> tuple[Scene, np.random.Generator]:
    """The scene of image ``index`` of a split, and the generator that goes on to render it. The label is index mod 10.

    In the split 'groups' ten images on own backgrounds and ten on other classes' take turns.
    """
    rng = image_rng(split, seed, index)
    turn, label = divmod(index, len(SHAPES_CLASSES))
    return sample_scene(split, label, rng, own=turn % 2 == 0), rng


def render(split: str, seed: int, index: int) -> tuple[np.ndarray, np.ndarray, Scene]:
    """Render image ``index`` of a split: its pixels, object mask and scene."""
    scene, rng = draw_scene(split, seed, index)
    return (*render_scene(scene, rng), scene)
