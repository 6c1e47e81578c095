"""Which classes of a set lost accuracy between two models, and which gained."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from statistics import mean
from typing import NamedTuple

import matplotlib
import numpy as np

from ..errors import ConfigError
from .runs import Run, list_sets
from .style import OKABE_ITO, STYLE, new_figure

BLUE, VERMILLION = OKABE_ITO[:2]
_ALL = 20  # up to this number, all classes are named
_LOST, _GAINED = 10, 5


class ClassChange(NamedTuple):
    """Accuracy of one class in percent, before and after; ``count`` is its number of images, None if unknown."""

    name: str
    count: int | None
    before: float
    after: float

    @property
    def change(self) -> float:
        return self.after - self.before


def class_changes(
    before: Mapping[str, float], after: Mapping[str, float], counts: Mapping[str, int] | None = None
) -> list[ClassChange]:
    """The classes in both, with the greatest loss first.

    Args:
        before, after: ``{class: accuracy in percent}``.
        counts: ``{class: number of images}``.
    """
    counts = counts or {}
    changes = [ClassChange(name, counts.get(name), before[name], after[name]) for name in before if name in after]
    return sorted(changes, key=lambda c: (c.change, c.name))


def class_change_figure(
    changes: list[ClassChange],
    before: str = 'before',
    after: str = 'after',
    xlabel: str = 'Accuracy (%)',
    width: float = 3.3,
) -> matplotlib.figure.Figure:
    """Draw the changes of all classes in order, and name the classes that lost and gained most.

    Args:
        changes: Of :func:`class_changes`.
        before, after: Names of the two models.
        xlabel: Label of the accuracies.
        width: Width in inches.

    Returns:
        matplotlib.figure.Figure: Independent of the pyplot state.

    Raises:
        ValueError: If there are no changes.
    """
    if not changes:
        raise ValueError('the two have no class in common')
    changes = sorted(changes, key=lambda c: (c.change, c.name))
    change = np.array([c.change for c in changes])
    if len(changes) <= _ALL:
        named = list(changes)
    else:
        named = [c for c in changes[:_LOST] if c.change < 0] + [c for c in changes[-_GAINED:] if c.change > 0]
    with_curve = len(changes) > len(named)

    right, line, curve = 0.36, 0.135, 0.8 if with_curve else 0.0  # inches
    long = len(before) + len(after) > 40  # one above the other
    bottom, middle = 0.4, (0.5 if with_curve else 0.22) + (0.13 if long else 0)
    dumbbells = max(len(named), 1) * line
    height = bottom + dumbbells + middle + curve + (0.24 if with_curve else 0.06)
    counts = {c.count for c in changes}
    images = f' of {counts.pop()} images' if len(counts) == 1 and None not in counts else ''
    with matplotlib.rc_context(STYLE):
        figure = new_figure((width, height))
        labels = [c.name + ('' if images or c.count is None else f' ({c.count})') for c in named]
        left = min(max((_width(figure, label) for label in labels), default=0) + 0.15, 1.4)
        if with_curve:
            place = 0.46 / width, (height - 0.24 - curve) / height, 1 - 0.52 / width, curve / height
            _curve(figure.add_axes(place), change, f'{len(changes)} classes{images}, in order')
        axes = figure.add_axes((left / width, bottom / height, 1 - (left + right) / width, dumbbells / height))
        for y, c in enumerate(named):
            color = VERMILLION if c.change < 0 else BLUE if c.change > 0 else '0.4'
            axes.plot([c.before, c.after], [y, y], color=color, lw=1.4, solid_capstyle='butt', zorder=2)
            axes.plot(c.before, y, 'o', ms=3.6, mfc='white', mec='0.35', mew=0.8, zorder=3, clip_on=False)
            axes.plot(c.after, y, 'o', ms=3.6, color=color, mec='white', mew=0.3, zorder=4, clip_on=False)
            axes.annotate(
                _signed(c.change),
                (1, y),
                xytext=(6, 0),
                xycoords=axes.get_yaxis_transform(),
                textcoords='offset points',
                ha='left',
                va='center_baseline',
                color=color,
            )
        axes.set_yticks(range(len(named)), [''] * len(named))
        renderer = figure.canvas.get_renderer()
        for y, c in enumerate(named):
            label = axes.annotate(
                labels[y],
                (0, y),
                xytext=(-6, 0),
                xycoords=axes.get_yaxis_transform(),
                textcoords='offset points',
                ha='right',
                va='center_baseline',
                parse_math=False,
            )
            length = len(c.name)
            while label.get_window_extent(renderer).x0 < 2 and length > 3:  # shorten the name until it fits
                length -= 1
                label.set_text(_ellipsis(c.name, length) + labels[y][len(c.name) :])
        axes.set(xlim=(0, 100), ylim=(len(named) - 0.5, -0.5), xlabel=xlabel, xticks=range(0, 101, 25))
        axes.tick_params(axis='y', length=0)
        axes.tick_params(axis='x', length=2)
        axes.grid(axis='both', color='0.92', lw=0.5)
        axes.set_axisbelow(True)
        for spine in ('top', 'right', 'left'):
            axes.spines[spine].set_visible(False)
        lost = sum(c.change < 0 for c in named)
        if with_curve and 0 < lost < len(named):
            axes.axhline(
                lost - 0.5,
                color='0.7',
                lw=0.5,
                ls=(0, (1, 2)),
                xmin=(0.05 - left) / (width - left - right),
                clip_on=False,
            )
        looks = dict(mfc='white', mec='0.35', mew=0.8), dict(color='0.25')
        handles = [axes.plot([], [], 'o', ms=3.6, ls='', **look)[0] for look in looks]
        legend = figure.legend(
            handles,
            [_ellipsis(name, 50) for name in (before, after)],
            loc='lower right',
            ncols=1 if long else 2,
            bbox_to_anchor=(1, (bottom + dumbbells + 0.02) / height),
            frameon=False,
            borderaxespad=0,
            borderpad=0.1,
            handletextpad=0.1,
            columnspacing=0.8,
        )
        for text in legend.get_texts():
            text.set_parse_math(False)
        return figure


def _curve(axes, change, xlabel):
    """All changes in order, as an area."""
    x = np.arange(len(change))
    for sign, color, align in ((-1, VERMILLION, 'left'), (1, BLUE, 'right')):
        axes.fill_between(x, np.where(np.sign(change) == sign, change, 0), step='mid', color=color, lw=0)
        number = int((np.sign(change) == sign).sum())
        axes.annotate(
            f'{number} {"lost" if sign < 0 else "gained"}',
            (0 if sign < 0 else 1, 1),
            xytext=(0, 3),
            xycoords='axes fraction',
            textcoords='offset points',
            ha=align,
            va='bottom',
            color=color,
        )
    same = int((change == 0).sum())
    axes.annotate(
        f'mean {change.mean():+.1f}, {same} unchanged'.replace('-', '−'),
        (0.5, 1),
        xytext=(0, 3),
        xycoords='axes fraction',
        textcoords='offset points',
        ha='center',
        va='bottom',
        color='0.35',
    )
    axes.axhline(0, color='0.3', lw=0.6)
    axes.set(xlim=(-0.5, len(change) - 0.5), xlabel=xlabel, ylabel='Change', xticks=[])
    axes.yaxis.set_major_locator(matplotlib.ticker.MaxNLocator(4, integer=True))
    axes.tick_params(axis='y', length=2)
    for spine in ('top', 'right', 'bottom'):
        axes.spines[spine].set_visible(False)


def _signed(number):
    return f'{number:+.0f}'.replace('-', '−') if round(number) else '0'


def _width(figure, text):
    """Inches."""
    drawn = figure.text(0, 0, text, parse_math=False)
    width = drawn.get_window_extent(figure.canvas.get_renderer()).width / figure.dpi
    drawn.remove()
    return width


def _ellipsis(name, length):
    return name if len(name) <= length else name[: length - 1].rstrip(' ,;_-') + '…'


def class_accuracies(runs: Sequence[Run]) -> dict[str, dict[str, float]]:
    """``{set: {class: accuracy in percent, averaged over the runs}}`` of the sets with accuracies of classes."""
    accuracies = {}
    for name in list_sets(runs):
        seeds = [run.sets[name].get('per_class') for run in runs if name in run.sets]
        if all(seeds):
            accuracies[name] = {
                c: mean(seed[c] for seed in seeds) for c in seeds[0] if all(c in seed for seed in seeds)
            }
    return accuracies


def compare_classes(methods: Mapping[str, list[Run]], before: str, after: str) -> dict[str, list[ClassChange]]:
    """Compare two methods class by class, by their mean accuracies over seeds.

    Returns:
        ``{set: changes of its classes}`` for the sets that both methods were tested on.

    Raises:
        ConfigError: A method is unknown, or the runs have no accuracies per class.
    """
    for name in (before, after):
        if name not in methods:
            raise ConfigError(f'--compare: there is no method {name!r}, only {", ".join(methods)}')
    accuracies = [class_accuracies(methods[name]) for name in (before, after)]
    counts = {name: methods[after][0].sets[name].get('per_class_count') for name in accuracies[1]}
    shared = [name for name in accuracies[0] if name in accuracies[1]]
    changes = {name: class_changes(accuracies[0][name], accuracies[1][name], counts[name]) for name in shared}
    changes = {name: rows for name, rows in changes.items() if rows}
    if not changes:
        raise ConfigError(
            f'--compare: {before!r} and {after!r} share no set with accuracies of classes (per_class in metrics.json)'
        )
    return changes


def changes_csv(changes: Mapping[str, list[ClassChange]], id_set: str) -> str:
    """All changes as CSV, each beside the change of the class of the same name on the in-distribution set."""
    in_distribution = {c.name: c.change for c in changes.get(id_set, [])}
    file = io.StringIO()
    writer = csv.writer(file, lineterminator='\n')
    writer.writerow(['set', 'class', 'images', 'before', 'after', 'change', 'change in distribution'])
    for name, rows in changes.items():
        for c in rows:
            numbers = (c.before, c.after, c.change, in_distribution.get(c.name))
            writer.writerow([name, c.name, c.count, *('' if number is None else f'{number:.4g}' for number in numbers)])
    return file.getvalue()
