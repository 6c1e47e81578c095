"""Shapes as signed distance functions, and the textures of backgrounds, as numpy arrays of pixels."""

from __future__ import annotations

import numpy as np

from ...errors import ConfigError
from .tables import IMAGE_SIZE, OUTLINES, TEXTURES

Y, X = np.mgrid[:IMAGE_SIZE, :IMAGE_SIZE].astype(np.float32)

# Signed distance functions: negative inside; the object roughly fills the unit circle
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


def _star(points: int, outer: float, inner: float) -> np.ndarray:
    corners = np.arange(2 * points)
    angle = corners * np.pi / points
    directions = np.stack([np.sin(angle), -np.cos(angle)], axis=1).astype(np.float32)
    return np.where(corners % 2 == 0, outer, inner).astype(np.float32)[:, None] * directions


def _turned(vertices: np.ndarray, degrees: float) -> np.ndarray:
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return (vertices @ np.array([[cos, sin], [-sin, cos]])).astype(np.float32)


_CROSS = _points(
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
)
_BOLT = _points((0.25, -1.15), (-0.65, 0.15), (-0.08, 0.15), (-0.3, 1.15), (0.65, -0.25), (0.08, -0.25), (0.6, -1.15))
_BOWTIE = _points((-1, -0.75), (0, -0.12), (1, -0.75), (1, 0.75), (0, 0.12), (-1, 0.75))

POLYGONS = {
    'square': _points((-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)),
    'rectangle': _points((-1, -0.5), (1, -0.5), (1, 0.5), (-1, 0.5)),
    'triangle': _points((0, -1.05), (0.98, 0.75), (-0.98, 0.75)),
    'right-angled triangle': _points((-0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)),
    'star': _star(5, 1.08, 0.45),
    'six-pointed star': _star(6, 1.05, 0.58),
    'cross': _CROSS,
    'saltire': _turned(_CROSS, 45),
    'bolt': _BOLT,
    'mirrored bolt': _BOLT * _points((-1, 1)),
    'bowtie': _BOWTIE,
    'hourglass': _turned(_BOWTIE, 90),
}


def signed_distance(name: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Signed distance from points to a unit-size shape.

    Args:
        name: One of the outlines in ``OUTLINES``.
        u, v: Coordinates in the frame of the object (x to the right, y down), any shape, float.

    Returns:
        Distances in the same unit, negative inside; exact for polygons, a close bound for curved
        outlines.
    """
    if name in POLYGONS:
        return _polygon(u, v, POLYGONS[name])
    if name == 'circle':
        return np.hypot(u, v) - 0.9
    if name == 'ellipse':
        return 0.58 * (np.hypot(u, v / 0.58) - 1)
    if name == 'ring':
        return np.abs(np.hypot(u, v) - 0.75) - 0.24
    if name == 'broken ring':  # open to the right
        return np.maximum(signed_distance('ring', u, v), np.minimum(0.33 - np.abs(v), u))
    if name == 'mirrored crescent':
        return signed_distance('crescent', -u, v)
    if name == 'inverted heart':
        return signed_distance('heart', u, -v)
    if name == 'crescent':
        return np.maximum(np.hypot(u, v) - 1, 0.78 - np.hypot(u - 0.45, v))
    if name == 'heart':  # two discs, and the tip between their tangents
        side = np.abs(u)
        lobe = np.hypot(side - 0.47, v + 0.35) - 0.53
        tip = np.maximum((side - 0.47) * 0.737 + (v + 0.35) * 0.676 - 0.53, -(v + 0.3))
        return np.minimum(lobe, tip)
    known = [outline for outlines in OUTLINES.values() for outline in outlines]
    raise ConfigError(f'unknown shape {name!r}, known: {", ".join(known)}')


# Backgrounds
# ---------------------------------------------------------------------------------------------------------------------


def coverage(distance: np.ndarray) -> np.ndarray:
    """Fraction of a pixel that lies inside, from the signed distance of its centre in pixels."""
    return np.clip(0.5 - distance, 0, 1)


def smooth_noise(rng: np.random.Generator, rows: int, cols: int) -> np.ndarray:
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


def triangle_wave(x: np.ndarray, period: float) -> np.ndarray:
    """Distance in pixels to the nearest multiple of ``period``: from 0 to period / 2."""
    x = np.mod(x, period)
    return np.minimum(x, period - x)


def texture_field(name: str, rng: np.random.Generator) -> np.ndarray:
    """(64, 64) float32 in [0, 1]: the mix of each background pixel between the first (0) and the second tone (1)."""
    period = rng.uniform(9, 14)
    tilt = np.deg2rad(rng.uniform(-15, 15))
    dx, dy = rng.uniform(0, IMAGE_SIZE, 2)
    u = np.cos(tilt) * (X + dx) - np.sin(tilt) * (Y + dy)
    v = np.sin(tilt) * (X + dx) + np.cos(tilt) * (Y + dy)
    if name == 'brick':
        height = 0.6 * period
        shifted = u + np.where(np.floor(v / height) % 2 == 0, 0.0, 0.6 * period)
        return coverage(np.minimum(triangle_wave(v, height), triangle_wave(shifted, 1.2 * period)) - 0.8)
    if name == 'striped':
        return coverage(triangle_wave(v, 0.8 * period) - 0.2 * period)
    if name == 'dotted':
        return coverage(np.hypot(triangle_wave(u, 0.8 * period), triangle_wave(v, 0.8 * period)) - 0.2 * period)
    if name == 'checkered':
        a, b = (coverage(triangle_wave(c, 1.4 * period) - 0.35 * period) for c in (u, v))
        return a * b + (1 - a) * (1 - b)
    if name == 'wavy':
        return coverage(
            triangle_wave(v + 0.25 * period * np.sin(2 * np.pi * u / (1.6 * period)), 0.8 * period) - 0.2 * period
        )
    if name == 'zigzag':
        return coverage((triangle_wave(v + triangle_wave(u, 1.2 * period), 0.8 * period) - 0.2 * period) * 0.7)
    if name == 'grid':
        return coverage(np.minimum(triangle_wave(u, 0.8 * period), triangle_wave(v, 0.8 * period)) - 0.7)
    if name == 'grassy':
        blades = 0.65 * smooth_noise(rng, 10, 40) + 0.35 * smooth_noise(rng, 16, 64)
        return np.clip(2 * blades - 0.5, 0, 1)
    if name == 'cloudy':
        puffs = 0.7 * smooth_noise(rng, 5, 5) + 0.3 * smooth_noise(rng, 10, 10)
        return np.clip(2 * puffs - 0.5, 0, 1)
    if name == 'sandy':
        return np.clip(1.4 * smooth_noise(rng, 52, 52) - 0.2, 0, 1)
    raise ConfigError(f'unknown texture {name!r}, known: {", ".join(TEXTURES)}')
