"""How the stages of a counterfactual image are drawn: image, relevance map, mask.

Images are (3, H, W), float RGB in 0..1; relevance maps (h, w) in 0..1; masks (h, w) and outlines (H, W) bool.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from matplotlib import patheffects, rc_context
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb

from .style import STYLE, new_figure

COLORMAP = 'inferno'  # perceptually uniform, readable with any colour vision and in grey
MASK_COLOR = '#D55E00'  # Okabe-Ito vermillion


def picture(draw: Callable[[Axes], None], height: int, width: int) -> np.ndarray:
    """What one of the functions below draws, as pixels without a frame: (height, width, 3) uint8."""
    with rc_context(STYLE):
        figure = new_figure((width / 100, height / 100))
        figure.set_dpi(100)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        draw(axes)
        figure.canvas.draw()
        return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()


def show(axes: Axes, image: np.ndarray) -> None:
    """Draw an image."""
    axes.imshow(image.transpose(1, 2, 0).clip(0, 1), interpolation='lanczos', extent=(0, 1, 1, 0), aspect='auto')


def show_grey(axes: Axes, image: np.ndarray) -> None:
    """A pale grey image, as a background for colours."""
    grey = np.tensordot((0.299, 0.587, 0.114), image, axes=1).clip(0, 1)
    axes.imshow(
        0.25 + 0.63 * grey, cmap='gray', vmin=0, vmax=1, interpolation='lanczos', extent=(0, 1, 1, 0), aspect='auto'
    )


def show_relevance(axes: Axes, image: np.ndarray, relevance: np.ndarray, outline: np.ndarray | None = None) -> None:
    """Draw a relevance map over the grey image, and the outline of the true object."""
    show_grey(axes, image)
    axes.imshow(
        relevance,
        cmap=COLORMAP,
        vmin=0,
        vmax=1,
        alpha=0.4 + 0.45 * relevance.clip(0, 1),  # keeps the image visible where relevance is low
        interpolation='bilinear',
        extent=(0, 1, 1, 0),
        aspect='auto',
    )
    show_outline(axes, outline)


def show_mask(axes: Axes, image: np.ndarray, mask: np.ndarray, outline: np.ndarray | None = None) -> None:
    """Draw the masked patches over the grey image, and the outline of the true object."""
    show_grey(axes, image)
    tint = np.zeros((*mask.shape, 4))
    tint[..., :3] = to_rgb(MASK_COLOR)
    tint[..., 3] = 0.7 * mask
    axes.imshow(tint, interpolation='nearest', extent=(0, 1, 1, 0), aspect='auto')
    rows, columns = mask.shape
    grid = [((0, i / rows), (1, i / rows)) for i in range(1, rows)]
    grid += [((i / columns, 0), (i / columns, 1)) for i in range(1, columns)]
    axes.add_collection(LineCollection(grid, colors='white', linewidths=0.35, alpha=0.7))
    show_outline(axes, outline)
    axes.set(xlim=(0, 1), ylim=(1, 0))


def show_outline(axes: Axes, outline: np.ndarray | None) -> None:
    """Draw the outline of an object, if it is known."""
    if outline is None or outline.all() or not outline.any():
        return
    height, width = outline.shape
    contour = axes.contour(
        (np.arange(width) + 0.5) / width,
        (np.arange(height) + 0.5) / height,
        outline,
        [0.5],
        colors='white',
        linewidths=0.7,
    )
    contour.set_path_effects([patheffects.withStroke(linewidth=1.4, foreground='black')])
    axes.set(xlim=(0, 1), ylim=(1, 0))
