"""Reliability diagrams: how often a model is right at each confidence."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.patches import Patch

from ..errors import ConfigError
from .style import BACKING, FONT_SIZE, OKABE_ITO, STYLE, new_figure

BLUE, VERMILLION = OKABE_ITO[:2]
FEW = 10  # bins with fewer predictions are drawn pale
_COLUMNS = 3


def merge_bins(runs: Sequence[Sequence[Mapping]]) -> list[dict]:
    """Bins over all predictions of several runs.

    Args:
        runs: The bins of each run, dicts of mean ``confidence`` and ``accuracy`` (fractions; ignored in an empty bin)
            and ``count``.

    Raises:
        ConfigError: The runs have different numbers of bins.
    """
    if len({len(bins) for bins in runs}) != 1:
        raise ConfigError(
            f'runs have different numbers of confidence bins: {", ".join(str(len(bins)) for bins in runs)}'
        )
    merged = []
    for same in zip(*runs):
        filled = [b for b in same if b['count']]
        count = sum(b['count'] for b in filled)
        mean = {
            key: sum(b[key] * b['count'] for b in filled) / count if count else None
            for key in ('confidence', 'accuracy')
        }
        merged.append(dict(mean, count=count))
    return merged


def reliability_diagram(
    sets: Mapping[str, Sequence[Mapping]], notes: Mapping[str, str] | None = None, width: float = 3.3
) -> matplotlib.figure.Figure:
    """Draw one panel per set: accuracy at each confidence, the gap to the diagonal, and a histogram of confidences.

    Bins with fewer than ten predictions are pale.

    Args:
        sets: ``{name: bins}``, equal-width bins over 0..1 in order, each a dict of mean ``confidence``, ``accuracy``
            (fractions) and ``count``. Of an empty bin only the count is read.
        notes: ``{name: text}`` written into the corner of a panel, e.g. its calibration error.
        width: Width in inches.

    Returns:
        matplotlib.figure.Figure: Independent of the pyplot state.

    Raises:
        ConfigError: There are no sets, a set has no predictions, or a confidence or accuracy is not in 0..1.
    """
    if not sets:
        raise ConfigError('no set to show')
    columns = min(_COLUMNS, len(sets))
    rows = -(-len(sets) // columns)
    left, right, gap, bottom, title, strip, between, apart = 0.44, 0.06, 0.1, 0.47, 0.19, 0.18, 0.04, 0.04  # inches
    side = min((width - left - right - (columns - 1) * gap) / columns, 1.6)
    # Few panels keep their size and are centred.
    left += (width - left - right - columns * side - (columns - 1) * gap) / 2
    cell = title + side + between + strip
    height = rows * cell + (rows - 1) * apart + bottom
    with matplotlib.rc_context(STYLE):
        figure = new_figure((width, height))
        for i, (name, bins) in enumerate(sets.items()):
            confidence, accuracy, count = _arrays(name, bins)
            row, column = divmod(i, columns)
            x, top = left + column * (side + gap), height - row * (cell + apart) - title
            axes = figure.add_axes((x / width, (top - side) / height, side / width, side / height))
            below = figure.add_axes(
                (x / width, (top - side - between - strip) / height, side / width, strip / height), sharex=axes
            )
            edges = np.linspace(0, 1, len(bins) + 1)
            step = 1 / len(bins)
            lower = np.minimum(accuracy, confidence)
            options = dict(align='edge', ec='white', lw=0.3)
            off = np.abs(confidence - accuracy)
            for few in (False, True):
                alpha = 0.3 if few else 1
                shown = (count > 0) & ((count < FEW) == few)
                axes.bar(edges[:-1][shown], lower[shown], step, color='0.55', alpha=alpha, zorder=2, **options)
                for part, color in (
                    (shown & (confidence > accuracy), VERMILLION),
                    (shown & (accuracy > confidence), BLUE),
                ):
                    axes.bar(
                        edges[:-1][part],
                        off[part],
                        step,
                        bottom=lower[part],
                        color=color,
                        alpha=alpha,
                        zorder=3,
                        **options,
                    )
            axes.plot([0, 1], [0, 1], ls=(0, (4, 3)), color='0.45', lw=0.7, zorder=4)
            axes.set_title(
                textwrap.shorten(name, 24, placeholder='…') if len(name) > 24 else name,
                fontsize=FONT_SIZE,
                pad=2.5,
                parse_math=False,
            )
            if notes and name in notes:
                axes.text(
                    0.05,
                    0.95,
                    notes[name],
                    transform=axes.transAxes,
                    ha='left',
                    va='top',
                    fontsize=FONT_SIZE - 0.5,
                    zorder=5,
                    bbox=BACKING,
                )
            below.bar(edges[:-1], count / count.sum(), step, align='edge', color='0.75', ec='white', lw=0.3)
            axes.set(xlim=(0, 1), ylim=(0, 1), yticks=[0, 0.5, 1])
            below.set(ylim=(0, 1.08 * count.max() / count.sum()), yticks=[], xticks=[0, 0.5, 1])
            below.set_xticklabels(['0', '0.5', '1'])
            for label, align in zip(below.get_xticklabels(), ('left', 'center', 'right')):
                label.set_ha(align)  # keeps the numbers of neighbouring panels apart
            axes.tick_params(axis='x', labelbottom=False, length=0)
            below.tick_params(axis='x', length=2, pad=1.5)
            axes.tick_params(axis='y', length=2, pad=1.5, labelleft=column == 0)
            axes.set_yticks([0, 0.5, 1], ['0', '0.5', '1'])
            for part in (axes, below):
                part.set_axisbelow(True)
                for spine in ('top', 'right'):
                    part.spines[spine].set_visible(False)
            if row + 1 < rows and i + columns < len(sets):
                below.tick_params(axis='x', labelbottom=False)
        middle = (left + (columns * side + (columns - 1) * gap) / 2) / width
        figure.legend(
            handles=[
                Patch(color=color, label=label)
                for color, label in (('0.55', 'accuracy'), (VERMILLION, 'overconfident'), (BLUE, 'underconfident'))
            ],
            loc='lower center',
            bbox_to_anchor=(middle, 0),
            ncols=3,
            frameon=False,
            borderaxespad=0.1,
            handlelength=0.8,
            handleheight=0.8,
            handletextpad=0.4,
            columnspacing=1.2,
        )
        figure.text(middle, 0.17 / height, 'Confidence', ha='center', va='bottom', fontsize=FONT_SIZE + 1)
        figure.text(
            (left - 0.36) / width,
            (height + bottom) / 2 / height,
            'Accuracy',
            ha='left',
            va='center',
            rotation=90,
            fontsize=FONT_SIZE + 1,
        )
        return figure


def _arrays(name, bins):
    """Confidence, accuracy (0 where empty) and number of predictions, each (bins,)."""
    count = np.array([b['count'] for b in bins], dtype=float)
    if not count.sum() > 0:
        raise ConfigError(f'{name!r}: there are no predictions in any bin')
    values = np.array([[b[key] if b['count'] else 0 for b in bins] for key in ('confidence', 'accuracy')], dtype=float)
    if not ((values >= 0) & (values <= 1)).all():
        raise ConfigError(f'{name!r}: confidence and accuracy of a bin must be fractions in 0..1')
    return (*values, count)
