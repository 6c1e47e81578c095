"""Curves of deletion and insertion along relevance maps."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle

import matplotlib
import numpy as np

from .style import OKABE_ITO, STYLE, new_figure

Curves = Mapping[str, tuple[np.ndarray, np.ndarray]]


def map_curves(sets: Mapping[str, Curves]) -> matplotlib.figure.Figure:
    """Draw the probability of the label while patches are deleted (left) and inserted (right), one row per set.

    Args:
        sets: ``{set: {map: (deletion, insertion)}}``, each (steps + 1,) in 0..1, for equal steps of the share of
            patches from 0 to 1. All sets have the same maps.

    Returns:
        matplotlib.figure.Figure: It has two axes per set, independent of the pyplot state.

    Raises:
        ValueError: There is no set or no map.
    """
    if not sets or not all(sets.values()):
        raise ValueError('there are no curves to show')
    with matplotlib.rc_context(STYLE):
        figure = new_figure((5.4, 0.45 + 1.75 * len(sets)))
        figure.set_layout_engine('constrained')
        grid = figure.subplots(len(sets), 2, sharex=True, sharey='row', squeeze=False)
        for axes, (name, curves) in zip(grid, sets.items()):
            styles = cycle((color, style) for style in ('-', '--') for color in OKABE_ITO)
            for (label, pair), (color, style) in zip(curves.items(), styles):
                for side, curve in zip(axes, pair):
                    side.plot(np.linspace(0, 100, len(curve)), curve, style, color=color, lw=1, label=label)
            axes[0].set_ylabel(f'{name}\nprobability of the label')
            for side in axes:
                side.set(ylim=(0, None), xlim=(0, 100))
                side.grid(color='0.92', lw=0.5)
                side.spines[['top', 'right']].set_visible(False)
        for side, title in zip(grid[0], ('deletion (low is good)', 'insertion (high is good)')):
            side.set_title(title, fontsize=STYLE['font.size'])
        for side in grid[-1]:
            side.set_xlabel('patches, the most relevant first (%)')
        handles, labels = grid[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc='outside lower center', ncols=3, frameon=False)
        return figure
