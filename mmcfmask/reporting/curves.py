"""Accuracy along the line between pretrained and fine-tuned weights."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib
import numpy as np
from matplotlib.ticker import MaxNLocator

from .style import OKABE_ITO, STYLE, new_figure


def wise_ft_curve(
    points: Mapping[float, tuple[float, float]],
    default: float | None = 0.5,
    xlabel: str = 'ID accuracy (%)',
    ylabel: str = 'OOD average accuracy (%)',
    size: tuple[float, float] = (3.4, 2.9),
) -> matplotlib.figure.Figure:
    """Draw ID accuracy against OOD average over α (Wortsman et al., CVPR 2022, figure 1), one marker per α.

    Args:
        points: ``{α: (ID accuracy, OOD average)}`` in percent.
        default: The α to report, drawn as a star.
        xlabel, ylabel: Labels of the axes.
        size: Width and height in inches.

    Returns:
        matplotlib.figure.Figure: Independent of the pyplot state.

    Raises:
        ValueError: If there are no points, or values are not in 0..100.
    """
    if not points:
        raise ValueError('points is empty: no α to show')
    alphas = sorted(points)
    pairs = np.array([points[alpha] for alpha in alphas], dtype=float)
    if pairs.ndim != 2 or pairs.shape[1] != 2 or not ((pairs >= 0) & (pairs <= 100)).all():
        raise ValueError(f'expected pairs of ID accuracy and OOD average in 0..100, got {dict(points)!r}')
    color, accent = OKABE_ITO[0], OKABE_ITO[1]
    with matplotlib.rc_context(STYLE):
        figure = new_figure(size)
        figure.set_layout_engine('constrained')  # close accuracies have wide tick labels
        axes = figure.add_subplot()
        axes.plot(*pairs.T, '-o', color=color, lw=1.1, ms=3.5, mec='white', mew=0.4, zorder=2)
        if default in alphas:
            axes.plot(*points[default], '*', color=accent, ms=11, mec='white', mew=0.5, zorder=3)
        for axis, values in ((axes.xaxis, pairs[:, 0]), (axes.yaxis, pairs[:, 1])):
            low, high = values.min(), values.max()
            pad = max(0.14 * (high - low), (1 - (high - low)) / 2)
            axis.set_view_interval(max(low - pad, 0), min(high + pad, 100), ignore=True)
            axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10], min_n_ticks=4))
        axes.set(xlabel=xlabel, ylabel=ylabel)
        axes.grid(color='0.92', lw=0.5)
        axes.set_axisbelow(True)
        for side in ('top', 'right'):
            axes.spines[side].set_visible(False)
        figure.draw_without_rendering()
        figure.set_layout_engine('none')  # the labels of α are placed in pixels, so the axes must not move
        for alpha in dict.fromkeys([*([default] if default in alphas else []), alphas[0], alphas[-1]]):
            _label(axes, f'α = {alpha:g}', points[alpha], pairs, accent if alpha == default else color)
        return figure


def _label(axes, text, point, curve, color):
    """Write ``text`` beside ``point``, inside the axes, where it covers the least of the curve and of other texts."""
    renderer = axes.figure.canvas.get_renderer()
    scale = axes.figure.dpi / 72  # pixels per point
    steps = np.linspace(0, 1, 50)[:, None]
    corners = axes.transData.transform(curve)
    line = np.concatenate([corners, *(start + steps * (end - start) for start, end in zip(corners, corners[1:]))])
    frame = axes.get_window_extent(renderer)
    others = [other.get_window_extent(renderer) for other in axes.texts]
    label = axes.annotate(text, point, xytext=(0, 0), textcoords='offset points', color=color, ha='center', va='center')
    size = label.get_window_extent(renderer).size / scale  # points

    def cost(offset):
        label.set_position(offset)
        box = label.get_window_extent(renderer)
        outside = (
            max(frame.x0 - box.x0, 0)
            + max(box.x1 - frame.x1, 0)
            + max(frame.y0 - box.y0, 0)
            + max(box.y1 - frame.y1, 0)
        )
        covered = ((line > box.min - 2 * scale) & (line < box.max + 2 * scale)).all(axis=1).sum()
        return outside + covered + 100 * sum(box.overlaps(other) for other in others)

    angles = np.radians(range(0, 360, 15))
    label.set_position(min((tuple((size / 2 + 7) * (np.cos(angle), np.sin(angle))) for angle in angles), key=cost))
