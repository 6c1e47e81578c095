"""The built-in benchmark: rendered shapes (the cause) on textured, coloured backgrounds (not the cause).

``(split, seed, index)`` determines an image. :func:`sample_scene` draws what it shows, :func:`render_scene` renders the
pixels, :func:`caption` describes it; :class:`ShapesDataset` serves a split to mmengine. Shapes are signed distance
functions in pixels: one function gives coverage, outline, shading, shadow and the ground-truth mask.
"""

from .dataset import GROUP_NAMES, ShapesDataset, count_groups, find_group
from .geometry import signed_distance, texture_field
from .rendering import render, render_scene
from .scenes import Scene, caption, image_rng, is_on_own_background, sample_scene
from .tables import (
    CLASS_BACKGROUNDS,
    COLORS,
    IMAGE_SIZE,
    NEW_OUTLINE_RATE,
    OUTLINES,
    RENDITIONS,
    SHAPES_CLASSES,
    SHAPES_TEMPLATES,
    SPLIT_SIZES,
    SPLITS,
    SPURIOUS_RATE,
    STYLE_WORDS,
    STYLES,
    TEXTURES,
)

__all__ = [
    'CLASS_BACKGROUNDS',
    'COLORS',
    'GROUP_NAMES',
    'IMAGE_SIZE',
    'NEW_OUTLINE_RATE',
    'OUTLINES',
    'RENDITIONS',
    'SHAPES_CLASSES',
    'SHAPES_TEMPLATES',
    'SPLITS',
    'SPLIT_SIZES',
    'SPURIOUS_RATE',
    'STYLES',
    'STYLE_WORDS',
    'TEXTURES',
    'Scene',
    'ShapesDataset',
    'caption',
    'count_groups',
    'find_group',
    'image_rng',
    'is_on_own_background',
    'render',
    'render_scene',
    'sample_scene',
    'signed_distance',
    'texture_field',
]
